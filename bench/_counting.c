/* A data handler of NumPy's (NEP 49) that counts and otherwise is malloc: what the arena's is compared with. */
#include <stdint.h>
#include <stdlib.h>

static int64_t made, gone;

static void *count(void *got) {
    if (got) __atomic_fetch_add(&made, 1, __ATOMIC_RELAXED);
    return got;
}

static void *counted_malloc(void *ctx, size_t bytes) {
    (void)ctx;
    return count(malloc(bytes));
}

static void *counted_calloc(void *ctx, size_t n, size_t bytes) {
    (void)ctx;
    return count(calloc(n, bytes));
}

static void *counted_realloc(void *ctx, void *old, size_t bytes) {
    (void)ctx;
    void *got = realloc(old, bytes);
    return old ? got : count(got);
}

static void counted_free(void *ctx, void *at, size_t bytes) {
    (void)ctx, (void)bytes;
    if (at) __atomic_fetch_add(&gone, 1, __ATOMIC_RELAXED);
    free(at);
}

/* numpy/ndarraytypes.h: PyDataMem_Handler, version 1 */
struct handler {
    char name[127];
    uint8_t version;
    void *ctx;
    void *(*malloc)(void *, size_t);
    void *(*calloc)(void *, size_t, size_t);
    void *(*realloc)(void *, void *, size_t);
    void (*free)(void *, void *, size_t);
};

struct handler counting = {"counting", 1, NULL, counted_malloc, counted_calloc, counted_realloc, counted_free};

int64_t counted_made(void) { return __atomic_load_n(&made, __ATOMIC_RELAXED); }
int64_t counted_gone(void) { return __atomic_load_n(&gone, __ATOMIC_RELAXED); }
