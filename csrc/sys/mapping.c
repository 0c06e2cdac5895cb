#define _GNU_SOURCE
#include "sys/mapping.h"

#include <errno.h>
#include <sys/mman.h>

#include "sys/mutex.h"

/* A value of the kernel's ABI that older libc headers lack. */
#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif
#define HUGE_SHIFT 26 /* of log2 of the page size in the flags of mmap */

const struct os_mapping os_anonymous = {.fd = -1};

static int flags_of(const struct os_mapping *what) {
    int flags = MAP_NORESERVE | (what->shared ? MAP_SHARED : MAP_PRIVATE) | (what->fd < 0 ? MAP_ANONYMOUS : 0);
    if (what->hugetlb) flags |= MAP_HUGETLB | (int)((unsigned)__builtin_ctzll(what->hugetlb) << HUGE_SHIFT);
    return flags;
}

static int prot_of(enum os_access access) {
    switch (access) {
        case OS_READ_WRITE: return PROT_READ | PROT_WRITE;
        case OS_READ: return PROT_READ;
        default: return PROT_NONE;
    }
}

/* --- map ---------------------------------------------------------------------------------------------------------- */

int os_map(const struct os_mapping *what, size_t bytes, enum os_access access, void **out) {
    mutex_check_none();
    void *at = mmap(NULL, bytes, prot_of(access), flags_of(what), what->fd, 0);
    if (at == MAP_FAILED) return -errno;
    *out = at;
    return 0;
}

/* MAP_FIXED unmaps what is there before it asks the file, whose refusal leaves a gap that another thread's mmap may get
 * meanwhile; so it is only for what is ours and no file's. */
static int map_fixed(const struct os_mapping *what, void *addr, size_t bytes, uint64_t offset, int prot) {
    void *at = mmap(addr, bytes, prot, flags_of(what) | MAP_FIXED, what->fd, (off_t)offset);
    return at == MAP_FAILED ? -errno : 0;
}

static int map_exactly(const struct os_mapping *what, void *addr, size_t bytes, uint64_t offset, int prot) {
    void *at = mmap(addr, bytes, prot, flags_of(what) | MAP_FIXED_NOREPLACE, what->fd, (off_t)offset);
    if (at == MAP_FAILED) return -errno;
    if (at == addr) return 0;
    (void)os_unmap(at, bytes); /* kernels before 4.17 take the address as a hint */
    return -EEXIST;
}

int os_map_exactly(const struct os_mapping *what, void *addr, size_t bytes, enum os_access access) {
    mutex_check_none();
    return map_exactly(what, addr, bytes, 0, prot_of(access));
}

int os_grow(void **addr, size_t bytes, size_t larger, bool may_move) {
    mutex_check_none();
    void *grown = mremap(*addr, bytes, larger, may_move ? MREMAP_MAYMOVE : 0);
    if (grown == MAP_FAILED) return -errno;
    *addr = grown;
    return 0;
}

/* --- unmap -------------------------------------------------------------------------------------------------------- */

/* What munmap(2) refused, to be tried again with the next: at vm.max_map_count nothing is cut out of a mapping, and the
 * kernel merges neighbours. What does not fit here stays mapped. */
static struct leftover {
    void *addr; /* atomic: NULL, or LEFTOVER_BUSY while a thread has to do with it */
    size_t bytes;
} leftovers[32];
static bool any_leftover; /* atomic */
#define LEFTOVER_BUSY ((void *)1)

static bool take_leftover(struct leftover *l, void *now) {
    return __atomic_compare_exchange_n(&l->addr, &now, LEFTOVER_BUSY, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
}

static void unmap_leftovers(void) {
    bool some = false;
    __atomic_store_n(&any_leftover, false, __ATOMIC_RELAXED);
    for (struct leftover *l = leftovers, *end = l + sizeof leftovers / sizeof *l; l < end; l++) {
        void *addr = __atomic_load_n(&l->addr, __ATOMIC_RELAXED);
        if (!addr || addr == LEFTOVER_BUSY || !take_leftover(l, addr)) continue;
        if (munmap(addr, l->bytes) == 0) addr = NULL;
        some = some || addr;
        __atomic_store_n(&l->addr, addr, __ATOMIC_RELEASE);
    }
    if (some) __atomic_store_n(&any_leftover, true, __ATOMIC_RELAXED);
}

int os_cut_off(void *addr, size_t bytes) {
    mutex_check_none();
    int rc = munmap(addr, bytes) < 0 ? -errno : 0;
    if (rc == -ENOMEM && munmap(addr, bytes) == 0) rc = 0; /* the kernel may have lacked memory for a moment only */
    return rc;
}

int os_unmap(void *addr, size_t bytes) {
    int rc = os_cut_off(addr, bytes);
    if (__atomic_load_n(&any_leftover, __ATOMIC_RELAXED)) unmap_leftovers();
    if (rc == 0) return 0;
    (void)munlock(addr, bytes); /* locked memory cannot be dropped on every kernel */
    (void)madvise(addr, bytes, MADV_DONTNEED);
    for (struct leftover *l = leftovers, *end = l + sizeof leftovers / sizeof *l; l < end; l++) {
        if (__atomic_load_n(&l->addr, __ATOMIC_RELAXED) || !take_leftover(l, NULL)) continue;
        l->bytes = bytes;
        __atomic_store_n(&l->addr, addr, __ATOMIC_RELEASE);
        __atomic_store_n(&any_leftover, true, __ATOMIC_RELAXED);
        break;
    }
    return rc;
}

/* --- access, and mapped anew -------------------------------------------------------------------------------------- */

static int protect(void *addr, size_t bytes, enum os_access access) {
    return mprotect(addr, bytes, prot_of(access)) < 0 ? -errno : 0;
}

int os_make_accessible(void *addr, size_t bytes) {
    mutex_check_none();
    return protect(addr, bytes, OS_READ_WRITE);
}

int os_make_readable(void *addr, size_t bytes) {
    mutex_check_none();
    return protect(addr, bytes, OS_READ);
}

/* A file's mapping is made elsewhere, where it may be refused without harm, and then moved. */
static int map_over(const struct os_mapping *what, void *addr, size_t bytes, uint64_t offset) {
    void *fresh = mmap(NULL, bytes, PROT_NONE, flags_of(what), what->fd, (off_t)offset);
    if (fresh == MAP_FAILED) return -errno;
    if (mremap(fresh, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, addr) == addr) return 0;
    int rc = -errno;
    (void)os_unmap(fresh, bytes);
    /* Before Linux 5.16 mappings of hugetlb pages do not move. */
    return rc == -EINVAL ? map_fixed(what, addr, bytes, offset, PROT_NONE) : rc;
}

int os_decommit_lazy(const struct os_mapping *what, void *addr, size_t bytes, uint64_t offset) {
    mutex_check_none();
    offset = what->fd < 0 ? 0 : offset;
    int rc = what->fd < 0 ? map_fixed(what, addr, bytes, 0, PROT_NONE) : map_over(what, addr, bytes, offset);
    /* The range may have been unmapped before the kernel ran out of memory: then it must not become another's. */
    if (rc && map_exactly(what, addr, bytes, offset, PROT_NONE) == 0)
        rc = 0;
    else if (rc)
        (void)map_exactly(&os_anonymous, addr, bytes, 0, PROT_NONE);
    (void)munlock(addr, bytes); /* under mlockall(MCL_FUTURE) access would populate all of it */
    return rc;
}

int os_map_anew(const struct os_mapping *what, void *addr, size_t bytes, uint64_t offset) {
    int rc = os_decommit_lazy(what, addr, bytes, offset);
    if (rc == 0) (void)protect(addr, bytes, what->readonly ? OS_READ : OS_READ_WRITE);
    return rc;
}

int os_flush(void *addr, size_t bytes) {
    mutex_check_none();
    return msync(addr, bytes, MS_SYNC) < 0 ? -errno : 0;
}
