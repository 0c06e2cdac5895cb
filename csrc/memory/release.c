#include <errno.h>

#include "memory/error.h"
#include "memory/pages.h"
#include "memory/reservation_op.h"
#include "sys/bitmap.h"
#include "sys/residency.h"
#include "sys/thread.h"

/* A release on its way. */
struct release {
    struct reservation *r;
    struct reservation_op *op;
    arena_progress progress;
    void *progress_arg;
    uint64_t began, asked; /* ns: `asked`: when progress was last called */
    struct arena_error *error; /* not NULL: it has failed, and the ledger is to be told there */
    uint64_t pages, got; /* that are absent now; that the machine got */
    uint64_t failed; /* the first page that could not be released */
};

/* --- begin -------------------------------------------------------------------------------------------------------- */

int reservation_release_begin(struct reservation *r, struct reservation_op *op, uint64_t offset, uint64_t bytes,
                              bool whole) {
    *op = (struct reservation_op){
        .first = offset >> r->page_shift, .end = (offset + bytes) >> r->page_shift, .release = true};
    mutex_lock(&r->lock);
    struct reservation_users users = reservation_users(r, op);
    int rc = r->refuse;
    if (rc == 0 && users.op) rc = pthread_equal(users.op->thread, pthread_self()) ? -EDEADLK : -EAGAIN;
    if (rc == 0 && users.pinned) rc = -EBUSY;
    if (rc == 0) {
        if (!whole) op_clip(r, op);
        op_begin(r, op);
    }
    mutex_unlock(&r->lock);
    return rc;
}

bool reservation_release_closes(const struct reservation *r) {
    return r->lazy || backing_is_mapped_anew(&r->backing, r->features);
}

/* --- pages -------------------------------------------------------------------------------------------------------- */

/* What the machine gets of a range that is released: from a file that keeps what it has, a private mapping's copies. */
static uint64_t gets(const struct release *rel, uint64_t first, uint64_t end) {
    const struct reservation *r = rel->r;
    if (rel->op->discard_end || !(backing_keeps(&r->backing) || rel->op->theirs))
        return bit_count(r->present, first, end);
    return r->backing.kind->shared ? 0 : bit_count(r->writable, first, end);
}

/* *gone: nothing is mapped there any more. */
static int give_back(const struct release *rel, uint64_t first, uint64_t end, bool *gone) {
    struct reservation *r = rel->r;
    *gone = false;
    int rc = pages_unlock(r, first, end);
    if (rc) return rc;
    if (!rel->op->theirs) return pages_give_back(r, first, end, false, gone);
    rc = pages_unmap(r, first, end);
    *gone = rc == 0;
    return rc;
}

static void book(struct release *rel, uint64_t first, uint64_t end, int rc) {
    struct reservation *r = rel->r;
    mutex_lock(&r->lock);
    if (rc == 0) rel->got += gets(rel, first, end);
    uint64_t cleared = bit_fill(r->present, first, end, false);
    (void)bit_fill(r->writable, first, end, false);
    r->committed -= cleared;
    mutex_unlock(&r->lock);
    rel->pages += cleared;
}

/* Releases present pages, and books them. What cannot be released whole, because of a page in the middle, or of a refusal
 * that was one for the moment, is released in halves, so that the ledger says in any case what is there. */
static int release_pages(struct release *rel, uint64_t first, uint64_t end) {
    struct reservation *r = rel->r;
    bool gone;
    int rc = give_back(rel, first, end, &gone);
    bool divisible = end - first > 1 && (rc == -ENOMEM || rc == -EINVAL);
    if (!gone && divisible) {
        uint64_t middle = first + (end - first) / 2;
        int left = release_pages(rel, first, middle);
        int right = release_pages(rel, middle, end);
        return left ? left : right;
    }
    /* Somebody has unmapped it: then it is not there, whatever is done about that. */
    if (rc == -ENOMEM && !os_is_mapped(at_page(r, first))) gone = true;
    if (rc && rel->failed > first) rel->failed = first;
    if (gone)
        book(rel, first, end, rc);
    else
        (void)pages_lock(r, first, end); /* as it was */
    return rc;
}

/* --- finish ------------------------------------------------------------------------------------------------------- */

/* Looks for signals now and then. */
static int ask(struct release *rel, uint64_t done, uint64_t total) {
    if (!rel->progress || os_now_ns() - rel->asked <= RESERVATION_WAIT_NS) return 0;
    int rc = rel->progress(rel->progress_arg, done, total);
    rel->asked = os_now_ns();
    return rc;
}

/* Whatever the file has in the range goes, committed here or not. */
static int discard(struct release *rel, struct arena_error *error) {
    struct reservation *r = rel->r;
    uint64_t page = bytes_of(r, 1), step = page < PAGES_STEP ? PAGES_STEP : page;
    uint64_t at = bytes_of(r, rel->op->first), end = bytes_of(r, rel->op->discard_end);
    while (at < end) {
        uint64_t n = end - at < step ? end - at : step;
        bool gone;
        int rc = pages_give_back(r, at >> r->page_shift, (at + n) >> r->page_shift, true, &gone);
        if (rc == 0) rc = ask(rel, at, end);
        if (rc) return explain(error, rc, "discard", at, n);
        at += n;
    }
    return 0;
}

static int release_run(struct release *rel, uint64_t first, uint64_t end, struct arena_error *error) {
    const struct reservation *r = rel->r;
    const struct reservation_op *op = rel->op;
    int rc = release_pages(rel, first, end);
    if (rc) return explain(error, rc, "release", bytes_of(r, rel->failed), bytes_of(r, end - rel->failed));
    rc = ask(rel, bytes_of(r, end - op->first), bytes_of(r, op->end - op->first));
    return rc ? explain(error, rc, "release", bytes_of(r, end), bytes_of(r, op->end - end)) : 0;
}

static int release_all(struct release *rel, struct reservation_op *op, struct arena_error *error) {
    struct reservation *r = rel->r;
    uint64_t step = bytes_of(r, 1) < PAGES_STEP ? PAGES_STEP >> r->page_shift : 1;
    for (uint64_t at = op->first; (at = bit_next(r->present, at, op->end, true)) < op->end;) {
        uint64_t limit = op->end - at < step ? op->end : at + step;
        uint64_t end = bit_next(r->present, at, limit, false);
        /* A private mapping has put nothing into a file that others know: what is there is theirs. */
        op->theirs = !r->backing.kind->shared && r->backing.mapping.fd >= 0 && !backing_alone(&r->backing);
        int rc = release_run(rel, at, end, error);
        if (rc) return rc;
        at = end;
    }
    return op->discard_end ? discard(rel, error) : 0;
}

static void finish(struct release *rel) {
    struct reservation *r = rel->r;
    op_unlock_peers(r, rel->op);
    mutex_lock(&r->lock);
    pages_catch_up_with_mlockall(r, rel->op); /* what could not be released stays present */
    if (rel->pages) r->releases++;
    r->release_ns += os_now_ns() - rel->began;
    if (rel->error) rel->error->committed = bytes_of(r, r->committed);
    op_end(r, rel->op);
}

/* See carry_out of commit.c. */
static void end_with_the_thread(void *arg) { finish(arg); }

static int carry_out(struct release *rel, struct arena_error *error) {
    int rc;
    pthread_cleanup_push(end_with_the_thread, rel);
    rc = op_lock_peers(rel->r, rel->op, rel->progress, rel->progress_arg);
    if (rc)
        op_explain_lock(rel->r, rel->op, rc, error);
    else
        rc = release_all(rel, rel->op, error);
    pthread_cleanup_pop(0);
    return rc;
}

int reservation_release_finish(struct reservation *r, struct reservation_op *op, uint64_t *freed,
                               arena_progress progress, void *arg, struct arena_error *error) {
    uint64_t began = os_now_ns();
    struct release rel = {.r = r,
                          .op = op,
                          .progress = progress,
                          .progress_arg = arg,
                          .began = began,
                          .asked = began,
                          .failed = UINT64_MAX};
    int rc = carry_out(&rel, error);
    if (rc) rel.error = error;
    finish(&rel);
    if (freed) *freed = bytes_of(r, rel.got);
    return rc;
}

/* --- both --------------------------------------------------------------------------------------------------------- */

static const char *refused_by(int rc) {
    switch (rc) {
        case -EDEADLK: return "re-entry";
        case -EBUSY: return "view";
        case -ESHUTDOWN: return "reservation";
        default: return "fork";
    }
}

/* Until what is in the way has ended. */
static int wait_for_others(struct reservation *r, const struct reservation_op *op, arena_progress progress, void *arg,
                           uint64_t *asked) {
    mutex_lock(&r->lock);
    const struct reservation_op *other = op_in_the_way(r, op->first, op->end, false);
    int rc = other ? op_wait_for(r, other, progress, arg, asked) : 0;
    mutex_unlock(&r->lock);
    return rc;
}

int reservation_release(reservation *r, uint64_t offset, uint64_t bytes, bool discard, uint64_t *freed,
                        arena_progress progress, void *arg, struct arena_error *error) {
    uint64_t size = bytes_of(r, r->pages), page = bytes_of(r, 1), none;
    if (!freed) freed = &none;
    *freed = 0;
    if (offset > size || bytes > size - offset) return explain(error, -EINVAL, "range", offset, bytes);
    uint64_t start = (offset + page - 1) & ~(page - 1), end = (offset + bytes) & ~(page - 1);
    if (start >= end) return 0;
    discard = discard && r->backing.mapping.fd >= 0 && (!r->backing.ours || !r->backing.kind->shared);
    if (discard && r->backing.mapping.readonly) return explain(error, -EACCES, "discard", offset, bytes);
    struct reservation_op op;
    uint64_t asked = 0;
    int rc = reservation_release_begin(r, &op, start, end - start, discard);
    while (rc == -EAGAIN) {
        rc = wait_for_others(r, &op, progress, arg, &asked);
        if (rc) return explain(error, rc, rc == -EDEADLK ? "re-entry" : "wait", offset, bytes);
        rc = reservation_release_begin(r, &op, start, end - start, discard);
    }
    if (rc) return explain(error, rc, refused_by(rc), offset, bytes);
    if (discard) op.discard_end = end >> r->page_shift;
    return reservation_release_finish(r, &op, freed, progress, arg, error);
}

bool reservation_fresh_is_zero(const struct reservation *r) { return backing_fresh_is_zero(&r->backing); }
