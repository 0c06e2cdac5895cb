#include "memory/explain.h"
#include "sys/mlock.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "memory/commit.h"

void explain_mlock(struct arena_error *e) {
    uint64_t limit, locked;
    if (!e) return;
    os_mlock_limit(&limit, &locked);
    e->available = limit;
    if (limit != UINT64_MAX) e->available = limit > locked ? limit - locked : 0;
    if (e->available < e->requested) strcpy(e->where, "RLIMIT_MEMLOCK");
}

void explain_report(struct arena_error *e, const struct preflight_report *report) {
    if (!e) return;
    e->available = report->available;
    memcpy(e->where, report->where, sizeof e->where);
}

/* --- a commit ----------------------------------------------------------------------------------------------------- */

/* Steps that are called by the system call that failed, or by what refused. */
static const char *name_of(const struct commit *c) {
    switch (c->step) {
        case RANGE: return "range";
        case READONLY: return "readonly";
        case PREFLIGHT: return "preflight";
        case PROTECT: return "mprotect";
        case MLOCK: return "mlock";
        default: break;
    }
    if (c->populate.refused) return "preflight";
    if (c->step == POPULATE_READ) return "madvise(MADV_POPULATE_READ)";
    if (c->preparation.refused) return "fallocate";
    return c->write ? "madvise(MADV_POPULATE_WRITE)" : "madvise(MADV_POPULATE_READ)";
}

/* mprotect adds to what the process may have at most. false: that is not known to be too little. */
static bool explain_charge(const struct commit *c, struct arena_error *e) {
    struct machine_look charge;
    machine_charge(c->populate.total, &charge);
    e->available = charge.available;
    memcpy(e->where, charge.where, sizeof e->where);
    return charge.available != UINT64_MAX;
}

/* The kernel has refused memory, and not for what the backing has left: then it was the machine, or a limit. */
static void explain_machine(const struct commit *c, int rc, struct arena_error *e) {
    bool no_descriptor = rc == -EMFILE || rc == -ENFILE;
    unsigned costs = pages_cost(c->r, true);
    if (costs == 0 || e->available != UINT64_MAX || !(rc == -ENOMEM || rc == -EFAULT || no_descriptor)) return;
    struct preflight_report machine;
    int unread = preflight_read(&c->r->preflight, &machine);
    if (no_descriptor && !unread) return; /* it was another file that could not be opened */
    explain_report(e, &machine);
    if (no_descriptor) e->available = UINT64_MAX;
    if (e->available != UINT64_MAX) e->available /= costs;
}

/* Of what the kernel said while nobody had looked. */
static int explain_kernel(const struct commit *c, int rc, struct arena_error *e) {
    if (c->step == PROTECT && rc == -ENOMEM && explain_charge(c, e)) return rc;
    rc = backing_explain(&c->r->backing, rc, bytes_of(c->r, c->op.end), c->populate.total, e);
    e->err = -rc;
    explain_machine(c, rc, e);
    return rc;
}

/* What could still be had when a step was refused, and what the commit itself had and has given back. */
static void explain_step(const struct commit *c, struct arena_error *e) {
    const struct populate *p = &c->populate;
    explain_report(e, &p->report);
    if (e->available != UINT64_MAX && p->costs) e->available = e->available / p->costs + p->done;
}

int commit_explain(const struct commit *c, int rc, struct arena_error *error) {
    struct reservation *r = c->r;
    struct arena_error unused, *e = error ? error : &unused;
    switch (c->step) {
        case RANGE: return explain(e, rc, "range", c->offset, c->bytes);
        case REFUSED: return explain_refusal(e, rc, c->offset, c->bytes);
        case WAIT: return explain(e, rc, rc == -EDEADLK ? "re-entry" : "wait", c->offset, c->bytes);
        case PEERS: op_explain_lock(r, &c->op, rc, e); break;
        default: explain(e, rc, name_of(c), c->offset, c->step == READONLY ? c->bytes : c->populate.total); break;
    }
    mutex_lock(&r->lock);
    e->committed = bytes_of(r, r->committed);
    mutex_unlock(&r->lock);
    switch (c->step) {
        case READONLY:
        case PEERS: break;
        case MLOCK: explain_mlock(e); break;
        case PREFLIGHT: explain_report(e, &c->populate.report); break;
        default:
            if (c->populate.refused)
                explain_step(c, e);
            else
                return explain_kernel(c, rc, e);
    }
    return rc;
}
