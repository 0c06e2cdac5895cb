/* pool.h with many threads: no block is with two of them, what one writes to a block the next one sees, of several that put
 * the same block one succeeds, and in the end all are free. The thread sanitizer looks at the order.
 *
 * Runs for ARENA_STRESS_SECONDS. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>

#include "realtime/pool.h"
#include "stress.h"

#define BLOCKS 7u
#define THREADS 4u

static struct pool *pool;
static uint64_t memory[BLOCKS][8]; /* plain: who has a block has it alone */
static bool stop; /* atomic */
static pthread_barrier_t together;
static uint32_t won; /* atomic */

static struct pool *pool_new(uint32_t count) {
    struct pool *p = aligned_alloc(64, pool_bytes(count));
    MUST(p);
    pool_init(p, count, 0);
    return p;
}

static bool stopped(void) { return __atomic_load_n(&stop, __ATOMIC_RELAXED); }

/* Takes some, writes all over them, looks whether it stayed so, and puts them. */
static void *hammer(void *arg) {
    uint64_t me = (uint64_t)(uintptr_t)arg, state = me * 0x9e3779b97f4a7c15u + 1, round = 0;
    uint32_t mine[BLOCKS];
    while (!stopped()) {
        uint32_t n = 0;
        state = state * 6364136223846793005u + 1442695040888963407u;
        for (uint32_t want = 1 + (uint32_t)(state >> 33) % 4; n < want; n++) {
            if ((mine[n] = pool_take(pool)) == POOL_NONE) break;
            MUST(mine[n] < BLOCKS);
            for (int i = 0; i < 8; i++) memory[mine[n]][i] = me << 32 | round;
        }
        if (n && round % 64 == 0) MUST(pool_close(pool) == POOL_NONE); /* one is taken, by us */
        for (uint32_t k = 0; k < n; k++) {
            for (int i = 0; i < 8; i++) MUST(memory[mine[k]][i] == (me << 32 | round));
            MUST(pool_put(pool, mine[k]));
        }
        round++;
    }
    return NULL;
}

/* All put the same block at once; nobody takes meanwhile. */
static void *put_together(void *arg) {
    uint32_t index = *(uint32_t *)arg;
    pthread_barrier_wait(&together);
    if (pool_put(pool, index)) __atomic_fetch_add(&won, 1, __ATOMIC_RELAXED);
    return NULL;
}

static void all_are_free(uint32_t count) {
    uint32_t *index = malloc(count * sizeof *index);
    bool *seen = calloc(count, sizeof *seen);
    MUST(index && seen);
    MUST(pool_free(pool) == count);
    for (uint32_t i = 0; i < count; i++) {
        index[i] = pool_take(pool);
        MUST(index[i] < count && !seen[index[i]]);
        seen[index[i]] = true;
    }
    MUST(pool_take(pool) == POOL_NONE && pool_free(pool) == 0);
    for (uint32_t i = 0; i < count; i++) MUST(pool_put(pool, index[i]) && !pool_put(pool, index[i]));
    MUST(pool_free(pool) == count);
    free(index);
    free(seen);
}

static void in_threads(void *(*run)(void *), void *arg, unsigned milliseconds) {
    pthread_t thread[THREADS];
    __atomic_store_n(&stop, false, __ATOMIC_RELAXED);
    for (uintptr_t i = 0; i < THREADS; i++) MUST(!pthread_create(&thread[i], NULL, run, arg ? arg : (void *)(i + 1)));
    os_sleep_us(milliseconds * 1000);
    __atomic_store_n(&stop, true, __ATOMIC_RELAXED);
    for (unsigned i = 0; i < THREADS; i++) pthread_join(thread[i], NULL);
}

/* One whose blocks were on their way when the process was forked. */
static void adopted(void) {
    uint32_t held = pool_take(pool), lost = pool_take(pool), half = pool_take(pool);
    pool->next[lost] = POOL_NONE; /* popped, and not yet marked */
    pool->next[half] = POOL_NONE; /* claimed by its put, and not yet pushed */
    MUST(!pool_whole(pool, 1));
    pool_adopt(pool, 1);
    MUST(pool_whole(pool, 1) && pool_free(pool) == BLOCKS - 1);
    MUST(pool_put(pool, held));
    all_are_free(BLOCKS);
    /* Forked again by one thread while another was at it. */
    pool->forks = 2 | UINT32_C(1) << 31;
    pool_adopt(pool, 3);
    MUST(pool_whole(pool, 3));
    all_are_free(BLOCKS);
}

int main(void) {
    uint64_t end = stress_end();
    pool = pool_new(BLOCKS);
    MUST(!pthread_barrier_init(&together, NULL, THREADS));
    all_are_free(BLOCKS);
    adopted();
    do {
        in_threads(hammer, NULL, 300);
        all_are_free(BLOCKS);
        for (int i = 0; i < 100; i++) {
            uint32_t index = pool_take(pool);
            won = 0;
            in_threads(put_together, &index, 0);
            MUST(won == 1);
        }
        all_are_free(BLOCKS);
    } while (os_now_ns() < end);
    uint32_t first = pool_close(pool);
    MUST(first != POOL_NONE && pool_take(pool) == POOL_NONE && !pool_put(pool, 0) && pool_close(pool) == POOL_NONE);
    pool_reopen(pool, first);
    all_are_free(BLOCKS);
    free(pool);
    pool = pool_new(100000);
    all_are_free(100000);
    free(pool);
    return 0;
}
