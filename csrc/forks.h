/* forks.h: who has to be in a sane state in the child of a fork.
 *
 * pthread_atfork handlers walk this list: before the fork every lock is taken, so that the child sees no half-done index
 * work; afterwards the parent drops them and the child makes them new. */
#ifndef ARENA_FORKS_H
#define ARENA_FORKS_H

#include <stdint.h>

struct fork_watch {
    void (*before)(void *self);
    void (*parent)(void *self);
    void (*child)(void *self);
    void *self;
    struct fork_watch *next, *prev;
};

void forks_watch(struct fork_watch *w);
void forks_forget(struct fork_watch *w);

/* Moves in the child of every fork: compared, never interpreted. */
extern uint32_t forks_count __attribute__((visibility("hidden")));

#endif
