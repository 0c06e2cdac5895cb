/* pool.h: which blocks of a fixed pool are free: a stack of their numbers without locks (Treiber's).
 *
 * - A step is one compare-and-swap of the top, and its failure is another thread's success: some thread always gets on,
 *   whoever is preempted in the middle. With one thread that takes and one that puts both are wait-free: while one is in
 *   its loop the other can succeed at most as often as there are blocks, for it runs out of them.
 * - Each block is free or taken in one atomic word of its own, so that of two that put it only one succeeds.
 * - The top carries how often it was changed, in 40 bits, so that a thread that slept between its look and its swap cannot
 *   take an old top for a new one (ABA): it would have to sleep through exactly a multiple of 2^40 steps, 3 hours at the
 *   10 ns of a step. */
#ifndef ARENA_POOL_H
#define ARENA_POOL_H

#include <sched.h>
#include <stdbool.h>
#include <stdint.h>

#define POOL_INDEX_BITS 24
#define POOL_MASK (((uint32_t)1 << POOL_INDEX_BITS) - 1)
#define POOL_NONE POOL_MASK                          /* below the last free block; and no block at all */
#define POOL_TAKEN UINT32_MAX                        /* in `next`: it is not in the stack */
#define POOL_MAX (POOL_NONE - 1)                     /* blocks */
#define POOL_STEP ((uint64_t)1 << POOL_INDEX_BITS)   /* one more change */

struct pool {
    _Alignas(64) uint64_t top; /* the number of the topmost free block, and the count of changes above it */
    _Alignas(64) uint32_t count;
    uint32_t forks; /* which fork's child this process was when the stack was last known to be whole */
    uint32_t next[]; /* of each block: the one below it in the stack, or POOL_TAKEN */
};

static inline uint64_t pool_bytes(uint32_t count) {
    return (sizeof(struct pool) + (uint64_t)count * sizeof(uint32_t) + 63) & ~(uint64_t)63;
}

static inline uint64_t pool_changed(uint64_t top, uint32_t to) {
    return ((top & ~(uint64_t)POOL_MASK) + POOL_STEP) | to;
}

/* Every block that is not taken becomes free, the lowest on top. */
static inline void pool_rebuild(struct pool *p) {
    uint32_t top = POOL_NONE;
    for (uint32_t i = p->count; i-- > 0;) {
        if (p->next[i] == POOL_TAKEN) continue;
        p->next[i] = top;
        top = i;
    }
    p->top = pool_changed(p->top, top);
}

static inline void pool_init(struct pool *p, uint32_t count, uint32_t forks) {
    p->top = POOL_NONE;
    p->count = count;
    p->forks = forks;
    for (uint32_t i = 0; i < count; i++) p->next[i] = POOL_NONE;
    pool_rebuild(p);
}

/* forks: how many forks made this process. If one has since the pool was last used, a thread that stayed with the parent may
 * have had a block on its way. */
static inline bool pool_whole(const struct pool *p, uint32_t forks) {
    return __atomic_load_n(&p->forks, __ATOMIC_ACQUIRE) == forks;
}

/* The first thread of the child makes it whole, and others wait for that. */
static inline void pool_adopt(struct pool *p, uint32_t forks) {
    const uint32_t busy = forks | UINT32_C(1) << 31;
    uint32_t of = __atomic_load_n(&p->forks, __ATOMIC_ACQUIRE);
    while (of != forks) {
        if (of == busy) {
            sched_yield();
            of = __atomic_load_n(&p->forks, __ATOMIC_ACQUIRE);
        } else if (__atomic_compare_exchange_n(&p->forks, &of, busy, false, __ATOMIC_ACQUIRE, __ATOMIC_ACQUIRE)) {
            pool_rebuild(p);
            __atomic_store_n(&p->forks, forks, __ATOMIC_RELEASE);
            return;
        }
    }
}

/* The number of a block; POOL_NONE: none is free. */
static inline uint32_t pool_take(struct pool *p) {
    uint64_t top = __atomic_load_n(&p->top, __ATOMIC_ACQUIRE);
    uint32_t index, below;
    do {
        index = (uint32_t)top & POOL_MASK;
        if (index == POOL_NONE) return POOL_NONE;
        /* Stale if another took the block meanwhile; but then the top has changed, and the swap fails. */
        below = __atomic_load_n(&p->next[index], __ATOMIC_RELAXED) & POOL_MASK;
    } while (!__atomic_compare_exchange_n(&p->top, &top, pool_changed(top, below), false, __ATOMIC_ACQUIRE,
                                          __ATOMIC_ACQUIRE));
    __atomic_store_n(&p->next[index], POOL_TAKEN, __ATOMIC_RELAXED);
    return index;
}

/* The chain from `first` down to `last` comes on top. */
static inline void pool_push(struct pool *p, uint32_t first, uint32_t last) {
    uint64_t top = __atomic_load_n(&p->top, __ATOMIC_RELAXED);
    do {
        __atomic_store_n(&p->next[last], (uint32_t)top & POOL_MASK, __ATOMIC_RELAXED);
    } while (!__atomic_compare_exchange_n(&p->top, &top, pool_changed(top, first), false, __ATOMIC_RELEASE,
                                          __ATOMIC_RELAXED));
}

/* false: the block was not taken. */
static inline bool pool_put(struct pool *p, uint32_t index) {
    uint32_t taken = POOL_TAKEN;
    if (!__atomic_compare_exchange_n(&p->next[index], &taken, POOL_NONE, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
        return false;
    pool_push(p, index, index);
    return true;
}

/* How many are free: counted, in time proportional to their number, and exact when nobody takes or puts meanwhile. */
static inline uint32_t pool_free(const struct pool *p) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < p->count; i++) n += __atomic_load_n(&p->next[i], __ATOMIC_RELAXED) != POOL_TAKEN;
    return n;
}

/* Takes all blocks at once, so that nobody can take or put one afterwards: the topmost, for pool_reopen. POOL_NONE, and
 * nothing has changed: not all were free. To one who takes at this very moment it may seem that none is. */
static inline uint32_t pool_close(struct pool *p) {
    if (pool_free(p) != p->count) return POOL_NONE;
    uint64_t top = __atomic_load_n(&p->top, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(&p->top, &top, pool_changed(top, POOL_NONE), false, __ATOMIC_ACQUIRE,
                                        __ATOMIC_RELAXED)) {
    }
    uint32_t first = (uint32_t)top & POOL_MASK, last = POOL_NONE, n = 0;
    for (uint32_t i = first; i != POOL_NONE; i = __atomic_load_n(&p->next[i], __ATOMIC_RELAXED)) last = i, n++;
    if (n == p->count) return first;
    if (n) pool_push(p, first, last);
    return POOL_NONE;
}

/* For the one who closed it. */
static inline void pool_reopen(struct pool *p, uint32_t first) {
    __atomic_store_n(&p->top, pool_changed(p->top, first), __ATOMIC_RELEASE);
}

#endif
