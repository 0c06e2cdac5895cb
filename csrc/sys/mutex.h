/* mutex.h: the short mutex. Priority-inheriting, so that a real-time thread waits for the few instructions of a
 * lower-priority holder and not for whoever runs instead of it.
 *
 * The kernel's PI futex (futex(2), FUTEX_LOCK_PI) with the uncontended path in line: two compare-and-swaps and no
 * call, half the time of pthread_mutex with PTHREAD_PRIO_INHERIT. Not recursive. A child of fork resets it. */
#ifndef ARENA_MUTEX_H
#define ARENA_MUTEX_H

#include <stdbool.h>
#include <stdint.h>

/* The order in which one thread may lock mutexes: each after those of a lower rank. No system call is made under those of an
 * arena or a reservation. Builds with ARENA_CHECKED abort where either is broken. */
enum mutex_rank { MUTEX_RANK_REGISTRY, MUTEX_RANK_ARENA, MUTEX_RANK_RESERVATION };

struct mutex {
    uint32_t word; /* 0, or the holder's thread id; FUTEX_WAITERS in the top bit */
    enum mutex_rank rank;
};

/* musl has no initial-exec TLS in what is loaded by dlopen; its default model costs 2 ns more. */
#ifdef __GLIBC__
#define MUTEX_TLS __attribute__((tls_model("initial-exec"), visibility("hidden")))
#else
#define MUTEX_TLS __attribute__((visibility("hidden")))
#endif

/* This thread's id for the kernel; 0 until first asked for, and again in the child of a fork. */
extern _Thread_local uint32_t mutex_tid MUTEX_TLS;

void mutex_lock_slowly(struct mutex *l);
void mutex_unlock_slowly(struct mutex *l);

#ifdef ARENA_CHECKED
void mutex_check_lock(const struct mutex *l);
void mutex_check_unlock(const struct mutex *l);
/* Aborts under the mutex of an arena or a reservation: every function of this folder that makes a system call begins with it. */
void mutex_check_none(void);
/* While a fork is under way its thread holds the mutexes of all arenas at once; in the child it holds none. */
void mutex_check_fork(bool begins);
#else
static inline void mutex_check_lock(const struct mutex *l) { (void)l; }
static inline void mutex_check_unlock(const struct mutex *l) { (void)l; }
static inline void mutex_check_none(void) {}
static inline void mutex_check_fork(bool begins) { (void)begins; }
#endif

static inline void mutex_lock(struct mutex *l) {
    mutex_check_lock(l);
    uint32_t unlocked = 0, tid = mutex_tid;
    if (tid == 0 || !__atomic_compare_exchange_n(&l->word, &unlocked, tid, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
        mutex_lock_slowly(l);
}

static inline void mutex_unlock(struct mutex *l) {
    mutex_check_unlock(l);
    uint32_t tid = mutex_tid;
    if (!__atomic_compare_exchange_n(&l->word, &tid, 0, 0, __ATOMIC_RELEASE, __ATOMIC_RELAXED)) mutex_unlock_slowly(l);
}

/* Only where no other thread can know the mutex: at creation, and in the child of a fork. */
static inline void mutex_reset(struct mutex *l) { __atomic_store_n(&l->word, 0, __ATOMIC_RELAXED); }

#endif
