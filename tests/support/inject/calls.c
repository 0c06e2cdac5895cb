/* The calls that can be made to fail, each in front of libc's own. For glibc: its malloc has a second name. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "inject.h"

#define NEXT(name)                                                                  \
    ({                                                                              \
        static __typeof__(&name) next_##name;                                       \
        if (!next_##name) next_##name = (__typeof__(&name))dlsym(RTLD_NEXT, #name); \
        next_##name;                                                                \
    })
#define CALLER __builtin_return_address(0)
#define FAILED_AS(as, variant, failed)                          \
    do {                                                        \
        int error_ = inject(as, (long)(variant), CALLER, NULL); \
        if (error_) {                                           \
            errno = error_;                                     \
            return failed;                                      \
        }                                                       \
    } while (0)

/* A function that gives `failed` and an errno. */
#define CALL(type, failed, name, as, parameters, variant, ...) \
    type name parameters {                                     \
        FAILED_AS(as, variant, failed);                        \
        return NEXT(name)(__VA_ARGS__);                        \
    }
#define INT(name, parameters, variant, ...) CALL(int, -1, name, #name, parameters, variant, __VA_ARGS__)
/* The same under the name that a program built with _FILE_OFFSET_BITS=64 uses. */
#define INT64(name, as, parameters, variant, ...) CALL(int, -1, name, as, parameters, variant, __VA_ARGS__)

/* Memory. */

#define MMAP_VARIANT ((flags & MAP_FIXED ? 1 : 0) | (fd >= 0 ? 2 : 0))
CALL(void *, MAP_FAILED, mmap, "mmap", (void *at, size_t n, int prot, int flags, int fd, off_t offset), MMAP_VARIANT,
     at, n, prot, flags, fd, offset)
CALL(void *, MAP_FAILED, mmap64, "mmap", (void *at, size_t n, int prot, int flags, int fd, off64_t offset),
     MMAP_VARIANT, at, n, prot, flags, fd, offset)
INT(munmap, (void *at, size_t n), 0, at, n)
INT(mprotect, (void *at, size_t n, int prot), prot, at, n, prot)
INT(madvise, (void *at, size_t n, int advice), advice, at, n, advice)
INT(mincore, (void *at, size_t n, unsigned char *there), 0, at, n, there)
INT(mlock, (const void *at, size_t n), 0, at, n)
INT(munlock, (const void *at, size_t n), 0, at, n)
INT(mlockall, (int flags), flags, flags)
INT(munlockall, (void), 0, )
INT(msync, (void *at, size_t n, int flags), flags, at, n, flags)

void *mremap(void *at, size_t n, size_t to, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    void *there = va_arg(rest, void *);
    va_end(rest);
    FAILED_AS("mremap", flags, MAP_FAILED);
    return NEXT(mremap)(at, n, to, flags, there);
}

/* Files. */

INT(memfd_create, (const char *name, unsigned flags), flags, name, flags)
INT(fallocate, (int fd, int mode, off_t at, off_t n), mode, fd, mode, at, n)
INT64(fallocate64, "fallocate", (int fd, int mode, off64_t at, off64_t n), mode, fd, mode, at, n)
INT(ftruncate, (int fd, off_t n), 0, fd, n)
INT64(ftruncate64, "ftruncate", (int fd, off64_t n), 0, fd, n)
INT(fstat, (int fd, struct stat *out), 0, fd, out)
INT64(fstat64, "fstat", (int fd, struct stat64 *out), 0, fd, out)
INT(stat, (const char *path, struct stat *out), 0, path, out)
INT64(stat64, "stat", (const char *path, struct stat64 *out), 0, path, out)
INT(lstat, (const char *path, struct stat *out), 0, path, out)
INT64(lstat64, "lstat", (const char *path, struct stat64 *out), 0, path, out)
INT(fstatfs, (int fd, struct statfs *out), 0, fd, out)
INT64(fstatfs64, "fstatfs", (int fd, struct statfs64 *out), 0, fd, out)
INT(fstatvfs, (int fd, struct statvfs *out), 0, fd, out)
INT64(fstatvfs64, "fstatvfs", (int fd, struct statvfs64 *out), 0, fd, out)
INT(unlink, (const char *path), 0, path)
INT(mkostemp, (char *path, int flags), 0, path, flags)
INT(unlinkat, (int at, const char *path, int flags), 0, at, path, flags)
INT(linkat, (int at, const char *path, int to, const char *name, int flags), 0, at, path, to, name, flags)
CALL(off_t, -1, lseek, "lseek", (int fd, off_t at, int whence), whence, fd, at, whence)
CALL(off64_t, -1, lseek64, "lseek", (int fd, off64_t at, int whence), whence, fd, at, whence)

/* Linux closes the file in any case. */
int close(int fd) {
    int error = inject("close", 0, CALLER, NULL), rc = NEXT(close)(fd);
    if (!error) return rc;
    errno = error;
    return -1;
}

/* 1: a file that the kernel makes up; its variant, for only such a one can have other contents. */
static int made_up(const char *path) { return strncmp(path, "/proc/", 6) == 0 || strncmp(path, "/sys/", 5) == 0; }

/* The descriptor of an open that does something else, or -1; else the open goes on. */
static int opened_instead(const char *path, const void *caller, int *fd) {
    if (control && control->armed && control->played_path[0] && strcmp(path, control->played_path) == 0) {
        *fd = open_text(control->played_text, strlen(control->played_text));
        return 1;
    }
    int error = inject("open", made_up(path), caller, path);
    if (!error) return 0;
    if (error < INSTEAD_NOTHING) {
        errno = error;
        *fd = -1;
        return 1;
    }
    /* A seek in pagemap is an address: what is cut is cut by pread(). */
    if (!made_up(path) || strcmp(path, "/proc/self/pagemap") == 0) return 0;
    *fd = open_instead((enum instead)error, path);
    return 1;
}

#define OPEN(name)                                                                     \
    int name(const char *path, int flags, ...) {                                       \
        va_list rest;                                                                  \
        va_start(rest, flags);                                                         \
        mode_t mode = va_arg(rest, mode_t);                                            \
        va_end(rest);                                                                  \
        int fd;                                                                        \
        return opened_instead(path, CALLER, &fd) ? fd : NEXT(name)(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

#define FCNTL(name)                               \
    int name(int fd, int command, ...) {          \
        va_list rest;                             \
        va_start(rest, command);                  \
        void *argument = va_arg(rest, void *);    \
        va_end(rest);                             \
        FAILED_AS("fcntl", command, -1);          \
        return NEXT(name)(fd, command, argument); \
    }
FCNTL(fcntl)
FCNTL(fcntl64)

int ioctl(int fd, unsigned long request, ...) {
    va_list rest;
    va_start(rest, request);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    FAILED_AS("ioctl", request, -1);
    return NEXT(ioctl)(fd, request, argument);
}

/* One that moves n things, or fewer. */
#define TRANSFER(name, as, parameters, fewest, ...)    \
    ssize_t name parameters {                          \
        int error = inject(as, 0, CALLER, NULL);       \
        if (error == INSTEAD_NOTHING) return 0;        \
        if (error == INSTEAD_FEW && n > fewest) {      \
            n = fewest;                                \
        } else if (error && error < INSTEAD_NOTHING) { \
            errno = error;                             \
            return -1;                                 \
        }                                              \
        return NEXT(name)(__VA_ARGS__);                \
    }
TRANSFER(read, "read", (int fd, void *to, size_t n), 1, fd, to, n)
TRANSFER(pread, "pread", (int fd, void *to, size_t n, off_t at), 8, fd, to, n, at)
TRANSFER(pread64, "pread", (int fd, void *to, size_t n, off64_t at), 8, fd, to, n, at)
TRANSFER(pwrite, "pwrite", (int fd, const void *from, size_t n, off_t at), 8, fd, from, n, at)
TRANSFER(pwrite64, "pwrite", (int fd, const void *from, size_t n, off64_t at), 8, fd, from, n, at)
TRANSFER(pwritev, "pwritev", (int fd, const struct iovec *from, int n, off_t at), 1, fd, from, n, at)
TRANSFER(pwritev64, "pwritev", (int fd, const struct iovec *from, int n, off64_t at), 1, fd, from, n, at)
#define VM_PARAMETERS                                                                                       \
    (pid_t pid, const struct iovec *here, unsigned long n_here, const struct iovec *there, unsigned long n, \
     unsigned long flags)
CALL(ssize_t, -1, process_vm_readv, "process_vm_readv", VM_PARAMETERS, 0, pid, here, n_here, there, n, flags)
CALL(ssize_t, -1, process_vm_writev, "process_vm_writev", VM_PARAMETERS, 0, pid, here, n_here, there, n, flags)

/* The process. */

INT(getrlimit, (__rlimit_resource_t what, struct rlimit *out), what, what, out)
INT64(getrlimit64, "getrlimit", (__rlimit_resource_t what, struct rlimit64 *out), what, what, out)
INT(sched_getaffinity, (pid_t pid, size_t n, cpu_set_t *out), 0, pid, n, out)

int prctl(int operation, ...) {
    va_list rest;
    va_start(rest, operation);
    unsigned long a = va_arg(rest, unsigned long), b = va_arg(rest, unsigned long);
    unsigned long c = va_arg(rest, unsigned long), d = va_arg(rest, unsigned long);
    va_end(rest);
    FAILED_AS("prctl", operation, -1);
    return NEXT(prctl)(operation, a, b, c, d);
}

/* A futex's variant has its command too. Who asks for its number, or for random bytes, is always answered. */
long syscall(long number, ...) {
    va_list rest;
    va_start(rest, number);
    long a = va_arg(rest, long), b = va_arg(rest, long), c = va_arg(rest, long);
    long d = va_arg(rest, long), e = va_arg(rest, long), f = va_arg(rest, long);
    va_end(rest);
    if (number != SYS_gettid && number != SYS_getrandom)
        FAILED_AS("syscall", number == SYS_futex ? number * 1000 + (b & 127) : number, -1);
    return NEXT(syscall)(number, a, b, c, d, e, f);
}

/* Those of pthread give the error. */
int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *argument) {
    int error = inject("pthread_create", 0, CALLER, NULL);
    return error ? error : NEXT(pthread_create)(thread, attributes, run, argument);
}

int pthread_getattr_np(pthread_t thread, pthread_attr_t *out) {
    int error = inject("pthread_getattr_np", 0, CALLER, NULL);
    return error ? error : NEXT(pthread_getattr_np)(thread, out);
}

/* The heap. dlsym() allocates, so libc's own is called by the name that it has besides. */

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);

void *malloc(size_t n) {
    FAILED_AS("malloc", 0, NULL);
    return __libc_malloc(n);
}

void *calloc(size_t count, size_t n) {
    FAILED_AS("calloc", 0, NULL);
    return __libc_calloc(count, n);
}

void *realloc(void *p, size_t n) {
    FAILED_AS("realloc", 0, NULL);
    return __libc_realloc(p, n);
}

CALL(void *, NULL, aligned_alloc, "aligned_alloc", (size_t align, size_t n), 0, align, n)

char *strdup(const char *text) {
    FAILED_AS("strdup", 0, NULL);
    size_t n = strlen(text) + 1;
    char *copy = __libc_malloc(n);
    return copy ? memcpy(copy, text, n) : NULL;
}
