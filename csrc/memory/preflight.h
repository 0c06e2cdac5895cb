/* preflight.h: may so much be committed, before a memory cgroup's limit or the machine's memory is reached?
 *
 * Populating past a memory cgroup's limit ends in SIGKILL, not in an error, so what is left (machine.h) is looked at first:
 * once for a commit as a whole, and then for each step of it.
 *
 * - One account for the process (and one for each NUMA node that memory is bound to): bytes *in flight*, which were granted
 *   and may not yet be in the kernel's figures, are added before a look and taken off after the populate. So threads that
 *   commit at the same time do not each take the same free bytes for theirs.
 * - A look costs some 20 µs, so a 64th of what was left is given out without looking again, for 0.1 s at most.
 * - Near a limit nothing is given out unseen: threads take turns step by step, and so do processes of a cgroup as far as
 *   they use this package (machine_lock). Others may still allocate between the look and the populate: that is what the
 *   headroom is for. Who does not get the lock within 2 s goes on without it. */
#ifndef ARENA_PREFLIGHT_H
#define ARENA_PREFLIGHT_H

#include <stdbool.h>
#include <stdint.h>

#include "memory/machine.h"

struct preflight_report {
    uint64_t available; /* bytes, headroom already taken off */
    char where[MACHINE_WHERE]; /* the file that says so, or that could not be read */
};

struct preflight {
    uint64_t headroom; /* bytes that are left to the rest of the program and its neighbours */
    bool
        by_default; /* instead of that: 16 MiB, 256 KiB for each thread, and what everybody else was seen to take in the last
                      * second or so (up to 64 MiB), but no more than an eighth of the limit */
    int node; /* of which the memory is to come; -1: any */
};

/* What was granted for a step. */
struct preflight_grant {
    uint64_t bytes;
    int lockable;
    bool turn, locked;
    struct preflight_report seen; /* of a refusal: what there was */
};

/* Called by a thread that waits, at least every 10 ms, and without any lock held. Not 0: the wait is over, with that -errno. */
typedef int (*preflight_ask)(void *arg);

/* -EMFILE and the like: the files that say the limits cannot be opened, and *out says which. */
int preflight_init(struct preflight *p, uint64_t headroom, bool by_default, int node, struct preflight_report *out);
int preflight_read(const struct preflight *p, struct preflight_report *out);

/* May so much be committed as a whole? 0: it is *promised*, and other commits as a whole are refused what is lacking with
 * it; *promised: so many bytes, 0 for what is one step anyhow. -ENOMEM, or -errno of a file that could not be read, with
 * *out filled. */
int preflight_whole(const struct preflight *p, uint64_t bytes, uint64_t *promised, struct preflight_report *out);
/* So much of a promise is populated, or not wanted any more. */
void preflight_keep_promise(uint64_t bytes);

/* For the time of a step. 0: granted, and preflight_end follows once it is populated. -ENOMEM: not that much is there; or
 * what `ask` said, or -errno of a file that could not be read; grant->seen says what there was, and where. Thread-safe, and uses little stack. */
int preflight_begin(const struct preflight *p, uint64_t bytes, preflight_ask ask, void *arg,
                    struct preflight_grant *grant);
void preflight_end(struct preflight_grant *grant);

/* As machine_look had it last. */
bool preflight_oom_killer_off(void);

#endif
