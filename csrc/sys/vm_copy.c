#define _GNU_SOURCE
#include "sys/vm_copy.h"

#include <errno.h>
#include <sys/uio.h>
#include <unistd.h>

#include "sys/mutex.h"

int os_vm_copy(void *memory, void *buffer, size_t bytes, bool into_memory) {
    mutex_check_none();
    char *at = memory, *local = buffer;
    while (bytes) {
        struct iovec here = {.iov_base = local, .iov_len = bytes}, there = {.iov_base = at, .iov_len = bytes};
        ssize_t n = into_memory ? process_vm_writev(getpid(), &here, 1, &there, 1, 0)
                                : process_vm_readv(getpid(), &here, 1, &there, 1, 0);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return n < 0 ? -errno : -EFAULT;
        at += n;
        local += n;
        bytes -= (size_t)n;
    }
    return 0;
}
