/* os.h: every system call of the core, one contract each. This layer decides nothing.
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

/* What this kernel can do, found out once, by effect rather than by version. Passed in where it matters, so that a
 * test can play an old kernel. */
struct os_features {
    bool populate;        /* MADV_POPULATE_(READ|WRITE), Linux 5.14: a page was absent before and present after */
    bool dontneed_locked; /* MADV_DONTNEED_LOCKED, Linux 5.18 */
    bool pagemap_scan;    /* PAGEMAP_SCAN, Linux 6.7 */
    bool vma_names;       /* PR_SET_VMA_ANON_NAME, Linux 5.17 and CONFIG_ANON_VMA_NAME */
};
const struct os_features *os_features(void);

/* Is a THP to be had by asking for it (madvise), as /sys says now? */
bool os_thp_allowed(void);
/* vm.overcommit_memory: 0, 1 or 2; 0 where it cannot be read. */
int os_overcommit_mode(void);

/* Reserves address space without memory or (outside overcommit mode 2) commit charge, at a multiple of align.
 * *lazy on return: pages are PROT_NONE and os_open has to be called before they are populated; chosen in overcommit
 * mode 2 and where RLIMIT_DATA forbids the whole range, else the range is readable and writable.
 * -ENOMEM: address space (RLIMIT_AS) or overcommit. -EAGAIN: RLIMIT_MEMLOCK under mlockall(MCL_FUTURE). */
int os_reserve(size_t bytes, size_t align, void **out, bool *lazy);
int os_unmap(void *addr, size_t bytes);
/* Lazy ranges: may be populated from now on; charged in overcommit mode 2 (-ENOMEM when that is refused). */
int os_open(void *addr, size_t bytes);
/* Lazy ranges: releases, uncharges and closes. The kernel keeps the charge at a mere mprotect, so it is mapped anew;
 * the caller repeats its advice. */
int os_close(void *addr, size_t bytes);

/* MADV_POPULATE_WRITE or _READ. -EFAULT, -ENOMEM, -EHWPOISON, -EINVAL as madvise(2); part may be populated then. */
int os_populate(void *addr, size_t bytes, bool write);
/* Faults in every page of `page` bytes by an atomic OR of 0 into its last byte, which cannot lose another thread's
 * write; or by a load. Only for private anonymous memory: there is no answer but a signal when it fails. */
void os_touch(void *addr, size_t bytes, size_t page, bool write);
/* MADV_DONTNEED: private anonymous memory is gone and reads as zero. */
int os_release(void *addr, size_t bytes);

int os_advise_huge(void *addr, size_t bytes, bool huge);
int os_advise_dump(void *addr, size_t bytes, bool dump);
enum os_fork { OS_FORK_COPY, OS_FORK_DROP, OS_FORK_WIPE };
int os_advise_fork(void *addr, size_t bytes, enum os_fork fork);
/* Best effort: shown in /proc/self/maps where the kernel can. */
void os_name(void *addr, size_t bytes, const char *name);
/* Zero pages at exactly this range, which must be free: -EEXIST. */
int os_map_at(void *addr, size_t bytes);

/* What the kernel says of a range, in bytes. */
struct os_residency {
    uint64_t present, huge, zero, swapped;
};
int os_residency(const void *addr, size_t bytes, struct os_residency *out);

/* Copies between memory of this process by process_vm_readv or _writev. -EFAULT: not (or no longer) there; -EPERM. */
int os_copy(void *memory, void *buffer, size_t bytes, bool into_memory);

/* Reads a small file. The length, NUL-terminated, at most size - 1; or -errno. */
int os_read(const char *path, char *buf, size_t size);
uint64_t os_now_ns(void);
void os_sleep_us(unsigned us);
unsigned os_cpus(void);
/* Threads of this process (1 when it cannot be told). */
unsigned os_threads(void);
/* A thread with a small stack and every signal blocked: under MCL_FUTURE a default stack is 2,048 faults. */
int os_thread(pthread_t *out, void *(*run)(void *), void *arg);

/* Sleeps while *word is `value`, at most this long; spurious returns are allowed. */
void os_wait(const uint32_t *word, uint32_t value, uint64_t timeout_ns);
void os_wake_all(const uint32_t *word);

#endif
