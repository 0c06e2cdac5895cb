#define _GNU_SOURCE
#include "sys/held.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sys/mutex.h"

static bool is_ours(const struct os_held *h) {
    struct stat st;
    if (h->fd < 0) return false;
    /* Closed by somebody it is EBADF; another error says nothing, and what is not closed may not be forgotten. */
    if (fstat(h->fd, &st) < 0) return errno != EBADF;
    return st.st_dev == h->device && st.st_ino == h->inode;
}

int os_held_open(struct os_held *h, const char *path, bool folder) {
    mutex_check_none();
    if (is_ours(h)) return 0;
    struct stat st;
    h->fd = -1;
    int fd = open(path, O_RDONLY | O_CLOEXEC | (folder ? O_DIRECTORY : O_NOCTTY));
    if (fd < 0) return -errno;
    if (fstat(fd, &st) < 0) {
        int err = errno;
        close(fd);
        return -err;
    }
    h->device = st.st_dev;
    h->inode = st.st_ino;
    h->fd = fd; /* last: a fork may come in between, and its child goes by the descriptor */
    return 0;
}

static int read_whole(int fd, char *buf, size_t size) {
    size_t got = 0;
    while (got < size - 1) {
        ssize_t n = pread(fd, buf + got, size - 1 - got, (off_t)got);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return -errno;
        if (n == 0) break;
        got += (size_t)n;
    }
    buf[got] = 0;
    return (int)got;
}

int os_held_read(struct os_held *h, const char *path, char *buf, size_t size) {
    mutex_check_none();
    for (int tries = 0;; tries++) {
        int rc = os_held_open(h, path, false);
        if (rc) return rc;
        rc = read_whole(h->fd, buf, size);
        /* ENODEV: the cgroup it belonged to is gone, and there may be another of the name; ESRCH: so is the process. */
        if (tries || (rc != -ENODEV && rc != -ESRCH && rc != -EBADF)) return rc;
        os_held_close(h);
    }
}

void os_held_close(struct os_held *h) {
    mutex_check_none();
    if (is_ours(h)) close(h->fd);
    h->fd = -1;
}

int os_held_lock(struct os_held *h) {
    mutex_check_none();
    if (!is_ours(h)) return -EBADF;
    while (flock(h->fd, LOCK_EX | LOCK_NB) < 0) {
        if (errno != EINTR) return -errno;
    }
    return 0;
}

void os_held_unlock(struct os_held *h) {
    mutex_check_none();
    if (is_ours(h)) (void)flock(h->fd, LOCK_UN);
}
