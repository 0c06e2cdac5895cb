/* reservation.h: a range of address space and the map of which of its pages are present.
 *
 * A commit or release is an *operation* on a range of pages. Operations never overlap: who finds one in the way waits for
 * it and then looks again, so a commit that failed is taken over by whoever waited for it. The page map changes only at the
 * end of an operation, hence what this operation made present is among what was absent when it began. Where nobody else can
 * have put anything there, a rollback gives back all of that. Where others can (peers), it gives back the pages that this
 * operation itself has made, and no other: those that it saw missing, under the lock that peers take too, just before it
 * made them, and in which nothing was written since. Where that cannot be known nothing is given back, only unmapped.
 * System calls are made outside the lock. */
#ifndef ARENA_RESERVATION_H
#define ARENA_RESERVATION_H

#include <pthread.h>

#include "arena.h"
#include "memory/backing.h"
#include "memory/preflight.h"
#include "memory/registry.h"
#include "sys/advice.h"
#include "sys/features.h"
#include "sys/mutex.h"

struct reservation_op {
    uint64_t first, end; /* pages */
    uint64_t discard_end; /* not 0: up to here the file's data goes as well */
    bool release;
    bool locking; /* by lock_memory(): what is committed stays as it is, and its end is near */
    bool left_out; /* by lock_memory(), which came by meanwhile, see pages_catch_up_with_mlockall */
    uint32_t mlockall_seen; /* mlockall_generation() when its pages were last locked as they have to be */
    bool theirs; /* a release: what the file has is a peer's */
    bool alone;  /* when it began nobody else could have put anything into the backing */
    uint64_t allocated; /* bytes of the file when it began, see all_are_new */
    bool locked; /* against peers in other processes */
    bool refused; /* that lock could not be had */
    /* In the child of a fork made in its progress call: what it made present in shared memory is the parent's. */
    bool owned_by_parent;
    pthread_t thread;
    const struct reservation_op *behind; /* its thread waits for that one, in a progress call of this one */
    struct reservation_op *next, *prev;
};

/* Somebody's look at committed memory: it is not released meanwhile. */
struct reservation_pin {
    uint64_t first, end; /* pages */
    bool passing;        /* of a call that the child of a fork in another thread will not see the end of */
    pthread_t thread;
    struct reservation_pin *next, *prev;
};

struct reservation {
    struct mutex lock;
    int refuse;       /* 0, or why nothing is done any more: -ESHUTDOWN, closed; -ENOTCONN, dropped at a fork */
    uint32_t turn;    /* moves when an operation ends; waiters sleep on it */
    uint32_t waiters; /* atomic */
    struct reservation_op *ops;
    struct reservation_pin *pins;

    char *base;
    uint64_t pages;
    unsigned page_shift;
    struct backing backing;
    bool mlocks; /* what is committed is locked */
    bool locked; /* atomic: something of it was, by that or by mlockall.h */
    bool lazy, dump, dropped;
    bool address_lost; /* dropped, and the addresses may belong to someone else now: they are not unmapped */
    bool lost;    /* of these there is nothing mapped for us where pages were committed: no use of them is possible */
    enum os_fork fork;
    const char *name;
    const struct os_features *features;
    struct preflight preflight;

    uint64_t *present, *writable; /* bit a page, lazily touched; writable is a subset of present */
    uint64_t *made; /* beside peers: was missing in the file too, until the operation made it. Atomic, and empty between
                     * operations */
    bool any_made; /* atomic */
    uint64_t peer_wait_ns; /* for how long threads to which no signal comes wait for a peer */
    size_t map_bytes;
    bool map_lazy;

    uint64_t committed, peak, present_end; /* pages, under the lock; from present_end on nothing was ever committed */
    uint64_t commits, releases, commit_ns, release_ns;
    uint32_t shared_epoch,
        private_epoch; /* differ: a fork has made pages copy-on-write since they were last populated whole */
    struct registry_entry entry;
};

/* In place, and between registry_lock and registry_unlock: an arena embeds its reservation and is watched for forks
 * itself. */
int reservation_init(struct reservation *r, const struct reservation_config *config, bool registered,
                     struct arena_error *error);
/* What reservation_close does at last, between registry_lock and registry_unlock; and for one that is not wanted after
 * all, where a file that it created goes too. */
void reservation_undo(struct reservation *r, const char *unlink_path);
/* Who uses it. */
struct reservation_users {
    struct reservation_op *op; /* one that commits or releases; or else one of lock_memory(), which changes nothing */
    bool pinned;
};
/* Under the lock: operations that are in the way of this one (not begun yet), and pins of its range; NULL: any. */
struct reservation_users reservation_users(const struct reservation *r, const struct reservation_op *range);
/* Is a commit or release under way? */
bool reservation_busy(struct reservation *r);

/* -ENODATA: not all of it is committed (for writing). -EBUSY: it is being released. -EINVAL, -ENOTCONN and -ESHUTDOWN as
 * reservation_commit. */
int reservation_pin(struct reservation *r, struct reservation_pin *p, uint64_t offset, uint64_t bytes, bool write);
void reservation_unpin(struct reservation *r, struct reservation_pin *p);

/* A release in two halves, for a caller who must not let anybody commit in between: begin (an operation is noted, no system
 * call is made; -EAGAIN: another is in the way; -EBUSY: somebody looks) and finish. */
/* Is a range that is being released closed to loads, for ever or for a moment? */
bool reservation_release_closes(const struct reservation *r);
/* `whole`: also what was never committed of it is kept from others. */
int reservation_release_begin(struct reservation *r, struct reservation_op *op, uint64_t offset, uint64_t bytes,
                              bool whole);
int reservation_release_finish(struct reservation *r, struct reservation_op *op, uint64_t *freed,
                               arena_progress progress, void *arg, struct arena_error *error);

/* Populates again, for writing, what is committed for writing in the range and was made copy-on-write by a fork. Errors as
 * reservation_commit; nothing is rolled back, for nothing was absent. */
int reservation_repopulate(reservation *r, uint64_t offset, uint64_t bytes, unsigned threads, arena_progress progress,
                           void *arg, struct arena_error *error);

/* Is what is committed for the first time, and again after a release, zero? */
bool reservation_fresh_is_zero(const struct reservation *r);

/* Would a commit of so much be refused by the preflight? Errors as reservation_commit. */
int reservation_preflight(struct reservation *r, uint64_t offset, uint64_t bytes, struct arena_error *error);

/* For registry.h. */
size_t reservation_ranges(void *r, struct registry_range out[REGISTRY_RANGES]);
int reservation_lock(void *r, bool own);

void reservation_before_fork(struct reservation *r);
void reservation_after_fork_parent(struct reservation *r);
void reservation_after_fork_child(struct reservation *r);

#endif
