/* Many threads on one arena, then on one reservation, through arena.h and malloc_adapter.h alone. Built and run by tests/core/sanitize.
 *
 * Each round has a new arena of another kind. What a thread wrote into its blocks it finds there again, what it is told is
 * zero is zero, and at the end of a round nothing is left over. Commits are refused by their progress call now and
 * then, while others wait for the same chunk; and forks are made in the middle of it all, whose children have to find a
 * sane arena.
 *
 * ARENA_STRESS_SECONDS is how long (20); the argument is the seed. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "alloc/malloc_adapter.h"
#include "arena.h"

#define WORKERS 8u
#define HELD 1500u /* times the workers: several times what the index has room for at first */
#define SLOTS 4096u
#define LIVE_MOST ((uint64_t)24 << 20)
#define ROUND_NS 400000000u
#define PAGE ((uint64_t)4096)
#define KIB ((uint64_t)1 << 10)
#define MIB ((uint64_t)1 << 20)
#define LARGEST (512 * MIB)
#define REFUSED (-ESTALE) /* what our progress calls say: nothing else here says it */

#ifndef __has_feature
#define __has_feature(x) 0
#endif
#if defined(__SANITIZE_THREAD__) || __has_feature(thread_sanitizer)
#define FORKS false /* not supported there together with threads */
#else
#define FORKS true
#endif

struct setting {
    const char *name;
    uint64_t size, chunk;
    enum arena_pages pages;
    enum arena_fork fork;
    uint64_t retain, decay_ns;
    bool read_only;
    enum arena_backing backing;
    bool shared;
};

struct worker {
    pthread_t thread;
    unsigned id;
    const struct setting *setting;
    arena *arena;
    reservation *reservation;
    uint64_t state, end_ns, live;
    struct malloc_adapter heap;
    struct arena_block held[HELD];
    uint64_t mark[HELD];
    bool in_heap[HELD]; /* to be freed by its address */
    uint32_t count;
    bool refused, nested; /* its progress call has refused; it is inside one */
    uint64_t allocs, refusals, forks;
};

static struct worker workers[WORKERS];
static const char *round_name = "";
static bool in_child;
static _Thread_local unsigned worker_id;

/* No stdio: the child of a fork comes by here too. */
static _Noreturn void fail(int line, const char *what, long long got) {
    char text[400];
    int n = snprintf(text, sizeof text, "%s:%d: %s does not hold: got %lld (%s, worker %u%s)\n", __FILE__, line, what,
                     got, round_name, worker_id, in_child ? ", in the child of a fork" : "");
    if (write(STDERR_FILENO, text, (size_t)n < sizeof text ? (size_t)n : sizeof text) < 0) abort();
    _exit(1);
}

#define MUST(x)                          \
    do {                                 \
        if (!(x)) fail(__LINE__, #x, 0); \
    } while (0)
#define MUST_BE(rc, x)                                 \
    do {                                               \
        if (!(x)) fail(__LINE__, #x, (long long)(rc)); \
    } while (0)

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* The arena's clock: a microsecond each time it is looked at. */
static uint64_t tick_tock(void *arg) { return __atomic_add_fetch((uint64_t *)arg, 1000, __ATOMIC_RELAXED); }

static uint64_t draw(struct worker *w, uint64_t below) {
    w->state ^= w->state << 13;
    w->state ^= w->state >> 7;
    w->state ^= w->state << 17;
    return (w->state >> 11) % below;
}

/* --- what is in a block ----------------------------------------------------------------------------------------------- */

/* Small blocks are written whole; of large ones both ends, and the first and the last word of each 4 KiB. */
static uint64_t next_word(uint64_t i, uint64_t words) {
    if (words <= 1024 || i < 8 || i + 8 >= words) return i + 1;
    uint64_t next = i % 512 == 511 ? i + 1 : i | 511;
    return next + 8 < words ? next : words - 8;
}

static void fill(void *at, uint64_t bytes, uint64_t mark) {
    uint64_t *word = at, words = bytes / 8;
    for (uint64_t i = 0; i < words; i = next_word(i, words)) word[i] = mark ^ i;
}

/* What fill left in `bytes` is there still, as far as the first `part` of them goes. */
static void check(const void *at, uint64_t bytes, uint64_t part, uint64_t mark) {
    const uint64_t *word = at;
    uint64_t words = bytes / 8;
    for (uint64_t i = 0; i < words && i < part / 8; i = next_word(i, words)) MUST_BE(i, word[i] == (mark ^ i));
}

static bool is_zero(const void *at, uint64_t bytes) {
    const char *byte = at;
    return bytes == 0 || (*byte == 0 && memcmp(byte, byte + 1, bytes - 1) == 0);
}

/* How much of a range is there, as the kernel says. For when the workers are not here. */
static uint64_t resident(const void *base, uint64_t bytes) {
    static unsigned char pages[LARGEST / PAGE];
    uint64_t sum = 0;
    MUST(bytes <= LARGEST && mincore((void *)base, bytes, pages) == 0);
    for (uint64_t i = 0; i < bytes / PAGE; i++) sum += pages[i] & 1 ? PAGE : 0;
    return sum;
}

/* Of a private file mincore also tells what is behind it, and that is a fork's other half's as well. */
#define MUST_RESIDE(setting, base, bytes)    \
    MUST_BE(resident(base, (setting)->size), \
            (!(setting)->shared && (setting)->backing) || resident(base, (setting)->size) == (bytes))

/* --- one thread's blocks ---------------------------------------------------------------------------------------------- */

static uint64_t rounded(uint64_t bytes) { return (bytes + 63) & ~(uint64_t)63; }

/* Every other worker has small blocks only, and so gets round to more of them. */
static uint64_t some_size(struct worker *w) {
    static const uint64_t most[] = {256, 512, 4 * KIB, 4 * KIB, 64 * KIB, 64 * KIB, MIB, 3 * MIB};
    return 1 + draw(w, most[draw(w, w->id % 2 ? 4 : 8)]);
}

static void keep(struct worker *w, const struct arena_block *b, bool in_heap) {
    w->held[w->count] = *b;
    w->in_heap[w->count] = in_heap;
    w->mark[w->count] = draw(w, UINT64_MAX);
    fill(b->address, b->bytes, w->mark[w->count++]);
    w->live += b->bytes;
    w->allocs++;
}

static void check_new(struct worker *w, const struct arena_block *b, uint64_t asked, uint64_t align, bool zero) {
    MUST_BE(b->bytes, b->bytes == rounded(asked));
    MUST_BE(b->offset, b->offset % align == 0 && b->offset + b->bytes <= w->setting->size);
    MUST((char *)b->address == (char *)arena_address(w->arena) + b->offset && b->handle);
    MUST_BE(b->dirty, b->dirty <= (zero ? 0 : b->bytes));
    /* Looking at all of it takes a while. */
    uint64_t part = b->bytes - b->dirty;
    if (part > 64 * KIB && draw(w, 4)) part = 64 * KIB;
    MUST(is_zero((char *)b->address + b->dirty, part));
}

static int alloc_inside(struct worker *w);

static int progress(void *arg, uint64_t done, uint64_t total) {
    struct worker *w = arg;
    MUST_BE(done, done <= total);
    /* In a progress call inside a progress call always: two threads may wait there for each other's chunk. */
    if (w->nested) return REFUSED;
    if (draw(w, 4) == 0) {
        w->nested = true;
        int rc = alloc_inside(w);
        w->nested = false;
        MUST_BE(rc, rc == 0 || rc == REFUSED || rc == -ENOSPC || rc == -EDEADLK);
    }
    w->refused = draw(w, 3) == 0;
    return w->refused ? REFUSED : 0;
}

static int alloc_inside(struct worker *w) {
    struct arena_block b;
    if (!w->arena) return 0;
    int rc = arena_alloc(w->arena, 100, 64, ARENA_ZERO, progress, w, &b, NULL);
    if (rc) return rc;
    check_new(w, &b, 100, 64, true);
    fill(b.address, b.bytes, 1);
    return arena_free(w->arena, b.handle);
}

/* An answer that is not 0 is what this thread's own progress call said, or this other. */
static bool answered(struct worker *w, int rc, const struct arena_error *e, int other) {
    MUST_BE(rc, (rc == REFUSED) == w->refused);
    MUST_BE(rc, rc == 0 || rc == REFUSED || rc == other);
    MUST_BE(rc, rc == 0 || !e || (e->err == -rc && e->op));
    w->refusals += w->refused;
    w->refused = false;
    return rc == 0;
}

static void alloc_one(struct worker *w) {
    uint64_t chunk = arena_chunk(w->arena), align = draw(w, 4) ? 64 : 64ull << draw(w, 20), n = some_size(w);
    unsigned flags = (draw(w, 4) ? 0 : ARENA_ZERO) | (draw(w, 4) ? 0 : ARENA_NO_GROW);
    struct arena_error error, *e = draw(w, 2) ? &error : NULL;
    struct arena_block b;
    int rc;
    if (align > chunk) align = chunk;
    /* Long enough in the making that the progress call is asked, and others come to wait for its first and last
     * chunk. */
    if (draw(w, 1000) == 0) n = 16 * MIB + draw(w, 32 * MIB);
    if (w->count == HELD || w->live + n > LIVE_MOST + (n > 4 * MIB ? n : 0)) return;
    if (draw(w, 2)) {
        rc = arena_alloc_committed(w->arena, n, align, &b);
        flags = 0;
        MUST_BE(rc, rc == 0 || rc == -ENOSPC || rc == -EAGAIN);
    } else {
        rc = arena_alloc(w->arena, n, align, flags, draw(w, 4) ? progress : NULL, w, &b, e);
        (void)answered(w, rc, e, -ENOSPC);
    }
    if (rc) return;
    check_new(w, &b, n, align, flags & ARENA_ZERO);
    keep(w, &b, false);
}

static void *leave(void) { return &workers; }
static void come_back(void *held) { MUST(held == &workers); }

/* What a heap said: NULL is what the progress call refused, or a full arena. Where it refused to let a block grow there
 * may have been another place for it. */
static bool adapter_answered(struct worker *w, const void *at) {
    MUST_BE(errno, at || errno == ENOMEM);
    w->refusals += w->refused;
    w->refused = false;
    return at != NULL;
}

static void malloc_one(struct worker *w) {
    uint64_t n = some_size(w);
    bool zero = draw(w, 2) != 0;
    struct arena_block b;
    if (w->count == HELD || w->live + n > LIVE_MOST) return;
    void *at = zero ? adapter_calloc(&w->heap, 1, n) : adapter_malloc(&w->heap, n);
    if (!adapter_answered(w, at)) return;
    MUST(arena_find(w->arena, at, &b) == 0);
    if (zero) b.dirty = 0;
    check_new(w, &b, n, 64, zero);
    keep(w, &b, true);
}

static void forget(struct worker *w, uint32_t i) {
    w->live -= w->held[i].bytes;
    w->count--;
    w->held[i] = w->held[w->count];
    w->mark[i] = w->mark[w->count];
    w->in_heap[i] = w->in_heap[w->count];
}

static void check_held(const struct worker *w, uint32_t i) {
    check(w->held[i].address, w->held[i].bytes, w->held[i].bytes, w->mark[i]);
}

static void free_one(struct worker *w, uint32_t i) {
    uint64_t handle = w->held[i].handle;
    void *at = w->in_heap[i] ? w->held[i].address : NULL;
    check_held(w, i);
    forget(w, i);
    if (at) {
        adapter_free(&workers[draw(w, WORKERS)].heap, at, 12345);
    } else if (draw(w, 2)) {
        MUST(arena_free(w->arena, handle) == 0);
    } else {
        bool due;
        MUST(arena_free_deferred(w->arena, handle, &due) == 0);
        if (due) MUST(arena_purge(w->arena) == 0);
    }
    if (draw(w, 8) == 0) MUST(arena_free(w->arena, handle) == -EINVAL);
}

static void find_one(const struct worker *w, uint32_t i) {
    const struct arena_block *b = &w->held[i];
    struct arena_block found;
    MUST(arena_find(w->arena, b->address, &found) == 0);
    MUST_BE(found.bytes, found.handle == b->handle && found.offset == b->offset && found.bytes == b->bytes);
    MUST(arena_find(w->arena, (char *)b->address + 8, &found) == -ENOENT);
    if (b->bytes > 64) MUST(arena_find(w->arena, (char *)b->address + 64, &found) == -ENOENT);
}

static void realloc_one(struct worker *w, uint32_t i, uint64_t n) {
    struct arena_block *had = &w->held[i], b;
    void *at = adapter_realloc(&w->heap, had->address, n);
    if (!adapter_answered(w, at)) {
        find_one(w, i);
        return;
    }
    MUST(arena_find(w->arena, at, &b) == 0);
    MUST_BE(b.bytes, b.bytes == rounded(n));
    check(at, had->bytes, b.bytes, w->mark[i]);
    w->live += b.bytes - had->bytes;
    *had = b;
    fill(at, b.bytes, w->mark[i]);
}

static void resize_one(struct worker *w, uint32_t i) {
    struct arena_block *had = &w->held[i], b;
    struct arena_error error, *e = draw(w, 2) ? &error : NULL;
    uint64_t n = 1 + draw(w, draw(w, 2) ? had->bytes : 2 * had->bytes);
    if (n > 4 * MIB) return;
    if (w->in_heap[i]) {
        realloc_one(w, i, n);
        return;
    }
    int rc = arena_resize(w->arena, had->handle, n, draw(w, 4) ? progress : NULL, w, &b, e);
    if (!answered(w, rc, e, -ENOSPC)) {
        find_one(w, i);
        return;
    }
    MUST_BE(b.bytes, b.handle == had->handle && b.offset == had->offset && b.bytes == rounded(n));
    check(b.address, had->bytes, b.bytes, w->mark[i]);
    uint64_t from = b.dirty > had->bytes ? b.dirty : had->bytes;
    if (b.bytes > from) MUST(is_zero((char *)b.address + from, b.bytes - from));
    w->live += b.bytes - had->bytes;
    *had = b;
    fill(b.address, b.bytes, w->mark[i]);
}

/* A set of handles; no heap, which might be locked in the child of a fork. */
static uint64_t *slot_of(uint64_t *set, uint64_t handle) {
    uint64_t i = handle * 0x9e3779b97f4a7c15 >> 52;
    while (set[i] && set[i] != handle) i = (i + 1) % SLOTS;
    return &set[i];
}

/* All of this thread's blocks are there, however the others' come and go meanwhile. */
static void list_all(const struct worker *w) {
    uint64_t mine[SLOTS] = {0}, cursor = 0, before = 0, end = 0;
    struct arena_block some[300];
    uint32_t seen = 0;
    for (uint32_t i = 0; i < w->count; i++) *slot_of(mine, w->held[i].handle) = w->held[i].handle;
    while (cursor != UINT64_MAX) {
        size_t n = arena_blocks(w->arena, &cursor, some, 300);
        end = 0; /* the last one may have made room since for one that begins further up */
        for (size_t i = 0; i < n; i++) {
            MUST_BE(some[i].offset, some[i].offset >= end && some[i].offset >= before && some[i].bytes);
            before = some[i].offset;
            end = before + some[i].bytes;
            seen += *slot_of(mine, some[i].handle) != 0;
        }
    }
    MUST_BE(seen, seen == w->count);
}

static void look(const struct worker *w) {
    struct arena_stats s;
    arena_get(w->arena, &s);
    MUST_BE(s.live, s.live >= w->live && s.blocks >= w->count && s.live + s.free == s.reserved);
    MUST_BE(s.committed, s.committed <= s.reserved && s.committed <= s.peak_committed);
    MUST_BE(s.peak_live, s.peak_live >= w->live && s.peak_live <= s.reserved);
    MUST_BE(s.free_committed, s.free_committed <= s.free && s.largest_free <= s.free);
}

static void warm(struct worker *w) {
    struct arena_error error, *e = draw(w, 2) ? &error : NULL;
    int rc = arena_warm(w->arena, 1 + draw(w, 16 * MIB), draw(w, 2) * 5000, in_child ? 1 : (unsigned)draw(w, 3),
                        progress, w, e);
    (void)answered(w, rc, e, -ENOSPC);
}

static void trim(struct worker *w) {
    struct arena_error error, *e = draw(w, 2) ? &error : NULL;
    uint64_t freed, keep = draw(w, 2) ? 0 : draw(w, 32 * MIB);
    int rc = arena_trim(w->arena, keep, &freed, e);
    MUST_BE(rc, rc == 0);
}

static void do_something(struct worker *w) {
    uint64_t what = draw(w, 1000), of = w->count ? draw(w, w->count) : 0;
    if (what == 0)
        trim(w);
    else if (what == 1)
        warm(w);
    else if (what < 4)
        list_all(w);
    else if (what < 15)
        look(w);
    else if (what < 150)
        malloc_one(w);
    else if (!w->count || what < 560)
        alloc_one(w);
    else if (what < 900)
        free_one(w, (uint32_t)of);
    else if (what < 960)
        resize_one(w, (uint32_t)of);
    else
        find_one(w, (uint32_t)of);
}

/* --- the child of a fork ------------------------------------------------------------------------------------------------ */

/* Whoever is to look has forked: nobody else is here. */
static bool is_child(void) {
    pid_t pid = fork();
    if (pid == 0) {
        in_child = true;
        alarm(60);
        return true;
    }
    int status;
    MUST_BE(errno, pid > 0);
    while (waitpid(pid, &status, 0) < 0) MUST_BE(errno, errno == EINTR);
    MUST_BE(status, status == 0);
    return false;
}

static void use_inherited(struct worker *w) {
    struct arena_stats s;
    struct arena_block some[256];
    uint64_t freed;
    for (uint32_t i = 0; i < w->count; i++) {
        if (w->setting->fork == ARENA_FORK_WIPE)
            MUST(is_zero(w->held[i].address, w->held[i].bytes));
        else
            check_held(w, i);
        fill(w->held[i].address, w->held[i].bytes, w->mark[i]);
    }
    for (int i = 0; i < 200; i++) do_something(w);
    list_all(w);
    /* The blocks of the threads that are not here; those that were in the making are gone. */
    for (uint64_t cursor = 0; cursor != UINT64_MAX;) {
        size_t n = arena_blocks(w->arena, &cursor, some, 256);
        for (size_t i = 0; i < n; i++) MUST(arena_free(w->arena, some[i].handle) == 0);
    }
    arena_get(w->arena, &s);
    MUST_BE(s.live, s.live == 0 && s.blocks == 0 && s.largest_free == s.reserved);
    MUST(arena_trim(w->arena, 0, &freed, NULL) == 0);
    arena_get(w->arena, &s);
    MUST_BE(s.committed, s.committed == 0 && s.free_committed == 0);
    MUST(arena_close(w->arena, false) == 0);
}

static void use_dropped(struct worker *w) {
    struct arena_block b;
    MUST(arena_alloc_committed(w->arena, 64, 64, &b) == -ENOTCONN);
    MUST(arena_alloc(w->arena, 64, 64, 0, progress, w, &b, NULL) == -ENOTCONN);
    MUST(arena_warm(w->arena, 64, 0, 0, progress, w, NULL) == -ENOTCONN);
    for (uint32_t i = 0; i < w->count; i++) {
        MUST(is_zero(w->held[i].address, w->held[i].bytes));
        MUST(arena_free(w->arena, w->held[i].handle) == 0);
    }
}

static void fork_arena(struct worker *w) {
    w->forks++;
    if (!is_child()) return;
    if (w->setting->fork == ARENA_FORK_DROP)
        use_dropped(w);
    else
        use_inherited(w);
    _exit(0);
}

/* --- a round with an arena ---------------------------------------------------------------------------------------------- */

static void *work(void *arg) {
    struct worker *w = arg;
    uint64_t now = now_ns(), next_fork = now + ROUND_NS / 8;
    worker_id = w->id;
    for (uint64_t n = 1; now < w->end_ns; n++) {
        do_something(w);
        if (n % 16) continue;
        now = now_ns();
        if (!FORKS || w->id || now < next_fork) continue;
        fork_arena(w);
        next_fork = now_ns() + ROUND_NS / 4;
    }
    while (w->count) free_one(w, w->count - 1);
    return NULL;
}

static void run_workers(void *(*run)(void *), const struct setting *s, arena *a, reservation *r, uint64_t slice_ns) {
    uint64_t end = now_ns() + slice_ns;
    for (unsigned i = 0; i < WORKERS; i++) {
        struct worker *w = &workers[i];
        w->id = i;
        w->setting = s;
        w->arena = a;
        w->reservation = r;
        w->heap = (struct malloc_adapter){
            .arena = a, .leave = leave, .come_back = come_back, .progress = progress, .arg = w};
        w->end_ns = end;
        MUST(w->count == 0 && w->live == 0);
    }
    for (unsigned i = 0; i < WORKERS; i++) MUST(pthread_create(&workers[i].thread, NULL, run, &workers[i]) == 0);
    for (unsigned i = 0; i < WORKERS; i++) MUST(pthread_join(workers[i].thread, NULL) == 0);
}

/* Nothing is left, and what comes after is as new. Then the arena goes with its last block. */
static void check_empty(arena *a, const struct setting *s) {
    struct arena_stats t;
    struct arena_block b[3], none;
    uint64_t freed, cursor = 0;
    arena_get(a, &t);
    MUST_BE(t.live, t.live == 0 && t.blocks == 0);
    MUST_BE(t.largest_free, t.largest_free == s->size && t.free == s->size && t.reserved == s->size);
    MUST_BE(t.free_committed, t.free_committed == t.committed);
    MUST(arena_trim(a, 0, &freed, NULL) == 0);
    MUST_BE(freed, freed == t.committed);
    arena_get(a, &t);
    MUST_BE(t.committed, t.committed == 0 && t.free_committed == 0);
    MUST_RESIDE(s, arena_address(a), 0);
    MUST(arena_blocks(a, &cursor, &none, 64) == 0);
    MUST(arena_alloc(a, 64, 64, 0, NULL, NULL, &none, NULL) == 0);
    MUST(arena_reset(a) == 0 && arena_free(a, none.handle) == -EINVAL);
    MUST(arena_trim(a, 0, &freed, NULL) == 0);
    for (int i = 0; i < 3; i++) {
        MUST(arena_alloc(a, 3 * MIB, 4096, 0, NULL, NULL, &b[i], NULL) == 0);
        MUST_BE(b[i].dirty, (i || b[i].dirty == 0) && is_zero(b[i].address, b[i].bytes));
    }
    MUST(arena_close(a, false) == 0 && arena_close(a, false) == 0);
    MUST(arena_alloc_committed(a, 64, 64, &none) == -ESHUTDOWN);
    MUST(arena_alloc(a, 64, 64, 0, NULL, NULL, &none, NULL) == -ESHUTDOWN);
    for (int i = 0; i < 3; i++) MUST(arena_free(a, b[i].handle) == 0);
    arena_get(a, &t);
    MUST_BE(t.reserved, t.reserved == 0 && t.live == 0);
}

static void round_of_arena(const struct setting *s, uint64_t slice_ns) {
    uint64_t clock = 0;
    struct arena_config config = {.reservation = {.size = s->size,
                                                  .pages = s->pages,
                                                  .fork = s->fork,
                                                  .backing = s->backing,
                                                  .shared = s->shared},
                                  .chunk = s->chunk,
                                  .read_only_populate = s->read_only,
                                  .retain = s->retain,
                                  .decay_ns = s->decay_ns,
                                  .now_ns = tick_tock,
                                  .now_arg = &clock};
    arena *a;
    MUST(arena_create(&config, &a, NULL) == 0);
    run_workers(work, s, a, NULL, slice_ns);
    check_empty(a, s);
    MUST(arena_destroy(a) == 0);
}

/* --- a round with a reservation ----------------------------------------------------------------------------------------- */

/* An eighth for each worker. Of that the first half is its own: all may commit it, but nobody else releases it. The other
 * half is everybody's. */
static uint64_t share(const struct worker *w) { return w->setting->size / WORKERS; }

/* Releases in everybody's halves. */
static void release_shared(struct worker *w) {
    uint64_t half = share(w) / 2, at = draw(w, half), n = draw(w, half - at), freed;
    int rc = reservation_release(w->reservation, draw(w, WORKERS) * share(w) + half + at, n, false, &freed, progress, w,
                                 NULL);
    (void)answered(w, rc, NULL, 0);
    MUST_BE(freed, freed <= n);
}

/* Commits across everything. */
static void commit_shared(struct worker *w) {
    struct arena_error error, *e = draw(w, 2) ? &error : NULL;
    uint64_t size = w->setting->size, at = draw(w, size), n = draw(w, size - at), newly;
    if (draw(w, 4)) n %= 2 * MIB;
    int rc = reservation_commit(w->reservation, at, n, draw(w, 4) != 0, (unsigned)draw(w, 3), progress, w, &newly, e);
    MUST_BE(newly, rc == 0 || newly == 0);
    (void)answered(w, rc, e, 0);
}

/* Populates again what somebody may be writing to. */
static void verify_shared(struct worker *w) {
    struct arena_error error, *e = draw(w, 2) ? &error : NULL;
    uint64_t size = w->setting->size, at = draw(w, size), n = draw(w, size - at) % (8 * MIB);
    int rc = reservation_verify(w->reservation, at, n, progress, w, e);
    (void)answered(w, rc, e, 0);
}

/* Its own half: committed and found zero and filled, or found as it was filled, and given back. */
static void use_own(struct worker *w, char *base, bool *held) {
    reservation *r = w->reservation;
    struct arena_error error;
    uint64_t bytes = share(w) / 2, at = w->id * share(w), freed, copy[16];
    int rc;
    if (*held) {
        MUST(reservation_is_committed(r, at, bytes, true));
        check(base, bytes, bytes, w->id + 1);
        rc = reservation_copy(r, at, copy, sizeof copy, false);
        MUST_BE(rc, rc == -EPERM || (rc == 0 && memcmp(copy, base, sizeof copy) == 0));
        if (draw(w, 2) == 0) return;
        rc = reservation_release(r, at, bytes, false, &freed, NULL, NULL, &error);
        MUST_BE(freed, rc == 0 && freed == bytes);
        *held = false;
        return;
    }
    bool write = draw(w, 4) != 0;
    rc = reservation_commit(r, at, bytes, write, (unsigned)draw(w, 3), progress, w, NULL, &error);
    if (!answered(w, rc, &error, 0)) return;
    MUST(reservation_is_committed(r, at, bytes, write));
    MUST(is_zero(base, bytes));
    if (!write) return;
    fill(base, bytes, w->id + 1);
    *held = true;
}

static void fork_reservation(struct worker *w, const char *base, bool held) {
    uint64_t size = w->setting->size, freed, newly;
    struct reservation_stats s;
    w->forks++;
    if (!is_child()) return;
    if (w->setting->fork == ARENA_FORK_DROP) {
        MUST(reservation_commit(w->reservation, 0, size, true, 1, NULL, NULL, &newly, NULL) == -ENOTCONN);
        MUST(is_zero(base, share(w)));
        _exit(0);
    }
    if (held) {
        MUST(reservation_is_committed(w->reservation, w->id * share(w), share(w) / 2, true));
        check(base, share(w) / 2, share(w) / 2, w->id + 1);
    }
    MUST(reservation_commit(w->reservation, 0, size, true, 1, NULL, NULL, &newly, NULL) == 0);
    reservation_get(w->reservation, &s);
    MUST_BE(s.committed, s.committed == size && newly <= size);
    MUST(resident((void *)s.address, size) == size);
    MUST(reservation_release(w->reservation, 0, size, false, &freed, NULL, NULL, NULL) == 0);
    reservation_get(w->reservation, &s);
    MUST_BE(s.committed, s.committed == 0 && freed == size);
    MUST_RESIDE(w->setting, (void *)s.address, 0);
    _exit(0);
}

static void *work_on_range(void *arg) {
    struct worker *w = arg;
    uint64_t now = now_ns(), next_fork = now + ROUND_NS / 8;
    struct reservation_stats s;
    bool held = false;
    worker_id = w->id;
    reservation_get(w->reservation, &s);
    char *base = (char *)s.address + w->id * share(w);
    for (; now < w->end_ns; now = now_ns()) {
        uint64_t what = draw(w, 10);
        if (what < 3)
            use_own(w, base, &held);
        else if (what < 6)
            release_shared(w);
        else if (what < 7)
            verify_shared(w);
        else
            commit_shared(w);
        reservation_get(w->reservation, &s);
        MUST_BE(s.committed, s.committed <= s.peak_committed && s.peak_committed <= s.size);
        if (!FORKS || w->id || now < next_fork) continue;
        fork_reservation(w, base, held);
        next_fork = now_ns() + ROUND_NS / 4;
    }
    while (held) use_own(w, base, &held);
    return NULL;
}

static void round_of_reservation(const struct setting *s, uint64_t slice_ns) {
    struct reservation_config config = {
        .size = s->size, .pages = s->pages, .fork = s->fork, .backing = s->backing, .shared = s->shared};
    struct reservation_stats t;
    uint64_t freed;
    reservation *r;
    MUST(reservation_create(&config, &r, NULL) == 0);
    run_workers(work_on_range, s, NULL, r, slice_ns);
    reservation_get(r, &t);
    MUST_RESIDE(s, (void *)t.address, t.committed);
    MUST(reservation_release(r, 0, s->size, false, &freed, NULL, NULL, NULL) == 0);
    MUST_BE(freed, freed == t.committed);
    reservation_get(r, &t);
    MUST_BE(t.committed, t.committed == 0);
    MUST_RESIDE(s, (void *)t.address, 0);
    MUST(reservation_destroy(r) == 0);
}

int main(int argc, char **argv) {
    static const struct setting settings[] = {
        {"64 KiB chunks, nothing retained", LARGEST, 64 * KIB, ARENA_PAGES_4K, ARENA_FORK_COPY, 0, 0, false,
         ARENA_BACKING_AUTO, false},
        {"64 KiB chunks, decay", LARGEST, 64 * KIB, ARENA_PAGES_4K, ARENA_FORK_DROP, 8 * MIB, 1000000, false,
         ARENA_BACKING_AUTO, false},
        {"huge pages, decay", LARGEST, 0, ARENA_PAGES_AUTO, ARENA_FORK_COPY, 16 * MIB, 1000000, false,
         ARENA_BACKING_AUTO, false},
        {"huge pages, all retained", LARGEST, 0, ARENA_PAGES_AUTO, ARENA_FORK_WIPE, UINT64_MAX, 0, false,
         ARENA_BACKING_AUTO, false},
        {"4 KiB chunks, crowded", 64 * MIB, 4 * KIB, ARENA_PAGES_4K, ARENA_FORK_COPY, 0, 0, false, ARENA_BACKING_AUTO,
         false},
        {"shared memfd, nothing retained", LARGEST, 64 * KIB, ARENA_PAGES_4K, ARENA_FORK_DROP, 0, 0, false,
         ARENA_BACKING_MEMFD, true},
        {"private memfd, decay", LARGEST, 64 * KIB, ARENA_PAGES_4K, ARENA_FORK_COPY, 8 * MIB, 1000000, false,
         ARENA_BACKING_MEMFD, false},
        {"committed for reading", LARGEST, 64 * KIB, ARENA_PAGES_4K, ARENA_FORK_COPY, UINT64_MAX, 0, true,
         ARENA_BACKING_AUTO, false},
    };
    static const struct setting ranges[] = {
        {"a range of 4 KiB pages", 64 * MIB, 0, ARENA_PAGES_4K, ARENA_FORK_COPY, 0, 0, false, ARENA_BACKING_AUTO,
         false},
        {"a range of a shared memfd", 64 * MIB, 0, ARENA_PAGES_4K, ARENA_FORK_DROP, 0, 0, false, ARENA_BACKING_MEMFD,
         true},
        {"a range of a private memfd", 64 * MIB, 0, ARENA_PAGES_4K, ARENA_FORK_COPY, 0, 0, false, ARENA_BACKING_MEMFD,
         false},
        {"a range of huge pages", 128 * MIB, 0, ARENA_PAGES_AUTO, ARENA_FORK_COPY, 0, 0, false, ARENA_BACKING_AUTO,
         false},
    };
    enum { SETTINGS = sizeof settings / sizeof *settings, RANGES = sizeof ranges / sizeof *ranges };
    const char *text = getenv("ARENA_STRESS_SECONDS");
    uint64_t seconds = text ? strtoull(text, NULL, 0) : 20, seed = argc > 1 ? strtoull(argv[1], NULL, 0) : 1;
    uint64_t slice_ns = seconds * 1000000000u / (SETTINGS + RANGES), allocs = 0, refusals = 0, forks = 0, rounds = 0;
    if (slice_ns > ROUND_NS) slice_ns = ROUND_NS;
    alarm((unsigned)seconds * 3 + 120); /* a deadlock ends here */
    for (unsigned i = 0; i < WORKERS; i++) workers[i].state = (seed * WORKERS + i) * 2654435761u + 1;
    uint64_t end = now_ns() + seconds * 1000000000u;
    do {
        for (int i = 0; i < SETTINGS; i++, rounds++) {
            round_name = settings[i].name;
            round_of_arena(&settings[i], slice_ns);
        }
        for (int i = 0; i < RANGES; i++, rounds++) {
            round_name = ranges[i].name;
            round_of_reservation(&ranges[i], slice_ns);
        }
    } while (now_ns() < end);
    for (unsigned i = 0; i < WORKERS; i++) {
        allocs += workers[i].allocs;
        refusals += workers[i].refusals;
        forks += workers[i].forks;
    }
    printf("%llu rounds, %llu blocks, %llu commits refused, %llu forks\n", (unsigned long long)rounds,
           (unsigned long long)allocs, (unsigned long long)refusals, (unsigned long long)forks);
    return 0;
}
