/* arena.h: a memory allocator that hands out memory which is really there. The public C interface.
 *
 * Linux only. Every function that can fail returns 0 or a count, or -errno, and says more in *error where it takes one.
 * Thread-safe throughout. Sizes are bytes unless a name says otherwise. Nothing here needs Python; Python extensions
 * reach the same functions through the table `struct arena_api` (see its comment) and link nothing. */
#ifndef ARENA_H
#define ARENA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct reservation reservation;
typedef struct arena arena;

/* Called between the steps of a commit by the thread that asked for it, and while it waits for another's, at least about
 * every 10 ms. Not 0 stops the commit with that -errno and rolls it back. May call back into the arena. */
typedef int (*arena_progress)(void *arg, uint64_t done, uint64_t total);

enum arena_pages { ARENA_PAGES_AUTO, ARENA_PAGES_4K, ARENA_PAGES_THP, ARENA_PAGES_HUGETLB };
/* AUTO: SHARE for what is shared, DROP for private hugetlb pages, else COPY. */
enum arena_fork { ARENA_FORK_AUTO, ARENA_FORK_COPY, ARENA_FORK_SHARE, ARENA_FORK_DROP, ARENA_FORK_WIPE };
/* AUTO: anonymous, or a memfd when shared. */
enum arena_backing {
    ARENA_BACKING_AUTO,
    ARENA_BACKING_ANONYMOUS,
    ARENA_BACKING_MEMFD,
    ARENA_BACKING_PATH,
    ARENA_BACKING_FD
};

/* Why something failed, in numbers; the words are made elsewhere. */
struct arena_error {
    int err;             /* positive errno */
    const char *op;      /* the step that failed: "mmap", "madvise(MADV_POPULATE_WRITE)", "preflight", … */
    uint64_t offset;     /* of the range, in the reservation */
    uint64_t requested;  /* bytes asked for */
    uint64_t committed;  /* bytes committed when it failed */
    uint64_t available;  /* bytes that could be had; UINT64_MAX: not known */
    char where[512];     /* the file or limit that says so; may be empty */
};

/* --- reservation: a sparse range of memory, or of a file, and a map of what is present -------------------------------- */

/* All zero but `size` is private anonymous memory. */
struct reservation_config {
    uint64_t size; /* rounded up to pages */
    /* AUTO: 2 MiB THP, or what mTHP size is enabled, where allowed; else 4 KiB. THP and HUGETLB: of page_bytes, or -ENOTSUP
     * where there are none. A hugetlbfs file has the pages it has. */
    enum arena_pages pages;
    uint64_t page_bytes; /* THP: 0 is 2 MiB. AUTO: the most; 0 is 2 MiB */
    enum arena_backing backing;
    /* ARENA_BACKING_PATH: a directory (an unnamed file in it), a file, or none yet (made, and kept). */
    const char *path;
    int fd; /* ARENA_BACKING_FD: anything that mmap takes; duplicated */
    bool shared, readonly;
    bool bind; /* to NUMA node `node` */
    unsigned node;
    enum arena_fork fork;
    bool dump; /* in core dumps */
    bool lock; /* what is committed is mlocked, and unlocked when it is released; hugetlb pages need none */
    /* Bytes to leave to the rest of the program, and of the machine or cgroup. Unless headroom_given: 16 MiB, 256 KiB for
     * each thread, and what others were seen to take in the last second or so (up to 64 MiB), but no more than an eighth of
     * the limit. */
    uint64_t headroom;
    bool headroom_given;
    const char *name; /* for /proc/self/maps; may be NULL */
    const void *features; /* struct os_features, which stays where it is; NULL: this kernel's */
    uint64_t align; /* of the address: a power of two. Less than 2 MiB, or a page, is taken for that */
};

struct reservation_stats {
    uint64_t size, page_size, committed, peak_committed, commits, releases, commit_ns, release_ns;
    uintptr_t address;
    const char *backing; /* "anonymous", "memfd", "tmpfs", "hugetlbfs", "file", "device" */
    bool lazy; /* PROT_NONE until committed: overcommit mode 2, RLIMIT_DATA */
    bool dropped; /* this is the child of a fork and the memory was not inherited */
    bool closed;
    bool shared, readonly;
};

int reservation_create(const struct reservation_config *config, reservation **out, struct arena_error *error);
/* Unmaps it; afterwards all that is asked of it is -ESHUTDOWN. -EBUSY while a commit or release is under way or somebody
 * looks at what is committed. Closing twice is fine. */
int reservation_close(reservation *r);
/* The same, and frees `r`, which nobody may use any more. */
int reservation_destroy(reservation *r);
void reservation_get(reservation *r, struct reservation_stats *out);
/* Its file, which stays its own; -1: there is none. Others may use it from now on. */
int reservation_fd(reservation *r);

/* Makes [offset, offset + bytes), rounded outward to pages, present: for writing, or for reading only. Bytes that this
 * call made present go to *newly. threads 0: as many as pay. When it fails, what it had made present is released again.
 * -ENOMEM: no memory. -ENOSPC: nothing left in the file system or hugetlb pool. -EFAULT: beyond the end of the file, or
 * nothing behind the page. -EHWPOISON. -EACCES: for writing, of a read-only reservation. -ENOMEM,
 * -EPERM of op "mlock": RLIMIT_MEMLOCK. -EOPNOTSUPP: holes in a file
 * system that cannot allocate. -EDEADLK: called from the progress call of a commit of the same range, or of one whose
 * caller's progress call waits for this thread's. What progress returned. -EINVAL: not in the reservation. -ENOTCONN:
 * dropped at fork.
 * -ESHUTDOWN: closed. */
int reservation_commit(reservation *r, uint64_t offset, uint64_t bytes, bool write, unsigned threads,
                       arena_progress progress, void *arg, uint64_t *newly, struct arena_error *error);
/* Gives [offset, offset + bytes), rounded inward to pages, back; the bytes of committed pages that the machine got by that
 * go to *freed. A file that was there before keeps what it has, and of it only a private mapping's copies are given back;
 * but for `discard`: then all of the range, committed or not, is punched out of it. When it fails, what was given back until
 * then is not committed any more. */
int reservation_release(reservation *r, uint64_t offset, uint64_t bytes, bool discard, uint64_t *freed,
                        arena_progress progress, void *arg, struct arena_error *error);
/* Is all of it committed (for writing)? */
bool reservation_is_committed(reservation *r, uint64_t offset, uint64_t bytes, bool write);

/* Is what is committed of the range still there? Populates it again for writing, or says why not. A diagnosis: the next
 * moment may be different. */
int reservation_verify(reservation *r, uint64_t offset, uint64_t bytes, arena_progress progress, void *arg,
                       struct arena_error *error);
/* Copies out of or into the range through the kernel (pread and pwrite for shared files, else process_vm_readv and
 * process_vm_writev): an error where a load or store would be a signal. -ENODATA: not all of it is committed (for writing,
 * to copy into it; a shared file may be read anywhere). -EFAULT: beyond the end of the file; or, of a file in memory, what
 * is committed here and was punched out by somebody. -EINVAL: not in the reservation. -EBUSY: it is being released.
 * -EPERM: seccomp forbids it, as containers may. */
int reservation_copy(reservation *r, uint64_t offset, void *buffer, uint64_t bytes, bool into_reservation);

/* --- arena: blocks in a reservation ------------------------------------------------------------------------------------ */

struct arena_config {
    struct reservation_config reservation;
    /* The unit of commit and release: a power of two from 4 KiB to 1 GiB; 0: 2 MiB, less for a small arena. */
    uint64_t chunk;
    bool read_only_populate; /* commit for reading: the zero page until written */
    uint64_t retain; /* free committed bytes to keep; UINT64_MAX: all, until arena_trim */
    uint64_t decay_ns; /* what was free beyond `retain` for so long is released at the next free; 0: at once */
    uint64_t (*now_ns)(void *arg); /* the clock for decay; NULL: CLOCK_MONOTONIC */
    void *now_arg;
};

struct arena_block {
    uint64_t handle; /* names the block until it is freed, and nothing afterwards */
    uint64_t offset; /* in the arena */
    uint64_t bytes; /* rounded up to 64 */
    void *address;
    uint64_t dirty; /* from the start: bytes that may have been used before; what follows is zero */
};

struct arena_stats {
    uint64_t reserved, committed, live, free_committed, blocks, peak_committed, peak_live, commits, releases;
    uint64_t commit_ns, release_ns, largest_free, free;
    uint64_t overflows; /* what its heaps (malloc_adapter.h) took from malloc instead */
};

enum { ARENA_ZERO = 1, ARENA_NO_GROW = 2 };

int arena_create(const struct arena_config *config, arena **out, struct arena_error *error);

/* No new blocks from now on. Free memory goes back at once, that of blocks when they are freed, and the mapping with the last of
 * them. -EBUSY, and nothing happens, while a commit or release is under way. `strict`: -ENOTEMPTY, likewise, while there are
 * blocks. */
int arena_close(arena *a, bool strict);
bool arena_is_closed(const arena *a);
/* Frees everything, blocks or not. -EBUSY as arena_close. */
int arena_destroy(arena *a);

/* From committed memory only, with index work only: no system call, no fault. -ENOSPC or -EAGAIN: arena_alloc may do it.
 * -EINVAL: bytes is 0, or align no power of two up to the chunk. -ESHUTDOWN: closed. -ENOTCONN: dropped at fork. */
int arena_alloc_committed(arena *a, uint64_t bytes, uint64_t align, struct arena_block *out);
/* Commits what is missing; with ARENA_NO_GROW nothing is missing, and no system call is made. -ENOSPC: no free range that
 * large (error->available: the largest); with ARENA_NO_GROW and error->op "index" no bookkeeping for a block more, see
 * arena_warm. -ECANCELED: a fork's child lost the block to the fork. Else as arena_alloc_committed and reservation_commit, and
 * the range is free again. */
int arena_alloc(arena *a, uint64_t bytes, uint64_t align, unsigned flags, arena_progress progress, void *arg,
                struct arena_block *out, struct arena_error *error);

/* -EINVAL: no live block has this handle (freed before, or not of this arena). *due: arena_purge has something to give back:
 * free memory beyond what is to be retained, or the mapping of a closed arena. arena_free does both. */
int arena_free_deferred(arena *a, uint64_t handle, bool *due);
int arena_purge(arena *a);
int arena_free(arena *a, uint64_t handle);
/* In place, or -ENOSPC. -ECANCELED: freed meanwhile. Else as arena_alloc, and the block is as it was. */
int arena_resize(arena *a, uint64_t handle, uint64_t bytes, arena_progress progress, void *arg, struct arena_block *out,
                 struct arena_error *error);
/* The block that begins at this address, in O(1). -ENOENT. */
int arena_find(arena *a, const void *address, struct arena_block *out);

/* Has so much free memory committed in one piece, with the bookkeeping that `blocks` blocks in it need, of any sizes and in
 * whichever order they come and go; 0: blocks of 4 KiB. It is kept, whatever `retain` says, until arena_trim. After a fork it
 * also populates again what became copy-on-write. */
int arena_warm(arena *a, uint64_t bytes, uint64_t blocks, unsigned threads, arena_progress progress, void *arg,
               struct arena_error *error);
/* Releases free committed chunks until at most `keep` bytes and a chunk of free memory are left; bytes to *freed. */
int arena_trim(arena *a, uint64_t keep, uint64_t *freed, struct arena_error *error);
/* Every block is freed; handles are stale. The caller sees to it that nobody uses them. -EBUSY: one is being committed, or
 * some are a heap's (malloc_adapter.h). */
int arena_reset(arena *a);

void arena_get(arena *a, struct arena_stats *out);
/* Up to max (at least 64) blocks in address order from *cursor (0 at first) on; *cursor is UINT64_MAX at the end. */
size_t arena_blocks(arena *a, uint64_t *cursor, struct arena_block *out, size_t max);
void *arena_address(arena *a);
uint64_t arena_chunk(arena *a);
reservation *arena_reservation(arena *a);

/* Clears memory; large pieces with stores that pass by the cache. */
void arena_zero(void *address, uint64_t bytes);

/* The functions for other extension modules:
 *     const struct arena_api *api = PyCapsule_Import("arena._core._C_API", 0);
 * `version` is 1; later versions only add at the end. `of` gives the arena of a Python arena.Arena (borrowed; NULL and a
 * Python error otherwise). */
struct arena_api {
    uint32_t version;
    arena *(*of)(void *py_arena);
    int (*alloc)(arena *, uint64_t bytes, uint64_t align, unsigned flags, arena_progress, void *arg,
                 struct arena_block *, struct arena_error *);
    int (*alloc_committed)(arena *, uint64_t bytes, uint64_t align, struct arena_block *);
    int (*free)(arena *, uint64_t handle);
    int (*resize)(arena *, uint64_t handle, uint64_t bytes, arena_progress, void *arg, struct arena_block *,
                  struct arena_error *);
    int (*find)(arena *, const void *address, struct arena_block *);
};

#ifdef __cplusplus
}
#endif
#endif
