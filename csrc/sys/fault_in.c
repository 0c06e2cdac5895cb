#define _GNU_SOURCE
#include "sys/fault_in.h"

#include <errno.h>
#include <linux/futex.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "sys/advice.h"
#include "sys/mutex.h"

/* Values of the kernel's ABI that older libc headers lack. */
#define ADVICE_POPULATE_READ 22
#define ADVICE_POPULATE_WRITE 23

int os_populate(void *addr, size_t bytes, bool write) {
    return os_madvise(addr, bytes, write ? ADVICE_POPULATE_WRITE : ADVICE_POPULATE_READ);
}

__attribute__((no_sanitize("thread"))) /* it changes nothing, whoever writes there meanwhile */
void os_touch(void *addr, size_t bytes, size_t page, bool write) {
    mutex_check_none();
    for (char *at = (char *)addr + page - 1, *end = (char *)addr + bytes; at < end; at += page) {
        if (write)
            __atomic_fetch_or(at, 0, __ATOMIC_RELAXED);
        else
            (void)__atomic_load_n(at, __ATOMIC_RELAXED);
    }
}

#define TOUCH_TRIES 10000

int os_touch_carefully(void *addr, size_t bytes, size_t page, bool write) {
    mutex_check_none();
    static const struct timespec at_once;
    static uint32_t nobody;
    for (char *at = addr, *end = at + bytes; at < end; at += page) {
        long rc;
        int tries = 0;
        do {
            rc = write ? syscall(SYS_futex, &nobody, FUTEX_WAKE_OP | FUTEX_PRIVATE_FLAG, 0, 0, at,
                                 FUTEX_OP(FUTEX_OP_OR, 0, FUTEX_OP_CMP_EQ, 0))
                       : syscall(SYS_futex, at, FUTEX_WAIT | FUTEX_PRIVATE_FLAG, 1, &at_once, NULL, 0);
            /* FUTEX_WAKE_OP says EAGAIN when it has not done it, FUTEX_WAIT when it has seen another value than 1. */
        } while (rc < 0 && (errno == EINTR || (write && errno == EAGAIN)) && ++tries < TOUCH_TRIES);
        if (rc < 0 && (write || (errno != EAGAIN && errno != ETIMEDOUT))) return -errno;
    }
    return 0;
}
