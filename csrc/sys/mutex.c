#define _GNU_SOURCE
#include "sys/mutex.h"

#include <errno.h>
#include <linux/futex.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

_Thread_local uint32_t mutex_tid;

void mutex_lock_slowly(struct mutex *l) {
    const struct timespec short_while = {.tv_nsec = 50000};
    if (!mutex_tid) mutex_tid = (uint32_t)syscall(SYS_gettid);
    for (;;) {
        uint32_t unlocked = 0;
        if (__atomic_compare_exchange_n(&l->word, &unlocked, mutex_tid, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) return;
        if (syscall(SYS_futex, &l->word, FUTEX_LOCK_PI_PRIVATE, 0, NULL, NULL, 0) == 0) {
            /* The kernel wrote the word; this read orders what the last holder did before what we do. */
            (void)__atomic_load_n(&l->word, __ATOMIC_ACQUIRE);
            return;
        }
        switch (errno) {
            case EINTR:
            case EAGAIN: break; /* the holder is about to exit, or the word has changed meanwhile */
            case ENOMEM:        /* the kernel has none for its notes just now */
            case ENOSYS:
                (void)nanosleep(&short_while, NULL);
                break; /* a kernel without PI futexes: no inheritance, but a lock */
            /* Taken twice by one thread, or by one that is no more: our bug, and no way on. */
            default: abort();
        }
    }
}

void mutex_unlock_slowly(struct mutex *l) {
    /* There are waiters, and the kernel hands the word on (ENOSYS cannot be, for then nobody set their bit). The OR of
     * nothing is the release that the C memory model, and the thread sanitizer, see. */
    __atomic_fetch_or(&l->word, 0, __ATOMIC_RELEASE);
    if (syscall(SYS_futex, &l->word, FUTEX_UNLOCK_PI_PRIVATE, 0, NULL, NULL, 0) < 0) abort();
}

#ifdef ARENA_CHECKED
static _Thread_local unsigned held[MUTEX_RANK_RESERVATION + 1];
static _Thread_local bool forking;

void mutex_check_lock(const struct mutex *l) {
    for (unsigned rank = l->rank; rank <= MUTEX_RANK_RESERVATION; rank++) {
        if (held[rank] && !forking) abort(); /* out of order: two threads could wait for each other for ever */
    }
    held[l->rank]++;
}

void mutex_check_unlock(const struct mutex *l) { held[l->rank]--; }

void mutex_check_none(void) {
    if ((held[MUTEX_RANK_ARENA] || held[MUTEX_RANK_RESERVATION]) && !forking) abort();
}

void mutex_check_fork(bool begins) {
    forking = begins;
    if (!begins) memset(held, 0, sizeof held);
}
#endif
