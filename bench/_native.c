/* What the benchmarks compare with, and what they measure with: bare system calls and plain loops, without Python's
 * interpreter in between. Compiled and loaded through ctypes by _measure.py, which also declares these functions. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "arena.h"

#define EXPORT __attribute__((visibility("default")))
#define HUGE_PAGE ((size_t)2 << 20)
#define POPULATE_WRITE 23 /* MADV_POPULATE_WRITE, which older headers lack */

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* The same kind of range that the arena reserves: private, NORESERVE, aligned to a huge page, advised before its first
 * page. NULL if it cannot be had. */
EXPORT void *range_new(size_t bytes, int huge) {
    size_t span = bytes + HUGE_PAGE;
    char *raw = mmap(NULL, span, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (raw == MAP_FAILED) return NULL;
    char *at = (char *)(((uintptr_t)raw + HUGE_PAGE - 1) & ~(uintptr_t)(HUGE_PAGE - 1));
    if (at > raw) munmap(raw, (size_t)(at - raw));
    if (raw + span > at + bytes) munmap(at + bytes, (size_t)(raw + span - (at + bytes)));
    if (madvise(at, bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE) < 0) {
        munmap(at, bytes);
        return NULL;
    }
    return at;
}

EXPORT void range_drop(void *at, size_t bytes) { munmap(at, bytes); }

/* All times are nanoseconds; a failure is -errno. */
EXPORT int64_t bare_populate(void *at, size_t bytes) {
    int64_t start = now();
    if (madvise(at, bytes, POPULATE_WRITE) < 0) return -errno;
    return now() - start;
}

EXPORT int64_t bare_release(void *at, size_t bytes) {
    int64_t start = now();
    if (madvise(at, bytes, MADV_DONTNEED) < 0) return -errno;
    return now() - start;
}

EXPORT int64_t bare_map_populate(size_t bytes) {
    int64_t start = now();
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (at == MAP_FAILED) return -errno;
    int64_t spent = now() - start;
    munmap(at, bytes);
    return spent;
}

/* Each timed from the outside in; `volatile` keeps the stores. */
EXPORT int64_t touch_pages(void *at, size_t bytes, size_t step) {
    int64_t start = now();
    for (volatile char *p = at, *end = p + bytes; p < end; p += step) *p = 1;
    return now() - start;
}

/* How long the first write to each page took. */
EXPORT void time_pages(void *at, size_t bytes, int64_t *took) {
    volatile char *p = at;
    for (size_t page = 0; page < bytes / 4096; page++) {
        int64_t start = now();
        p[page * 4096] = 1;
        took[page] = now() - start;
    }
}

EXPORT int64_t fill_bytes(void *at, int value, size_t bytes) {
    int64_t start = now();
    memset(at, value, bytes);
    __asm__ volatile("" ::"r"(at) : "memory");
    return now() - start;
}

#if defined(__x86_64__)
/* The widest streaming stores that help: where there is AVX2, the narrow ones reach two thirds of these. */
__attribute__((target("avx2"))) static void stream_wide(char *p, char *end) {
    for (const __m256i zero = _mm256_setzero_si256(); p < end; p += 32) _mm256_stream_si256((__m256i *)p, zero);
}

static void stream_narrow(char *p, char *end) {
    for (const __m128i zero = _mm_setzero_si128(); p < end; p += 16) _mm_stream_si128((__m128i *)p, zero);
}

EXPORT int64_t stream_zero(void *at, size_t bytes) {
    int64_t start = now();
    char *p = at;
    if (__builtin_cpu_supports("avx2"))
        stream_wide(p, p + bytes);
    else
        stream_narrow(p, p + bytes);
    _mm_sfence();
    return now() - start;
}
#else
/* Other processors have no such stores that are the same on all of them: memset, which knows its own, is the rival. */
EXPORT int64_t stream_zero(void *at, size_t bytes) { return fill_bytes(at, 0, bytes); }
#endif

/* Reads a byte per cache line, which pushes everything else out: memset would pass by the cache at such a size. */
EXPORT int64_t walk_lines(const void *at, size_t bytes) {
    int64_t sum = 0;
    for (const volatile char *p = at, *end = p + bytes; p < end; p += 64) sum += *p;
    return sum;
}

EXPORT int64_t not_zero(const void *at, size_t bytes) {
    const uint64_t *p = at;
    int64_t n = 0;
    for (size_t i = 0; i < bytes / 8; i++) n += p[i] != 0;
    return n;
}

EXPORT int64_t page_faults(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return u.ru_minflt + u.ru_majflt;
}

/* Two looks at this thread's own counters, as often as said. */
EXPORT int64_t rusage_pairs(int64_t count) {
    struct rusage u;
    int64_t start = now();
    for (int64_t i = 0; i < 2 * count; i++) getrusage(RUSAGE_THREAD, &u);
    return now() - start;
}

/* --- a neighbour: a thread that does one small thing over and over and writes down how long each took --------------- */

enum what { MAP_UNMAP, ALLOC_FREE };

static struct neighbour {
    pthread_t thread;
    enum what what;
    const struct arena_api *api;
    arena *a;
    uint64_t bytes;
    int64_t *took;
    size_t room;
    size_t count; /* atomic */
    int stop;     /* atomic */
    int failed;   /* errno */
} one;

static int once(const struct neighbour *n) {
    if (n->what == MAP_UNMAP) {
        void *at = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (at == MAP_FAILED) return -errno;
        return munmap(at, 4096) < 0 ? -errno : 0;
    }
    struct arena_block b;
    int rc = n->api->alloc_committed(n->a, n->bytes, 64, &b);
    return rc ? rc : n->api->free(n->a, b.handle);
}

static void *run(void *arg) {
    struct neighbour *n = arg;
    for (size_t i = 0; !__atomic_load_n(&n->stop, __ATOMIC_RELAXED); i++) {
        int64_t start = now();
        if ((n->failed = -once(n)) != 0) break;
        n->took[i % n->room] = now() - start;
        __atomic_store_n(&n->count, i + 1, __ATOMIC_RELEASE);
    }
    return NULL;
}

/* Starts it, and comes back once it is at work. `took` is the caller's, and present. */
EXPORT int neighbour_start(int what, const void *api, void *py_arena, uint64_t bytes, int64_t *took, size_t room) {
    one = (struct neighbour){.what = (enum what)what, .api = api, .bytes = bytes, .took = took, .room = room};
    if (api) one.a = one.api->of(py_arena);
    int rc = pthread_create(&one.thread, NULL, run, &one);
    for (int i = 0; !rc && i < 100000 && __atomic_load_n(&one.count, __ATOMIC_ACQUIRE) < 1000; i++) {
        struct timespec t = {.tv_nsec = 100000};
        nanosleep(&t, NULL);
    }
    return -rc;
}

EXPORT int64_t neighbour_count(void) { return (int64_t)__atomic_load_n(&one.count, __ATOMIC_ACQUIRE); }

EXPORT int neighbour_failed(void) { return one.failed; }

/* What it was doing is finished, and counted, when this returns. */
EXPORT int64_t neighbour_stop(void) {
    __atomic_store_n(&one.stop, 1, __ATOMIC_RELAXED);
    pthread_join(one.thread, NULL);
    return neighbour_count();
}

/* --- the index without Python objects -------------------------------------------------------------------------------- */

/* So many blocks, freed by destroying the arena. The number that there was room for. */
EXPORT int64_t many_blocks(const void *table, void *py_arena, int64_t count, uint64_t bytes) {
    const struct arena_api *api = table;
    arena *a = api->of(py_arena);
    struct arena_block b;
    for (int64_t i = 0; i < count; i++) {
        if (api->alloc(a, bytes, 64, 0, NULL, NULL, &b, NULL)) return i;
    }
    return count;
}
