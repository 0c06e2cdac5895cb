/* exports.h: how many look at a thing, and whether it is closed to further looks, for good or for the moment, in one atomic
 * word: to look fails once it is closed, to close fails while somebody looks, and there is no moment in between. */
#ifndef ARENA_EXPORTS_H
#define ARENA_EXPORTS_H

#include <stdbool.h>
#include <stdint.h>

#define EXPORTS_CLOSED (1ull << 63)
#define EXPORTS_HELD (1ull << 62) /* by one who changes it, and drops it again */

static inline bool exports_take(uint64_t *word) {
    if (!(__atomic_fetch_add(word, 1, __ATOMIC_ACQUIRE) & (EXPORTS_CLOSED | EXPORTS_HELD))) return true;
    __atomic_fetch_sub(word, 1, __ATOMIC_RELAXED);
    return false;
}

static inline void exports_drop(uint64_t *word) { __atomic_fetch_sub(word, 1, __ATOMIC_RELEASE); }

/* false: somebody looks, or it is closed already (exports_closed tells; a failed exports_take may make it seem looked at for a
 * moment, so that a racing close is refused once too often, never once too little). */
static inline bool exports_shut(uint64_t *word, uint64_t how) {
    uint64_t none = 0;
    return __atomic_compare_exchange_n(word, &none, how, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
}

static inline bool exports_close(uint64_t *word) { return exports_shut(word, EXPORTS_CLOSED); }
static inline bool exports_hold(uint64_t *word) { return exports_shut(word, EXPORTS_HELD); }

static inline bool exports_closed(const uint64_t *word) {
    return (__atomic_load_n(word, __ATOMIC_ACQUIRE) & EXPORTS_CLOSED) != 0;
}

static inline void exports_unhold(uint64_t *word) { __atomic_fetch_and(word, ~EXPORTS_HELD, __ATOMIC_RELEASE); }

#endif
