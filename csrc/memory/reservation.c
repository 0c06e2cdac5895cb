#define _GNU_SOURCE
#include "memory/reservation.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "memory/address_space.h"
#include "memory/commit.h"
#include "memory/decommit.h"
#include "memory/error.h"
#include "memory/mlockall.h"
#include "sys/bitmap.h"
#include "sys/list.h"
#include "sys/page.h"

#define LOCK_STEP ((uint64_t)64 << 20)

/* --- creation --------------------------------------------------------------------------------------------------------- */

static void entry_before(void *self) { reservation_before_fork(self); }
static void entry_parent(void *self) { reservation_after_fork_parent(self); }
static void entry_child(void *self) { reservation_after_fork_child(self); }

static int make_maps(struct reservation *r) {
    size_t words = (size_t)((r->pages + 63) / 64 + 511) & ~(size_t)511; /* whole 4 KiB each */
    void *maps;
    r->map_bytes = 3 * words * sizeof(uint64_t);
    int rc = address_space_reserve(&os_anonymous, r->map_bytes, OS_PAGE, &maps, &r->map_lazy);
    if (rc) return rc;
    if (r->map_lazy && (rc = os_make_accessible(maps, r->map_bytes)) != 0) {
        os_unmap(maps, r->map_bytes);
        return rc;
    }
    (void)os_advise_huge(maps, r->map_bytes, false);
    (void)os_advise_dump(maps, r->map_bytes, false);
    r->present = maps;
    r->writable = r->present + words;
    r->made = r->writable + words;
    return 0;
}

static enum os_fork fork_of(const struct reservation_config *c) {
    switch (c->fork) {
        case ARENA_FORK_COPY: return OS_FORK_COPY;
        case ARENA_FORK_DROP: return OS_FORK_DROP;
        case ARENA_FORK_WIPE: return OS_FORK_WIPE;
        case ARENA_FORK_SHARE: return OS_FORK_SHARE;
        default: break;
    }
    return c->shared ? OS_FORK_SHARE : OS_FORK_COPY;
}

/* Maps what was opened. On failure nothing is mapped. */
static int map_backing(struct reservation *r, uint64_t align, const char **op) {
    void *base;
    *op = "mmap";
    if (align < OS_HUGE) align = OS_HUGE;
    if (align < r->backing.page) align = r->backing.page;
    int rc = address_space_reserve(&r->backing.mapping, r->backing.bytes, align, &base, &r->lazy);
    if (rc) return rc;
    r->base = base;
    rc = pages_advise(r, base, r->backing.bytes, op);
    if (rc == 0) {
        *op = "mmap of the page map";
        rc = make_maps(r);
    }
    if (rc) os_unmap(base, r->backing.bytes);
    return rc;
}

/* A shared mapping cannot be copied or wiped, and a private one not be shared. */
static bool can_fork(const struct reservation_config *c, enum os_fork fork) {
    if (c->shared) return fork != OS_FORK_COPY && fork != OS_FORK_WIPE;
    return fork != OS_FORK_SHARE;
}

/* With the backing open. */
static int set_up(struct reservation *r, const struct reservation_config *c, const char **op, char *where) {
    bool in_file = r->backing.mapping.fd >= 0;
    /* After an ordinary fork a write to a hugetlb page needs a second one, and is a SIGBUS where there is none. */
    if (r->backing.kind->pool && c->fork == ARENA_FORK_AUTO && !c->shared) r->fork = OS_FORK_DROP;
    r->page_shift = (unsigned)__builtin_ctzll(r->backing.page);
    r->pages = r->backing.bytes >> r->page_shift;
    struct preflight_report report;
    int rc = preflight_init(&r->preflight, c->headroom, !c->headroom_given, r->backing.node, &report);
    if (rc) {
        *op = "preflight";
        memcpy(where, report.where, sizeof report.where);
        return rc;
    }
    if (c->name) {
        r->name = strdup(c->name);
        if (!r->name) return -ENOMEM;
    }
    if (r->fork == OS_FORK_WIPE && (in_file || r->backing.kind->pool)) {
        *op = "fork";
        return -EINVAL;
    }
    return map_backing(r, c->align, op);
}

int reservation_init(struct reservation *r, const struct reservation_config *c, bool registered,
                     struct arena_error *error) {
    if (c->size == 0) return explain(error, -EINVAL, "size", 0, 0);
    *r = (struct reservation){.lock = {.rank = MUTEX_RANK_RESERVATION},
                              .fork = fork_of(c),
                              .dump = c->dump,
                              .mlocks = c->lock,
                              .features = c->features ? c->features : os_features(),
                              .peer_wait_ns = RESERVATION_PEER_NS};
    if (!can_fork(c, r->fork)) return explain(error, -EINVAL, "fork", 0, c->size);
    const char *op = "open";
    char where[sizeof error->where] = "";
    int rc = backing_open(&r->backing, c, &op, where, sizeof where);
    if (rc == 0) {
        rc = set_up(r, c, &op, where);
        if (rc) backing_close(&r->backing, c->path);
    }
    if (rc) {
        free((char *)r->name);
        explain(error, rc, op, 0, c->size);
        if (error) memcpy(error->where, where, sizeof where);
        return rc;
    }
    if (registered) {
        r->entry = (struct registry_entry){
            entry_before, entry_parent, entry_child, reservation_ranges, reservation_lock, r, NULL, NULL};
        registry_add(&r->entry);
    }
    return 0;
}

bool reservation_busy(struct reservation *r) {
    mutex_lock(&r->lock);
    struct reservation_users users = reservation_users(r, NULL);
    mutex_unlock(&r->lock);
    return users.op && !users.op->locking;
}

void reservation_undo(struct reservation *r, const char *unlink_path) {
    if (r->entry.self) registry_remove(&r->entry);
    if (!r->address_lost) os_unmap(r->base, bytes_of(r, r->pages));
    os_unmap(r->present, r->map_bytes);
    r->base = NULL;
    backing_close(&r->backing, unlink_path);
    free((char *)r->name);
}

/* Unmapping a present GiB of small pages holds the mmap_lock for 60 ms; giving it back first, in steps, does not. */
static void give_back_in_steps(struct reservation *r) {
    uint64_t step = (PAGES_STEP >> r->page_shift) + 1, end = r->present_end;
    for (uint64_t from = 0; from < end;) {
        uint64_t start = bit_next(r->present, from, end, true);
        from = bit_next(r->present, start, start + step < end ? start + step : end, false);
        if (from > start) (void)decommit_pages(r->features, at_page(r, start), bytes_of(r, from - start));
    }
}

/* -EBUSY: somebody uses it. 0, and *closed: it was before. */
static int refuse_from_now_on(struct reservation *r, bool *closed) {
    uint64_t asked = 0;
    mutex_lock(&r->lock);
    struct reservation_users users = reservation_users(r, NULL);
    bool busy = users.pinned || (users.op && !users.op->locking);
    *closed = r->refuse == -ESHUTDOWN;
    if (!busy) {
        r->refuse = -ESHUTDOWN;
        while (r->ops) (void)op_wait_for(r, r->ops, NULL, NULL, &asked); /* lock_memory() is soon done */
    }
    mutex_unlock(&r->lock);
    return busy ? -EBUSY : 0;
}

int reservation_close(reservation *r) {
    bool closed;
    int rc = refuse_from_now_on(r, &closed);
    if (rc || closed) return rc;
    if (!r->address_lost && !r->dropped) give_back_in_steps(r);
    registry_lock();
    reservation_undo(r, NULL);
    registry_unlock();
    return 0;
}

int reservation_create(const struct reservation_config *config, reservation **out, struct arena_error *error) {
    struct reservation *r = malloc(sizeof *r);
    if (!r) return explain(error, -ENOMEM, "malloc", 0, config->size);
    registry_lock();
    int rc = reservation_init(r, config, true, error);
    registry_unlock();
    if (rc)
        free(r);
    else
        *out = r;
    return rc;
}

int reservation_destroy(reservation *r) {
    int rc = reservation_close(r);
    if (rc == 0) free(r);
    return rc;
}

size_t reservation_ranges(void *self, struct registry_range out[REGISTRY_RANGES]) {
    const struct reservation *r = self;
    if (!r->base) return 0;
    out[0] = (struct registry_range){r->base, bytes_of(r, r->pages)};
    out[1] = (struct registry_range){(char *)r->present, r->map_bytes};
    return r->address_lost ? 0 : 2;
}

static struct reservation_op *overlapping(const struct reservation *r, uint64_t first, uint64_t end) {
    struct reservation_op *op = r->ops;
    while (op && (op->end <= first || end <= op->first)) op = op->next;
    return op;
}

/* Under the lock: the next piece, from *from on, that is committed and in nobody's hands. false: there is none. */
static bool next_to_lock(const struct reservation *r, uint64_t *from, struct reservation_op *op) {
    while ((op->first = bit_next(r->present, *from, r->present_end, true)) < r->present_end) {
        uint64_t limit = op->first + (LOCK_STEP >> r->page_shift) + 1;
        op->end = bit_next(r->present, op->first, limit < r->present_end ? limit : r->present_end, false);
        while (op->first < op->end) {
            struct reservation_op *other = overlapping(r, op->first, op->end);
            if (!other) break;
            other->left_out = true;
            if (other->first > op->first)
                op->end = other->first;
            else
                op->first = other->end;
        }
        *from = op->first > op->end ? op->first : op->end;
        if (op->first < op->end) return true;
    }
    return false;
}

/* Piece by piece, each an operation of its own, so that nobody waits for the lock and nobody releases what is being locked.
 * What somebody else commits or releases at this moment is left to that operation (pages_catch_up_with_mlockall). */
int reservation_lock(void *self, bool own) {
    struct reservation *r = self;
    bool some = r->base && (r->mlocks || !own);
    int rc = some && !own ? mlockall_present(r->features, r->present, r->map_bytes) : 0;
    for (uint64_t from = 0; rc == 0 && some;) {
        struct reservation_op op = {.locking = true};
        mutex_lock(&r->lock);
        some = !r->refuse && next_to_lock(r, &from, &op);
        if (some) op_begin(r, &op);
        mutex_unlock(&r->lock);
        if (!some) break;
        rc = pages_mlock(r, op.first, op.end);
        mutex_lock(&r->lock);
        op_end(r, &op);
    }
    return rc;
}

void reservation_get(reservation *r, struct reservation_stats *out) {
    mutex_lock(&r->lock);
    *out = (struct reservation_stats){.size = bytes_of(r, r->pages),
                                      .page_size = bytes_of(r, 1),
                                      .committed = bytes_of(r, r->refuse ? 0 : r->committed),
                                      .peak_committed = bytes_of(r, r->peak),
                                      .commits = r->commits,
                                      .releases = r->releases,
                                      .commit_ns = r->commit_ns,
                                      .release_ns = r->release_ns,
                                      .address = (uintptr_t)r->base,
                                      .backing = r->backing.kind->name,
                                      .lazy = r->lazy,
                                      .shared = r->backing.kind->shared,
                                      .readonly = r->backing.mapping.readonly,
                                      .dropped = r->dropped,
                                      .closed = r->refuse == -ESHUTDOWN};
    mutex_unlock(&r->lock);
}

int reservation_fd(reservation *r) {
    if (r->backing.mapping.fd >= 0) __atomic_store_n(&r->backing.peers, true, __ATOMIC_RELAXED);
    return r->backing.mapping.fd;
}

/* --- fork ------------------------------------------------------------------------------------------------------------- */

void reservation_before_fork(struct reservation *r) {
    mutex_lock(&r->lock);
    if (r->fork == OS_FORK_SHARE) __atomic_store_n(&r->backing.peers, true, __ATOMIC_RELAXED);
}

void reservation_after_fork_parent(struct reservation *r) {
    if (r->fork == OS_FORK_COPY) r->shared_epoch++;
    mutex_unlock(&r->lock);
}

/* The operations of threads that do not exist here: what they had half made present, or half given back, is absent. Shared
 * memory is left to the parent, where they go on. */
static void abandon(struct reservation *r, struct reservation_op *op) {
    bool shared = r->fork == OS_FORK_SHARE;
    if (!r->dropped && op->release) {
        bool gone;
        if (!shared) (void)pages_give_back(r, op->first, op->end, false, &gone);
        r->committed -= bit_fill(r->present, op->first, op->end, false);
        (void)bit_fill(r->writable, op->first, op->end, false);
    } else if (!r->dropped && !shared) {
        commit_roll_back(r, op);
    }
    commit_forget_made(r, op);
    op_remove(r, op);
}

/* Zero pages where the memory was: an array that still points there reads zeros instead of crashing the child. If that cannot
 * be had for all of the range, as something else was mapped there meanwhile, it is tried for what was ever committed; and
 * nothing of it is unmapped later. */
static void replace_dropped(struct reservation *r) {
    r->address_lost = address_space_fill(r->base, bytes_of(r, r->pages)) != 0;
    r->lost = r->address_lost && r->present_end && address_space_fill(r->base, bytes_of(r, r->present_end)) != 0;
}

void reservation_after_fork_child(struct reservation *r) {
    mutex_reset(&r->lock);
    r->waiters = 0;
    if (r->refuse == -ESHUTDOWN) {
        /* The thread that was about to unmap it stayed with the parent. What is dropped is not mapped here. */
        r->address_lost = r->address_lost || r->fork == OS_FORK_DROP;
        reservation_undo(r, NULL);
        return;
    }
    /* Of shared memory the child has no page mapped yet. */
    r->shared_epoch++;
    backing_after_fork_child(&r->backing);
    if (r->fork == OS_FORK_DROP && !r->dropped) {
        r->dropped = true;
        r->refuse = -ENOTCONN;
        backing_close(&r->backing,
                      NULL); /* a descriptor would keep the parent's memory once the parent has let it go */
        replace_dropped(r);
    }
    for (struct reservation_op *op = r->ops, *next; op; op = next) {
        next = op->next;
        if (!pthread_equal(op->thread, pthread_self())) {
            abandon(r, op);
            continue;
        }
        op_forget_lock(op);
        if (r->fork == OS_FORK_SHARE) op->owned_by_parent = true;
    }
    for (struct reservation_pin *p = r->pins, *next; p; p = next) {
        next = p->next;
        if (p->passing && !pthread_equal(p->thread, pthread_self())) LIST_REMOVE(r->pins, p);
    }
}
