#define _GNU_SOURCE
#include "sys/probe.h"

#include <errno.h>
#include <linux/perf_event.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sys/files.h"
#include "sys/mutex.h"
#include "sys/page.h"

/* Values of the kernel's ABI that older headers lack. */
#define ADVICE_GUARD_INSTALL 102
#ifndef PR_GET_THP_DISABLE
#define PR_GET_THP_DISABLE 42
#endif
#ifndef SYS_memfd_secret
#define SYS_memfd_secret 447
#endif

static int answer(long rc) { return rc < 0 ? -errno : 0; }

/* A system call that gives a descriptor. */
static int descriptor(long fd) {
    if (fd < 0) return -errno;
    close((int)fd);
    return 0;
}

static int count_faults(void) {
    struct perf_event_attr attr = {.type = PERF_TYPE_SOFTWARE,
                                   .size = sizeof attr,
                                   .config = PERF_COUNT_SW_PAGE_FAULTS,
                                   .disabled = 1,
                                   .exclude_kernel = 1,
                                   .exclude_hv = 1};
    return descriptor(syscall(SYS_perf_event_open, &attr, 0, -1, -1, PERF_FLAG_FD_CLOEXEC));
}

/* No call says which flags mlockall was given, but a mapping made now has them: MADV_DONTNEED refuses locked memory, and
 * only with MCL_ONFAULT is a page of it absent. */
static int lock_future(void *page) {
    unsigned char present = 0;
    (void)mincore(page, OS_PAGE, &present);
    if (madvise(page, OS_PAGE, MADV_DONTNEED) == 0) return OS_LOCK_FUTURE_OFF;
    if (errno != EINVAL) return -errno;
    return present & 1 ? OS_LOCK_FUTURE_ON : OS_LOCK_FUTURE_ON_FAULT;
}

void os_probe(struct os_probe *out) {
    mutex_check_none();
    int memfd = -1, rc = os_memfd("arena", 0, &memfd);
    if (rc == 0) os_close_file(memfd);
    *out = (struct os_probe){.memfd = rc,
                             .memfd_secret = descriptor(syscall(SYS_memfd_secret, 02000000 /* O_CLOEXEC */)),
                             .perf_event_open = count_faults()};
    int thp = prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0);
    out->thp_disabled = thp < 0 ? -errno : thp;
    void *page = mmap(NULL, OS_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) {
        rc = -errno;
        out->guard = out->mlock = out->mbind = rc;
        out->lock_future = rc == -EAGAIN ? OS_LOCK_FUTURE_FULL : rc;
        return;
    }
    out->lock_future = lock_future(page);
    out->mbind = answer(syscall(SYS_mbind, page, OS_PAGE, 0 /* MPOL_DEFAULT */, NULL, 0, 0));
    out->mlock = answer(mlock(page, OS_PAGE));
    (void)munlock(page, OS_PAGE); /* guard pages are not for locked memory */
    out->guard = answer(madvise(page, OS_PAGE, ADVICE_GUARD_INSTALL));
    munmap(page, OS_PAGE);
}
