/* forks.h: every reservation and arena of this process: they have to be in a sane state in the child of a fork, and what is
 * sparse of them is not to be populated by who locks all memory (lockall.h).
 *
 * pthread_atfork handlers walk this list: before the fork every lock is taken, so that the child sees no half-done index
 * work; afterwards the parent drops them and the child makes them new. */
#ifndef ARENA_FORKS_H
#define ARENA_FORKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FORKS_RANGES 8 /* at most, of one */

struct fork_range {
    char *base;
    size_t bytes;
};

struct fork_watch {
    void (*before)(void *self);
    void (*parent)(void *self);
    void (*child)(void *self);
    size_t (*ranges)(void *self, struct fork_range out[FORKS_RANGES]); /* its mappings */
    /* mlocks what is present of them; `own`: what it is to keep locked in any case, and no more. */
    int (*lock)(void *self, bool own);
    void *self;
    struct fork_watch *next, *prev;
};

/* Between these nobody forks or goes through the list: a mapping is made and put there, or unmapped and taken away, as one
 * step. Not recursive. */
void forks_hold(void);
void forks_let_go(void);
/* To be called between them. */
void forks_watch(struct fork_watch *w);
void forks_forget(struct fork_watch *w);
const struct fork_watch *forks_first(void);

/* Moves in the child of every fork: compared, never interpreted. */
extern uint32_t forks_count __attribute__((visibility("hidden")));

#endif
