#define _GNU_SOURCE
#include "memory/reservation_op.h"

#include <errno.h>
#include <stdio.h>

#include "memory/error.h"
#include "memory/mlockall.h"
#include "memory/pages.h"
#include "sys/bitmap.h"
#include "sys/list.h"
#include "sys/thread.h"

bool reservation_pages_of(const struct reservation *r, uint64_t offset, uint64_t bytes, uint64_t *first,
                          uint64_t *end) {
    uint64_t size = bytes_of(r, r->pages), page = bytes_of(r, 1);
    if (offset > size || bytes > size - offset) return false;
    *first = offset >> r->page_shift;
    *end = bytes ? (offset + bytes + page - 1) >> r->page_shift : *first;
    return true;
}

struct reservation_op *op_in_the_way(const struct reservation *r, uint64_t first, uint64_t end, bool releases_only) {
    bool all = backing_one_at_a_time(&r->backing);
    for (struct reservation_op *op = r->ops; op; op = op->next) {
        bool overlap = (op->first < end && first < op->end) || (all && !releases_only);
        if (overlap && (op->release || !releases_only)) return op;
    }
    return NULL;
}

struct reservation_users reservation_users(const struct reservation *r, const struct reservation_op *range) {
    struct reservation_users users = {0};
    bool any = !range || backing_one_at_a_time(&r->backing);
    for (struct reservation_op *op = r->ops; op; op = op->next) {
        if (!any && (op->end <= range->first || range->end <= op->first)) continue;
        users.op = op;
        if (!op->locking) break;
    }
    for (const struct reservation_pin *p = r->pins; p; p = p->next) {
        if (!range || (p->first < range->end && range->first < p->end)) users.pinned = true;
    }
    return users;
}

void op_begin(struct reservation *r, struct reservation_op *op) {
    op->thread = pthread_self();
    op->alone = backing_alone(&r->backing);
    op->mlockall_seen = mlockall_generation();
    LIST_PUSH(r->ops, op);
}

void op_remove(struct reservation *r, struct reservation_op *op) {
    LIST_REMOVE(r->ops, op);
    for (struct reservation_op *o = r->ops; o; o = o->next) {
        if (o->behind == op) o->behind = NULL;
    }
}

void op_end(struct reservation *r, struct reservation_op *op) {
    op_remove(r, op);
    __atomic_fetch_add(&r->turn, 1, __ATOMIC_RELEASE);
    bool wake = __atomic_load_n(&r->waiters, __ATOMIC_RELAXED) != 0;
    mutex_unlock(&r->lock);
    if (wake) os_wake_all(&r->turn);
}

/* What this thread, in a progress call of its own operations, waits for. */
static void wait_behind(struct reservation *r, const struct reservation_op *other) {
    for (struct reservation_op *op = r->ops; op; op = op->next) {
        if (pthread_equal(op->thread, pthread_self())) op->behind = other;
    }
}

int op_wait_for(struct reservation *r, const struct reservation_op *other, arena_progress progress, void *arg,
                uint64_t *asked) {
    for (const struct reservation_op *op = other; op; op = op->behind) {
        if (pthread_equal(op->thread, pthread_self())) return -EDEADLK;
    }
    wait_behind(r, other);
    uint32_t turn = __atomic_load_n(&r->turn, __ATOMIC_ACQUIRE);
    __atomic_fetch_add(&r->waiters, 1, __ATOMIC_RELAXED);
    mutex_unlock(&r->lock);
    if (*asked == 0) *asked = os_now_ns();
    os_wait(&r->turn, turn, RESERVATION_WAIT_NS);
    __atomic_fetch_sub(&r->waiters, 1, __ATOMIC_RELAXED);
    uint64_t now = os_now_ns();
    int rc = 0;
    if (progress && now - *asked >= RESERVATION_WAIT_NS) {
        *asked = now;
        rc = progress(arg, 0, 0);
    }
    mutex_lock(&r->lock);
    wait_behind(r, NULL);
    return rc;
}

void op_clip(const struct reservation *r, struct reservation_op *op) {
    if (op->end > r->present_end) op->end = r->present_end > op->first ? r->present_end : op->first;
}

/* How many such locks this thread holds: in a progress call of one operation it might wait for itself, by way of
 * another reservation of the same file. */
static _Thread_local unsigned peer_locks;

#define UNSURE_TRIES 1000 /* of a millisecond, where the kernel says neither that the lock is held nor that it is not */

int op_lock_peers(struct reservation *r, struct reservation_op *op, arena_progress progress, void *arg) {
    uint64_t began = os_now_ns(), asked = began, offset = bytes_of(r, op->first);
    unsigned unsure = 0;
    int rc;
    while ((rc = backing_lock(&r->backing, offset, bytes_of(r, op->end - op->first), &op->locked)) != 0) {
        if (rc == -EBUSY && peer_locks) return -EDEADLK;
        uint64_t now = os_now_ns();
        bool again = rc == -EAGAIN && ++unsure < UNSURE_TRIES;
        /* In the main thread a signal handler can end it; another thread would wait for a stopped peer for ever. */
        if (rc == -EBUSY) again = os_is_main_thread() || now - began < r->peer_wait_ns;
        if (!again) break;
        os_sleep_us(1000);
        if (progress && now - asked >= RESERVATION_WAIT_NS) {
            asked = now;
            if ((rc = progress(arg, 0, 0)) != 0) return rc;
        }
    }
    op->refused = rc != 0;
    peer_locks += op->locked;
    return rc;
}

int op_explain_lock(const struct reservation *r, const struct reservation_op *op, int rc, struct arena_error *e) {
    uint64_t offset = bytes_of(r, op->first), bytes = bytes_of(r, op->end - op->first);
    if (rc == -EDEADLK) return explain(e, rc, "re-entry", offset, bytes);
    explain(e, rc, op->refused ? "lock of the file" : "wait", offset, bytes);
    int holder = e && rc == -EBUSY && op->refused ? backing_lock_holder(&r->backing, offset, bytes) : 0;
    if (holder) snprintf(e->where, sizeof e->where, "process %d", holder);
    return rc;
}

void op_forget_lock(struct reservation_op *op) {
    peer_locks -= op->locked;
    op->locked = false;
}

void op_unlock_peers(struct reservation *r, struct reservation_op *op) {
    if (!op->locked) return;
    peer_locks--;
    op->locked = false;
    backing_unlock(&r->backing, bytes_of(r, op->first), bytes_of(r, op->end - op->first));
}

/* Under the lock. */
static bool all_committed(const struct reservation *r, uint64_t first, uint64_t end, bool write) {
    return !r->refuse && bit_all(write ? r->writable : r->present, first, end);
}

static bool being_released(const struct reservation *r, uint64_t first, uint64_t end) {
    return op_in_the_way(r, first, end, true) != NULL;
}

bool reservation_is_committed(reservation *r, uint64_t offset, uint64_t bytes, bool write) {
    uint64_t first, end;
    if (!reservation_pages_of(r, offset, bytes, &first, &end)) return false;
    mutex_lock(&r->lock);
    bool yes = all_committed(r, first, end, write) && !being_released(r, first, end);
    mutex_unlock(&r->lock);
    return yes;
}

static int pin(struct reservation *r, struct reservation_pin *p, uint64_t offset, uint64_t bytes, bool write,
               bool passing) {
    *p = (struct reservation_pin){.passing = passing, .thread = pthread_self()};
    if (!reservation_pages_of(r, offset, bytes, &p->first, &p->end)) return -EINVAL;
    mutex_lock(&r->lock);
    int rc = r->refuse;
    if (rc == 0 && being_released(r, p->first, p->end)) rc = -EBUSY;
    if (rc == 0 && !all_committed(r, p->first, p->end, write)) rc = -ENODATA;
    if (rc == 0) LIST_PUSH(r->pins, p);
    mutex_unlock(&r->lock);
    return rc;
}

int reservation_pin(struct reservation *r, struct reservation_pin *p, uint64_t offset, uint64_t bytes, bool write) {
    return pin(r, p, offset, bytes, write, false);
}

int reservation_pin_for_call(struct reservation *r, struct reservation_pin *p, uint64_t offset, uint64_t bytes,
                             bool write) {
    return pin(r, p, offset, bytes, write, true);
}

void reservation_unpin(struct reservation *r, struct reservation_pin *p) {
    mutex_lock(&r->lock);
    LIST_REMOVE(r->pins, p);
    mutex_unlock(&r->lock);
}
