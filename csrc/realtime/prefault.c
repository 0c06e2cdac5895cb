#define _GNU_SOURCE
#include "realtime/prefault.h"

#include <alloca.h>
#include <errno.h>
#include <link.h>
#include <malloc.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SPARE ((size_t)64 << 10)
/* vm.stack_guard_gap: so near to the mapping below it, the main thread's stack does not grow. */
#define GUARD_GAP ((size_t)1 << 20)

/* The linker's name for the beginning of the library that this is a part of. By dl_iterate_phdr(3) it could be found too, but
 * that takes the loader's lock, which in the child of a fork may be held by a thread that is not there. */
extern const ElfW(Ehdr) __ehdr_start __attribute__((weak, visibility("hidden")));

void prefault_code(void) {
    const char *library = (const char *)&__ehdr_start;
    if (!library) return;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const ElfW(Phdr) *part = (const ElfW(Phdr) *)(library + __ehdr_start.e_phoff);
    for (const ElfW(Phdr) *end = part + __ehdr_start.e_phnum; part < end; part++) {
        /* What can be written was, when the library was loaded. */
        if (part->p_type != PT_LOAD || !(part->p_flags & PF_R) || part->p_flags & PF_W || !part->p_memsz) continue;
        const volatile char *start = library + part->p_vaddr;
        for (size_t at = 0; at < part->p_memsz; at += page) (void)start[at];
        (void)start[part->p_memsz - 1];
    }
}

long prefault_stack_left(void) {
    pthread_attr_t attr;
    void *low;
    size_t bytes, guard;
    int rc = pthread_getattr_np(pthread_self(), &attr);
    if (rc) return -rc;
    rc = pthread_attr_getstack(&attr, &low, &bytes);
    if (rc == 0) rc = pthread_attr_getguardsize(&attr, &guard);
    pthread_attr_destroy(&attr);
    if (rc) return -rc;
    struct rlimit limit;
    bool bounded_by_a_mapping = getpid() == (pid_t)syscall(SYS_gettid) && getrlimit(RLIMIT_STACK, &limit) == 0 &&
                                (limit.rlim_cur == RLIM_INFINITY || bytes + GUARD_GAP < limit.rlim_cur);
    size_t out = guard + SPARE + (bounded_by_a_mapping ? GUARD_GAP : 0);
    size_t left = (size_t)((char *)__builtin_frame_address(0) - (char *)low);
    return left > out ? (long)(left - out) : 0;
}

__attribute__((noinline)) void prefault_stack(size_t bytes) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    /* The stack pointer goes down first: kernels before 4.20 take a touch far below it for a mistake. */
    volatile char *low = alloca(bytes);
    for (size_t i = bytes; i > 0; i -= i < page ? i : page) low[i - 1] = 0;
    low[0] = 0;
}

bool prefault_keep_heap(bool keep, size_t bytes) {
#ifdef __GLIBC__
    /* glibc's own: DEFAULT_MMAP_MAX, DEFAULT_TRIM_THRESHOLD, DEFAULT_TOP_PAD. Without M_MMAP_MAX of 0, a block above the
     * threshold (at most 32 MiB) is mapped anew each time. M_TOP_PAD keeps the heaps of threads' arenas. */
    int pad = !keep ? 128 << 10 : bytes < ((size_t)1 << 30) ? (int)bytes : 1 << 30;
    return mallopt(M_MMAP_MAX, keep ? 0 : 65536) & mallopt(M_TRIM_THRESHOLD, keep ? -1 : 128 << 10) &
           mallopt(M_TOP_PAD, pad);
#else
    (void)keep;
    (void)bytes;
    return false;
#endif
}

int prefault_heap(size_t bytes) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    volatile char *at = malloc(bytes);
    if (!at) return -ENOMEM;
    for (size_t i = 0; i < bytes; i += page) at[i] = 0;
    at[bytes - 1] = 0;
    free((void *)at);
    return 0;
}

void prefault_trim_heap(void) {
#ifdef __GLIBC__
    malloc_trim(0);
#endif
}
