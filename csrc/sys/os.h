/* os.h: every system call of the core, one contract each; those on files are in files.h. This layer decides nothing.
 *
 * Unless said otherwise a function returns 0 or -errno and leaves things as they were when it fails.
 * Addresses and lengths are multiples of the page size the caller works with. */
#ifndef ARENA_OS_H
#define ARENA_OS_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define OS_PAGE ((size_t)4096)
#define OS_HUGE ((size_t)2 << 20)
#define OS_CACHE_LINE 64

/* What this kernel can do, found out once, by effect rather than by version. Every function that depends on it is told,
 * so that a test can play an old kernel. All false is right on every kernel, only slower. */
struct os_features {
    bool populate;        /* MADV_POPULATE_(READ|WRITE), Linux 5.14: a page was absent before and present after */
    bool dontneed_locked; /* MADV_DONTNEED_LOCKED, Linux 5.18 */
    bool dontneed_hugetlb; /* MADV_DONTNEED of pages of the hugetlb pool, Linux 5.18 */
    bool pagemap_scan;    /* PAGEMAP_SCAN, Linux 6.7 */
    bool vma_names;       /* PR_SET_VMA_ANON_NAME, Linux 5.17 and CONFIG_ANON_VMA_NAME */
};
const struct os_features *os_features(void);

/* 1 or 0, or -EMFILE and -ENFILE: are huge pages of so many bytes (64 KiB: mTHP, Linux 6.8; 2 MiB: THP) to be had by asking for them (MADV_HUGEPAGE), as
 * /sys says now: for private anonymous memory, or for shared memory without a mount of its own (memfd)? */
int os_thp_allowed(uint64_t bytes, bool shared);

/* A hugetlb pool, in bytes: how much it could still give, on one NUMA node or (node < 0) on all, surplus pages
 * included, and how much it has in all, those that could be made included. *where: the file that says so. 0: there is no
 * pool of this size. -EMFILE, -ENFILE: its files cannot be read. */
struct os_pool {
    uint64_t total, free;
    char where[96];
};
int os_hugetlb(uint64_t page, int node, struct os_pool *out);
/* vm.overcommit_memory: 0, 1 or 2; 0 where it cannot be read. */
int os_overcommit_mode(void);

/* What is mapped: private anonymous memory by default. */
struct os_mapping {
    int fd; /* -1: anonymous */
    bool shared, readonly;
    bool device;      /* its driver wants to see at once what it is mapped for */
    uint64_t hugetlb; /* anonymous, of the pool with pages of so many bytes; else 0 */
};
extern const struct os_mapping os_anonymous;

/* Reserves address space without memory or (outside overcommit mode 2) commit charge, at a multiple of align.
 * *lazy on return: pages are PROT_NONE and os_make_accessible has to be called before they are populated; chosen, for private
 * writable mappings, in overcommit mode 2 and where RLIMIT_DATA forbids the whole range.
 * -ENOMEM: address space (RLIMIT_AS) or overcommit. -EAGAIN: RLIMIT_MEMLOCK, for pages of the hugetlb pool under
 * mlockall(MCL_FUTURE) and for a file whose pages are always locked. -EACCES, -EPERM, -ENODEV, …: the file does not allow it, as mmap(2). */
int os_reserve(const struct os_mapping *what, size_t bytes, size_t align, void **out, bool *lazy);
/* -ENOMEM: vm.max_map_count does not let it be cut out of a mapping that the kernel has merged with others. What it held of
 * private memory is given back, and the address space is too with a later call. The caller has done with it in any case. */
int os_unmap(void *addr, size_t bytes);
/* Lazy ranges: may be populated from now on; charged in overcommit mode 2 (-ENOMEM when that is refused). */
int os_make_accessible(void *addr, size_t bytes);
/* Lazy ranges: releases, uncharges and closes. The kernel keeps the charge at a mere mprotect, so it is mapped anew, at
 * its offset in the file; the caller repeats its advice. When it fails the range is still the caller's. */
int os_decommit_lazy(const struct os_mapping *what, void *addr, size_t bytes, uint64_t offset);

/* MADV_POPULATE_WRITE or _READ. -EFAULT, -ENOMEM, -EHWPOISON, -EINVAL as madvise(2); part may be populated then. */
int os_populate(void *addr, size_t bytes, bool write);
/* Faults in every page of `page` bytes by an atomic OR of 0 into its last byte, which cannot lose another thread's
 * write; or by a load. Only for private anonymous memory: there is no answer but a signal when it fails. */
void os_touch(void *addr, size_t bytes, size_t page, bool write);
/* The same by the kernel's hand: an atomic OR of 0 (futex(2), FUTEX_WAKE_OP) or a load (FUTEX_WAIT), 2 to 4 µs a page,
 * which answers -EFAULT or -ENOMEM where a touch of ours would be a SIGBUS. For kernels without MADV_POPULATE. */
int os_touch_carefully(void *addr, size_t bytes, size_t page, bool write);
/* MADV_DONTNEED: the pages are not mapped any more. Private copies are gone with that, shared memory is not. Locked memory
 * stays locked. Where a part of the range is not mapped at all: -ENOMEM, after the rest was done. -EINVAL, and what comes
 * before it in the range was done: a driver's own pages; without `dontneed_hugetlb` those of the hugetlb pool, for which
 * there is os_map_anew. */
int os_decommit(const struct os_features *f, void *addr, size_t bytes);
/* The same by mapping the range once more, at its offset in the file: the caller repeats its advice. */
int os_map_anew(const struct os_mapping *what, void *addr, size_t bytes, uint64_t offset);
/* Is there anything mapped at this page? */
bool os_is_mapped(void *page);
/* msync(MS_SYNC): what was written to a shared mapping of a file is on its disk. -EIO, -ENOSPC, -EDQUOT: it cannot be had
 * there. -EINTR: some file systems. */
int os_flush(void *addr, size_t bytes);
/* MADV_REMOVE: frees shared memory that has no descriptor, for everybody. Locked memory stays locked. */
int os_madvise_remove(void *addr, size_t bytes);

/* mlock2(MLOCK_ONFAULT): what is present is locked, and what will be. -ENOMEM: RLIMIT_MEMLOCK, or vm.max_map_count.
 * -EPERM: RLIMIT_MEMLOCK is 0. The kernel locks whole ranges of address space, populated or not, and counts them so. */
int os_mlock(void *addr, size_t bytes);
int os_munlock(void *addr, size_t bytes);
/* The same for the parts of private anonymous memory that are present, whose pages are then this process's own: after a
 * fork they were copy-on-write. */
int os_mlock_present(const struct os_features *f, void *addr, size_t bytes);
/* mlock(2), which also populates what can be: what cannot, as beyond the end of a file, is left out. */
void os_mlock_whole(void *addr, size_t bytes);
/* mlockall(2) of what is mapped from now on, with or without MCL_ONFAULT; munlockall(2). */
int os_mlock_future(bool on_fault);
int os_munlock_all(void);
/* Bytes that this process may lock, and has locked. UINT64_MAX: it may lock all it likes (CAP_IPC_LOCK). */
void os_mlock_limit(uint64_t *limit, uint64_t *locked);

int os_advise_huge(void *addr, size_t bytes, bool huge);
int os_advise_dump(void *addr, size_t bytes, bool dump);
enum os_fork { OS_FORK_COPY, OS_FORK_SHARE, OS_FORK_DROP, OS_FORK_WIPE };
/* COPY and SHARE are what the mapping does by itself. */
int os_advise_fork(void *addr, size_t bytes, enum os_fork fork);
/* Memory of the range comes from this NUMA node and no other. -EINVAL: no such node. -ENOSYS: a kernel without NUMA. */
int os_bind(void *addr, size_t bytes, int node);
/* Best effort: shown in /proc/self/maps where the kernel can. */
void os_name(const struct os_features *f, void *addr, size_t bytes, const char *name);
/* Zero pages at exactly this range, which must be free: -EEXIST. */
int os_map_at(void *addr, size_t bytes);

/* What the kernel says of a range, in bytes. */
struct os_residency {
    uint64_t present, huge, zero, swapped;
};
int os_residency(const struct os_features *f, const void *addr, size_t bytes, struct os_residency *out);
/* Adds to *count the bytes present that others have mapped too, as after a fork; all of them, where that cannot be told.
 * -EMFILE, -ENFILE. */
int os_mapped_by_others(const void *addr, size_t bytes, uint64_t *count);

/* Copies between memory of this process by process_vm_readv or _writev. -EFAULT: not (or no longer) there; -EPERM. */
int os_vm_copy(void *memory, void *buffer, size_t bytes, bool into_memory);

/* Reads a small file. The length, NUL-terminated, at most size - 1; or -errno. */
int os_read(const char *path, char *buf, size_t size);
/* Each line of a file, as long as `line` answers true; of a line longer than 4,095 bytes the rest is left out. */
int os_each_line(const char *path, bool (*line)(void *arg, char *text), void *arg);
uint64_t os_now_ns(void);
void os_sleep_us(unsigned us);
unsigned os_cpus(void);
/* The thread that the process began with: in most programs the only one whose waiting a signal handler can end. */
bool os_is_main_thread(void);
/* Threads of this process (1 when it cannot be told). */
unsigned os_threads(void);
/* A thread with a small stack (128 KiB, and what libc needs for itself) and every signal blocked: under MCL_FUTURE a default
 * stack is 2,048 faults. */
int os_thread(pthread_t *out, void *(*run)(void *), void *arg);

/* Sleeps while *word is `value`, at most this long; spurious returns are allowed. */
void os_wait(const uint32_t *word, uint32_t value, uint64_t timeout_ns);
void os_wake_all(const uint32_t *word);

#endif
