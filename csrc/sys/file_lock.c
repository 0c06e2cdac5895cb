#define _GNU_SOURCE
#include "sys/file_lock.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "sys/mutex.h"
#include "sys/proc.h"

static int set_lock(int fd, short type, uint64_t offset, uint64_t bytes) {
    struct flock range = {.l_type = type, .l_whence = SEEK_SET, .l_start = (off_t)offset, .l_len = (off_t)bytes};
    return fcntl(fd, F_OFD_SETLK, &range) < 0 ? -errno : 0;
}

int os_file_lock(int fd, uint64_t offset, uint64_t bytes) {
    mutex_check_none();
    int rc = set_lock(fd, F_WRLCK, offset, bytes);
    switch (rc) {
        case -EINTR: return -EAGAIN;
        case -EINVAL:
        case -ENOSYS:
        case -EOPNOTSUPP: return -ENOLCK;
        case -EAGAIN:
        case -EACCES: break; /* held; but EACCES is a security module's refusal too */
        default: return rc;
    }
    struct flock who = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = (off_t)offset, .l_len = (off_t)bytes};
    if (fcntl(fd, F_OFD_GETLK, &who) < 0 || who.l_type == F_UNLCK) return rc;
    return who.l_pid == -1 ? -EBUSY : -ENOLCK;
}

int os_file_unlock(int fd, uint64_t offset, uint64_t bytes) {
    mutex_check_none();
    int rc = -EINTR;
    for (int tries = 0; rc && tries < 8; tries++) rc = set_lock(fd, F_UNLCK, offset, bytes);
    return rc;
}

/* A line of /proc/PID/fdinfo/FD: "lock:	1: OFDLCK  ADVISORY  WRITE -1 00:2a:1234 0 4095", device numbers in hexadecimal. */
struct lock_search {
    uint64_t device, inode, offset, end;
    bool found;
};

static bool lock_line(void *arg, char *line) {
    struct lock_search *s = arg;
    unsigned high, low;
    unsigned long long inode, start, last = UINT64_MAX;
    char until[32];
    if (sscanf(line, "lock: %*s OFDLCK %*s %*s %*s %x:%x:%llu %llu %31s", &high, &low, &inode, &start, until) != 5)
        return true;
    if (strcmp(until, "EOF") != 0) last = strtoull(until, NULL, 10);
    s->found = makedev(high, low) == s->device && inode == s->inode && start < s->end && last >= s->offset;
    return !s->found;
}

int os_file_lock_holder(int fd, uint64_t offset, uint64_t bytes) {
    mutex_check_none();
    struct stat st;
    int holder = 0;
    DIR *processes = fstat(fd, &st) < 0 ? NULL : opendir("/proc");
    if (!processes) return 0;
    struct lock_search s = {.device = st.st_dev, .inode = st.st_ino, .offset = offset, .end = offset + bytes};
    for (struct dirent *process; !s.found && (process = readdir(processes)) != NULL;) {
        char path[600];
        int pid = atoi(process->d_name);
        snprintf(path, sizeof path, "/proc/%d/fdinfo", pid);
        DIR *files = pid > 0 ? opendir(path) : NULL;
        for (struct dirent *file; files && !s.found && (file = readdir(files)) != NULL;) {
            snprintf(path, sizeof path, "/proc/%d/fdinfo/%.255s", pid, file->d_name);
            (void)os_each_line(path, lock_line, &s);
            if (s.found) holder = pid;
        }
        if (files) closedir(files);
    }
    closedir(processes);
    return holder;
}
