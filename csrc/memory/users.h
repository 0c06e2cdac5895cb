/* users.h: who uses a thing at this moment, and whether it is closed to further use: one atomic word.
 *
 * - A *pin* is a lasting use: an exported buffer, the block of an array. The child of a fork inherits it, with the object that
 *   holds it.
 * - A *call* is a passing use: a thread is inside. So is a *hold*, by a thread that changes the thing meanwhile: nobody else
 *   may begin to use it.
 * - *Closed* is for good.
 *
 * To pin or to enter fails once the thing is closed or held; to hold or to close it fails while there are pins or calls; and
 * there is no moment in between.
 *
 * The child of a fork has the pins of its parent, but not the threads that were inside. So the word says in which process its
 * calls and its hold are meant, by the number of forks that made it (fork_generation, the argument `forks` here): in a
 * later one they count for nothing. Whoever was inside when he forked (in a progress call, from a signal handler) is
 * not counted in the child either: what he is in the middle of is known to the core by its operations. */
#ifndef ARENA_USERS_H
#define ARENA_USERS_H

#include <stdbool.h>
#include <stdint.h>

#define USERS_CLOSED (UINT64_C(1) << 63)
#define USERS_HELD (UINT64_C(1) << 62)
#define USERS_GENERATION 50 /* the first of its 12 bits */
#define USERS_CALL (UINT64_C(1) << 32) /* 18 bits: as many threads */
#define USERS_PINS (USERS_CALL - 1)
#define USERS_CALLS ((UINT64_C(1) << USERS_GENERATION) - USERS_CALL)

static inline uint64_t users_generation(uint32_t forks) { return (uint64_t)(forks & 0xfff) << USERS_GENERATION; }

/* What the word means in this process. */
static inline uint64_t users_settled(uint64_t word, uint32_t forks) {
    const uint64_t generation = users_generation(forks), bits = users_generation(~UINT32_C(0));
    return (word & bits) == generation ? word : (word & (USERS_CLOSED | USERS_PINS)) | generation;
}

static inline bool users_closed(const uint64_t *users) {
    return (__atomic_load_n(users, __ATOMIC_ACQUIRE) & USERS_CLOSED) != 0;
}

/* A pin that is refused may make the thing seem used for a moment: a racing hold or close is refused once too often, never
 * once too little. */
static inline bool users_pin(uint64_t *users, uint32_t forks) {
    for (;;) {
        uint64_t word = __atomic_fetch_add(users, 1, __ATOMIC_ACQUIRE);
        if (__builtin_expect(!(word & (USERS_CLOSED | USERS_HELD)), 1)) return true;
        word = __atomic_sub_fetch(users, 1, __ATOMIC_RELAXED);
        uint64_t settled = users_settled(word, forks);
        if (settled & (USERS_CLOSED | USERS_HELD)) return false;
        /* The holder stayed with the parent of a fork. If this fails somebody else was faster, or came by. */
        (void)__atomic_compare_exchange_n(users, &word, settled, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
    }
}

static inline void users_unpin(uint64_t *users) { (void)__atomic_fetch_sub(users, 1, __ATOMIC_RELEASE); }

static inline bool users_enter(uint64_t *users, uint32_t forks) {
    uint64_t word = __atomic_load_n(users, __ATOMIC_RELAXED), settled;
    do {
        settled = users_settled(word, forks);
        if (settled & (USERS_CLOSED | USERS_HELD)) return false;
    } while (
        !__atomic_compare_exchange_n(users, &word, settled + USERS_CALL, true, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED));
    return true;
}

/* `forks`: of when he entered; `now`: of when he leaves. */
static inline void users_leave(uint64_t *users, uint32_t forks, uint32_t now) {
    if (forks == now) (void)__atomic_fetch_sub(users, USERS_CALL, __ATOMIC_RELEASE);
}

/* How: USERS_HELD, or USERS_CLOSED. false also where it is that already. */
static inline bool users_shut(uint64_t *users, uint64_t how, uint32_t forks) {
    uint64_t word = __atomic_load_n(users, __ATOMIC_RELAXED), settled;
    do {
        settled = users_settled(word, forks);
        if (settled & (USERS_CLOSED | USERS_HELD | USERS_PINS | USERS_CALLS)) return false;
    } while (!__atomic_compare_exchange_n(users, &word, settled | how, true, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED));
    return true;
}

static inline bool users_close(uint64_t *users, uint32_t forks) { return users_shut(users, USERS_CLOSED, forks); }
static inline bool users_hold(uint64_t *users, uint32_t forks) { return users_shut(users, USERS_HELD, forks); }

static inline void users_let_go(uint64_t *users, uint32_t forks, uint32_t now) {
    if (forks == now) (void)__atomic_fetch_and(users, ~USERS_HELD, __ATOMIC_RELEASE);
}

#endif
