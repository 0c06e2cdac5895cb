#define _GNU_SOURCE
#include "sys/files.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "sys/mutex.h"
#include "sys/page.h"

/* Values of the kernel's ABI that older libc headers lack. */
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif
#ifndef MFD_HUGETLB
#define MFD_HUGETLB 0x0004U
#endif
#define HUGE_SHIFT 26 /* of log2 of the page size in the flags of mmap and memfd_create */
#define TMPFS 0x01021994
#define HUGETLBFS 0x958458f6
#define RAMFS 0x858458f6
#define SECRETMEM 0x5345434d

int os_file_look(int fd, struct os_file *out) {
    mutex_check_none();
    struct stat st;
    struct statfs fs;
    if (fstat(fd, &st) < 0) return -errno;
    *out = (struct os_file){.type = OS_FILE_OTHER,
                            .size = (uint64_t)st.st_size,
                            .allocated = (uint64_t)st.st_blocks * 512,
                            .page = OS_PAGE,
                            .device = st.st_dev};
    if (!S_ISREG(st.st_mode)) return 0;
    out->type = OS_FILE_REGULAR;
    if (fstatfs(fd, &fs) < 0) return 0;
    unsigned long magic = (unsigned long)fs.f_type & 0xffffffff;
    if (magic == TMPFS || magic == RAMFS) out->type = OS_FILE_TMPFS;
    if (magic == SECRETMEM) out->type = OS_FILE_OTHER;
    if (magic == HUGETLBFS) {
        out->type = OS_FILE_HUGETLBFS;
        out->page = (uint64_t)fs.f_bsize;
    }
    return 0;
}

uint64_t os_file_room(int fd) {
    mutex_check_none();
    struct statfs fs;
    if (fstatfs(fd, &fs) < 0 || fs.f_blocks == 0 || fs.f_blocks == (fsblkcnt_t)-1) return UINT64_MAX;
    return (uint64_t)fs.f_bavail * (uint64_t)fs.f_bsize;
}

int os_memfd(const char *name, uint64_t huge, int *fd) {
    mutex_check_none();
    unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
    if (huge) flags |= MFD_HUGETLB | (unsigned)__builtin_ctzll(huge) << HUGE_SHIFT;
    *fd = memfd_create(name ? name : "arena", flags | MFD_NOEXEC_SEAL);
    if (*fd < 0 && errno == EINVAL) *fd = memfd_create(name ? name : "arena", flags); /* before 6.3 */
    return *fd < 0 ? -errno : 0;
}

int os_seal_size(int fd) {
    mutex_check_none();
    return fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) < 0 ? -errno : 0;
}

int os_open_unnamed(const char *dir, int *fd, char *temporary, size_t n) {
    mutex_check_none();
    char own[4096], *path = temporary ? temporary : own;
    if (temporary) temporary[0] = 0;
    *fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (*fd >= 0) return 0;
    /* A file system without O_TMPFILE, or a kernel to which it is O_DIRECTORY and more. */
    if (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL) return -errno;
    /* mkostemp wants a name that ends in six times this letter, and puts others in their place. */
    char letters[7] = "";
    memset(letters, 'X', sizeof letters - 1);
    size_t room = temporary ? n : sizeof own;
    if ((size_t)snprintf(path, room, "%s/.arena-%s", dir, letters) >= room) return -ENAMETOOLONG;
    *fd = mkostemp(path, O_CLOEXEC);
    if (*fd < 0) return -errno;
    if (!temporary) unlink(path);
    return 0;
}

int os_directory_of(const char *path, char *out, size_t n) {
    const char *slash = strrchr(path, '/');
    size_t length = slash == path ? 1 : slash ? (size_t)(slash - path) : 1;
    if (length >= n) return -ENAMETOOLONG;
    memcpy(out, slash ? path : ".", length);
    out[length] = 0;
    return 0;
}

int os_link(int fd, const char *temporary, const char *path) {
    mutex_check_none();
    char open_file[64];
    snprintf(open_file, sizeof open_file, "/proc/self/fd/%d", fd);
    int rc = linkat(AT_FDCWD, temporary[0] ? temporary : open_file, AT_FDCWD, path, AT_SYMLINK_FOLLOW) < 0 ? -errno : 0;
    if (rc == 0 && temporary[0]) unlink(temporary);
    return rc;
}

int os_open_file(const char *path, bool write, bool create, int *fd, bool *directory) {
    mutex_check_none();
    int flags = (write ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
    struct stat st;
    *directory = false;
    do {
        *fd = open(path, create ? flags | O_CREAT | O_EXCL : flags, 0600);
    } while (*fd < 0 && errno == EINTR);
    if (*fd < 0) {
        *directory = errno == EISDIR;
        return -errno;
    }
    if (fstat(*fd, &st) == 0) *directory = S_ISDIR(st.st_mode);
    return 0;
}

int os_dup(int fd, int *out) {
    mutex_check_none();
    *out = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    return *out < 0 ? -errno : 0;
}

int os_reopen(int fd, int *out) {
    mutex_check_none();
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    *out = open(path, O_RDWR | O_CLOEXEC);
    if (*out < 0) return -errno;
    /* /proc may be mounted over. Another file's locks would keep nobody out, and its holes are not this one's. */
    struct stat wanted, found;
    if (fstat(fd, &wanted) == 0 && fstat(*out, &found) == 0 && wanted.st_dev == found.st_dev &&
        wanted.st_ino == found.st_ino)
        return 0;
    close(*out);
    return -ESTALE;
}

int os_reopen_over(int fd, int other) {
    mutex_check_none();
    int fresh, rc = os_reopen(fd, &fresh);
    if (rc) return rc;
    if (dup3(fresh, other, O_CLOEXEC) < 0) rc = -errno;
    close(fresh);
    return rc;
}

void os_close_file(int fd) {
    mutex_check_none();
    if (fd >= 0) close(fd);
}

void os_unlink(const char *path, int fd) {
    mutex_check_none();
    struct stat named, open;
    if (lstat(path, &named) == 0 && fstat(fd, &open) == 0 && named.st_dev == open.st_dev && named.st_ino == open.st_ino)
        unlink(path);
}

/* The signal would come from the kernel, so the limit is asked for first. */
static bool too_long(uint64_t end) {
    struct rlimit limit;
    return end > INT64_MAX ||
           (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY && end > limit.rlim_cur);
}

int os_file_set_size(int fd, uint64_t bytes) {
    mutex_check_none();
    if (too_long(bytes)) return -EFBIG;
    while (ftruncate(fd, (off_t)bytes) < 0) {
        if (errno != EINTR) return -errno;
    }
    return 0;
}

int os_file_size(int fd, uint64_t *bytes) {
    mutex_check_none();
    struct stat st;
    if (fstat(fd, &st) < 0) return -errno;
    *bytes = (uint64_t)st.st_size;
    return 0;
}

static int allocate_undisturbed(int fd, int mode, uint64_t offset, uint64_t bytes) {
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int rc = fallocate(fd, mode, (off_t)offset, (off_t)bytes) < 0 ? -errno : 0;
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return rc;
}

/* Before Linux 6.11 tmpfs gives up at any signal, undoes what it has allocated and answers EINTR: under a timer that is
 * faster than the call, the same call again would never end. So the piece is halved until it is short, and a short one is
 * allocated with all signals blocked, which delays them by a millisecond. */
static int allocate_in_pieces(int fd, int mode, uint64_t offset, uint64_t bytes) {
    const uint64_t shortest = OS_HUGE;
    bool disturbed = false;
    for (uint64_t end = offset + bytes, piece = bytes; offset < end;) {
        if (piece > end - offset) piece = end - offset;
        int rc;
        if (disturbed && piece <= shortest)
            rc = allocate_undisturbed(fd, mode, offset, piece);
        else
            rc = fallocate(fd, mode, (off_t)offset, (off_t)piece) < 0 ? -errno : 0;
        if (rc == 0) {
            offset += piece;
        } else if (rc == -EINTR) {
            disturbed = true;
            if (piece > shortest) piece = (piece / 2 + shortest - 1) & ~(shortest - 1);
        } else {
            return rc;
        }
    }
    return 0;
}

int os_allocate(int fd, uint64_t offset, uint64_t bytes) {
    mutex_check_none();
    uint64_t size;
    int rc = allocate_in_pieces(fd, FALLOC_FL_KEEP_SIZE, offset, bytes);
    /* NFS knows no KEEP_SIZE; within the file it makes no difference. */
    if (rc == -EOPNOTSUPP && os_file_size(fd, &size) == 0 && offset + bytes <= size)
        rc = allocate_in_pieces(fd, 0, offset, bytes);
    return rc == -ENOSYS ? -EOPNOTSUPP : rc;
}

int os_punch(int fd, uint64_t offset, uint64_t bytes) {
    mutex_check_none();
    while (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)bytes) < 0) {
        if (errno != EINTR) return -errno;
    }
    return 0;
}

int os_next_data(int fd, uint64_t offset, bool data, uint64_t *at) {
    mutex_check_none();
    off_t found = lseek(fd, (off_t)offset, data ? SEEK_DATA : SEEK_HOLE);
    *at = found >= 0 ? (uint64_t)found : UINT64_MAX;
    return found >= 0 || errno == ENXIO ? 0 : -errno; /* ENXIO: no data from there on, or beyond the end */
}

int os_read_at(int fd, uint64_t offset, void *buffer, size_t bytes) {
    mutex_check_none();
    for (char *at = buffer; bytes;) {
        ssize_t n = pread(fd, at, bytes, (off_t)offset);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return n < 0 ? -errno : -EFAULT;
        at += n;
        offset += (uint64_t)n;
        bytes -= (size_t)n;
    }
    return 0;
}

int os_write_at(int fd, uint64_t offset, const void *buffer, size_t bytes) {
    mutex_check_none();
    if (too_long(offset + bytes)) return -EFBIG;
    for (const char *at = buffer; bytes;) {
        ssize_t n = pwrite(fd, at, bytes, (off_t)offset);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return n < 0 ? -errno : -EIO;
        at += n;
        offset += (uint64_t)n;
        bytes -= (size_t)n;
    }
    return 0;
}

/* In writes of 2 MiB: the page cache makes folios as large as the write. */
int os_write_zeros(int fd, uint64_t offset, uint64_t bytes) {
    mutex_check_none();
    static const char zeros[65536];
    struct iovec parts[OS_HUGE / sizeof zeros];
    if (too_long(offset + bytes)) return -EFBIG;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        parts[i] = (struct iovec){.iov_base = (void *)(uintptr_t)zeros, .iov_len = sizeof zeros};
    while (bytes) {
        size_t part = bytes < OS_HUGE ? (size_t)bytes : OS_HUGE, whole = part / sizeof zeros;
        size_t rest = part % sizeof zeros;
        if (whole == 0) parts[0].iov_len = rest;
        ssize_t n = pwritev(fd, parts, whole ? (int)whole : 1, (off_t)offset);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return n < 0 ? -errno : -EIO;
        offset += (uint64_t)n;
        bytes -= (uint64_t)n;
    }
    return 0;
}

bool os_appends(int fd) {
    mutex_check_none();
    return fcntl(fd, F_GETFL) & O_APPEND;
}
