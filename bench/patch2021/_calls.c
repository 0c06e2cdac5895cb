/* What the table measures, timed around nothing else: loops and calls that Python would add to. Compiled and loaded by
 * calls.py, which also declares these functions. Each: nanoseconds, or -errno. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <time.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

#define EXPORT __attribute__((visibility("default")))

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

EXPORT int64_t timed_touch(volatile unsigned char *at, size_t nbytes, size_t page, bool reading, bool writing) {
    int64_t start = now();
    if (reading && writing)
        for (size_t i = 0; i < nbytes; i += page) at[i] = at[i];
    else if (writing)
        for (size_t i = 0; i < nbytes; i += page) at[i] = 0;
    else
        for (size_t i = 0; i < nbytes; i += page) (void)at[i];
    return now() - start;
}

EXPORT int64_t timed_populate(void *at, size_t nbytes, bool writing) {
    int64_t start = now();
    int rc = madvise(at, nbytes, writing ? MADV_POPULATE_WRITE : MADV_POPULATE_READ);
    return rc ? -errno : now() - start;
}

EXPORT int64_t timed_fallocate(int fd, int64_t nbytes) {
    int64_t start = now();
    int rc = fallocate(fd, 0, 0, nbytes);
    return rc ? -errno : now() - start;
}
