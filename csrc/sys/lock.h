/* lock.h: the short lock. Priority-inheriting, so that a real-time thread waits for the few instructions of a
 * lower-priority holder and not for whoever runs instead of it.
 *
 * The kernel's PI futex (futex(2), FUTEX_LOCK_PI) with the uncontended path in line: two compare-and-swaps and no
 * call, half the time of pthread_mutex with PTHREAD_PRIO_INHERIT. Not recursive. A child of fork resets it. */
#ifndef ARENA_LOCK_H
#define ARENA_LOCK_H

#include <stdbool.h>
#include <stdint.h>

/* The order in which one thread may take locks: each after those of a lower rank. No system call is made under those of an
 * arena or a reservation. Builds with ARENA_CHECKED abort where that is broken. */
enum lock_rank { LOCK_RANK_REGISTRY, LOCK_RANK_ARENA, LOCK_RANK_RESERVATION };

struct lock {
    uint32_t word; /* 0, or the holder's thread id; FUTEX_WAITERS in the top bit */
    enum lock_rank rank;
};

/* musl has no initial-exec TLS in what is loaded by dlopen; its default model costs 2 ns more. */
#ifdef __GLIBC__
#define LOCK_TLS __attribute__((tls_model("initial-exec"), visibility("hidden")))
#else
#define LOCK_TLS __attribute__((visibility("hidden")))
#endif

/* This thread's id for the kernel; 0 until first asked for, and again in the child of a fork. */
extern _Thread_local uint32_t lock_tid LOCK_TLS;

void lock_take_slowly(struct lock *l);
void lock_drop_slowly(struct lock *l);

#ifdef ARENA_CHECKED
void lock_check_take(const struct lock *l);
void lock_check_drop(const struct lock *l);
/* Aborts under a lock of an arena or a reservation: to be called before a system call. */
void lock_check_none(void);
/* While a fork is under way its thread holds the locks of all arenas at once; in the child it holds none. */
void lock_check_fork(bool begins);
#else
static inline void lock_check_take(const struct lock *l) { (void)l; }
static inline void lock_check_drop(const struct lock *l) { (void)l; }
static inline void lock_check_none(void) {}
static inline void lock_check_fork(bool begins) { (void)begins; }
#endif

static inline void lock_take(struct lock *l) {
    lock_check_take(l);
    uint32_t unlocked = 0, tid = lock_tid;
    if (tid == 0 || !__atomic_compare_exchange_n(&l->word, &unlocked, tid, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
        lock_take_slowly(l);
}

static inline void lock_drop(struct lock *l) {
    lock_check_drop(l);
    uint32_t tid = lock_tid;
    if (!__atomic_compare_exchange_n(&l->word, &tid, 0, 0, __ATOMIC_RELEASE, __ATOMIC_RELAXED)) lock_drop_slowly(l);
}

/* Only where no other thread can know the lock: at creation, and in the child of a fork. */
static inline void lock_reset(struct lock *l) { __atomic_store_n(&l->word, 0, __ATOMIC_RELAXED); }

#endif
