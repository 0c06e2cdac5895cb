#define _GNU_SOURCE
#include "sys/mlock.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sys/mutex.h"
#include "sys/proc.h"

int os_mlock(void *addr, size_t bytes) {
    mutex_check_none();
    const int on_fault = 1; /* MLOCK_ONFAULT, of linux/mman.h */
    return syscall(SYS_mlock2, addr, bytes, on_fault) < 0 ? -errno : 0;
}

int os_munlock(void *addr, size_t bytes) {
    mutex_check_none();
    return munlock(addr, bytes) < 0 ? -errno : 0;
}

void os_mlock_whole(void *addr, size_t bytes) {
    mutex_check_none();
    (void)mlock(addr, bytes);
}

int os_mlock_future(bool on_fault) {
    mutex_check_none();
    const int when_present = 4; /* MCL_ONFAULT */
    return mlockall(MCL_FUTURE | (on_fault ? when_present : 0)) < 0 ? -errno : 0;
}

int os_munlock_all(void) {
    mutex_check_none();
    return munlockall() < 0 ? -errno : 0;
}

#define CAP_IPC_LOCK_BIT 14 /* CAP_IPC_LOCK, of linux/capability.h */

static bool locked_line(void *arg, char *text) {
    uint64_t *found = arg;
    if (strncmp(text, "VmLck:", 6) == 0) found[0] = strtoull(text + 6, NULL, 10) << 10;
    if (strncmp(text, "CapEff:", 7) == 0) found[1] = strtoull(text + 7, NULL, 16) >> CAP_IPC_LOCK_BIT & 1;
    return true;
}

void os_mlock_limit(uint64_t *limit, uint64_t *locked) {
    mutex_check_none();
    struct rlimit r;
    uint64_t found[2] = {0, 0};
    (void)os_each_line("/proc/self/status", locked_line, found);
    *locked = found[0];
    *limit = found[1] || getrlimit(RLIMIT_MEMLOCK, &r) < 0 || r.rlim_cur == RLIM_INFINITY ? UINT64_MAX : r.rlim_cur;
}
