/* reservation_op.h: what the parts of the reservation share: operations on ranges of pages, and who waits for whom. */
#ifndef ARENA_RESERVATION_OP_H
#define ARENA_RESERVATION_OP_H

#include "memory/reservation.h"
#include "sys/thread.h"

#define RESERVATION_WAIT_NS 10000000u /* how often a waiter looks for signals */
#define RESERVATION_PEER_NS ((uint64_t)60 * 1000000000u)

/* The pages of a range, rounded outward. false: it is not in the reservation. */
bool reservation_pages_of(const struct reservation *r, uint64_t offset, uint64_t bytes, uint64_t *first, uint64_t *end);

/* Under the lock: an operation that overlaps. */
struct reservation_op *op_in_the_way(const struct reservation *r, uint64_t first, uint64_t end, bool releases_only);
void op_begin(struct reservation *r, struct reservation_op *op);
void op_remove(struct reservation *r, struct reservation_op *op);
/* Ends the operation and drops the lock. */
void op_end(struct reservation *r, struct reservation_op *op);
/* Waits, with the lock dropped meanwhile, until some operation ends or it is time to look for signals; *asked: when that was
 * last. -EDEADLK: it would wait for itself, at once or by way of others who wait in their progress calls. */
int op_wait_for(struct reservation *r, const struct reservation_op *other, arena_progress progress, void *arg,
                uint64_t *asked);
/* What was never committed is not walked over: 64 TiB of holes cost nothing. */
void op_clip(const struct reservation *r, struct reservation_op *op);
/* Peers in other processes keep out of the range of an operation in between. What progress returned; or, with
 * op->refused, why the lock cannot be had: -EBUSY where a peer has it for longer than a thread to which no signal
 * comes may wait. */
int op_lock_peers(struct reservation *r, struct reservation_op *op, arena_progress progress, void *arg);
void op_unlock_peers(struct reservation *r, struct reservation_op *op);
/* In the child of a fork: the lock is the parent's. */
void op_forget_lock(struct reservation_op *op);
/* As explain, for what op_lock_peers answered. */
int op_explain_lock(const struct reservation *r, const struct reservation_op *op, int rc, struct arena_error *e);

/* As reservation_pin, for a call that the child of a fork in another thread will not see the end of. */
int reservation_pin_for_call(struct reservation *r, struct reservation_pin *p, uint64_t offset, uint64_t bytes,
                             bool write);

#endif
