/* commit.h: a commit on its way. It begins (other operations in the range are waited for), populates (after a look at what
 * the machine has left, and with peers in other processes kept out), and ends (the page map and the ledger are brought up
 * to date). A failure in any of these is told from what is noted here. */
#ifndef ARENA_COMMIT_H
#define ARENA_COMMIT_H

#include "memory/pages.h"
#include "memory/populate.h"
#include "memory/prepare.h"
#include "memory/reservation_op.h"

/* Which pages of the range are populated. */
enum commit_pages {
    NOTHING, /* there is nothing to do */
    UNLESS_RELEASED, /* the same, unless a release is under way: it is waited for, and looked again */
    ABSENT, /* what is not there, or cannot be written */
    ALL, /* those too that a fork has made copy-on-write */
    COMMITTED /* what can be written already, and nothing else */
};

enum commit_step { RANGE, READONLY, REFUSED, WAIT, PREFLIGHT, PEERS, PROTECT, MLOCK, POPULATE, POPULATE_READ };

struct commit {
    struct reservation *r;
    uint64_t offset, bytes; /* as asked for */
    bool write;
    unsigned threads;
    arena_progress progress;
    void *progress_arg;

    struct reservation_op op;
    enum commit_pages pages;
    uint32_t epoch; /* the reservation's shared_epoch when it began */
    enum commit_step step; /* what is being done, and has failed perhaps */
    struct preparation preparation;
    struct populate populate;
};

/* Gives back what is absent in the page map and is the operation's own (reservation.h); the rest is unmapped. What was
 * readable stays, though it takes memory now: somebody may have written there. */
void commit_roll_back(struct reservation *r, const struct reservation_op *op);
/* Empties `made` in the operation's range. */
void commit_forget_made(struct reservation *r, const struct reservation_op *op);
/* Why it failed. What refused says so itself; only where the kernel said no, and nobody had looked, is it looked now what
 * there is. */
int commit_explain(const struct commit *c, int rc, struct arena_error *error);

#endif
