#define _GNU_SOURCE
#include "sys/advice.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sys/mutex.h"

/* Values of the kernel's ABI that older libc headers lack. */
#define ADVICE_DONTNEED_LOCKED 24
#ifndef PR_SET_VMA
#define PR_SET_VMA 0x53564d41
#define PR_SET_VMA_ANON_NAME 0
#endif

#define ADVISE_TRIES 1000

int os_madvise(void *addr, size_t bytes, int advice) {
    mutex_check_none();
    for (int tries = 0; madvise(addr, bytes, advice) < 0;) {
        if (errno == EAGAIN && ++tries == ADVISE_TRIES) return -ENOMEM;
        if (errno != EAGAIN && errno != EINTR) return -errno;
    }
    return 0;
}

int os_dontneed(void *addr, size_t bytes) { return os_madvise(addr, bytes, MADV_DONTNEED); }

int os_dontneed_locked(void *addr, size_t bytes) { return os_madvise(addr, bytes, ADVICE_DONTNEED_LOCKED); }

int os_madvise_remove(void *addr, size_t bytes) { return os_madvise(addr, bytes, MADV_REMOVE); }

int os_bind(void *addr, size_t bytes, int node) {
    mutex_check_none();
    unsigned long mask[16] = {0};
    if (node < 0 || (size_t)node >= sizeof mask * 8) return -EINVAL;
    mask[(size_t)node / (8 * sizeof *mask)] = 1ul << ((size_t)node % (8 * sizeof *mask));
    const int bind = 2; /* MPOL_BIND, of linux/mempolicy.h */
    return syscall(SYS_mbind, addr, bytes, bind, mask, sizeof mask * 8, 0) < 0 ? -errno : 0;
}

int os_advise_huge(void *addr, size_t bytes, bool huge) {
    return os_madvise(addr, bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
}

int os_advise_dump(void *addr, size_t bytes, bool dump) {
    return os_madvise(addr, bytes, dump ? MADV_DODUMP : MADV_DONTDUMP);
}

int os_advise_fork(void *addr, size_t bytes, enum os_fork fork) {
    mutex_check_none();
    if (fork == OS_FORK_COPY || fork == OS_FORK_SHARE) return 0;
    return os_madvise(addr, bytes, fork == OS_FORK_DROP ? MADV_DONTFORK : MADV_WIPEONFORK);
}

int os_set_name(void *addr, size_t bytes, const char *name) {
    mutex_check_none();
    return prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, (unsigned long)addr, bytes, name) < 0 ? -errno : 0;
}

void os_name(const struct os_features *f, void *addr, size_t bytes, const char *name) {
    mutex_check_none();
    if (f->vma_names) (void)os_set_name(addr, bytes, name);
}
