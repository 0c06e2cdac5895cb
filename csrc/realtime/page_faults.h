/* page_faults.h: the page faults of the calling thread, between any two places, by getrusage(2), RUSAGE_THREAD.
 *
 * A span is opened and closed by one thread. Spans nest, and may overlap. Each thread has a list of its own, so that there is
 * no lock here, and no system call but the two. */
#ifndef ARENA_PAGE_FAULTS_H
#define ARENA_PAGE_FAULTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "realtime/fault_watch.h"

struct page_faults {
    int64_t minor, major;
    uint64_t tag;
    uint64_t from, to; /* in this thread's watch */
    int unwatched;     /* why nothing is to be found there: an errno; 0: it was watched, or was not to be */
};

/* A number that no other owner in this process has. */
uint64_t page_faults_owner(void);

/* What a thread's first span needs, so that opening it does not fault. -ENOMEM. */
int page_faults_ready(void);
/* Opens a span. watch: note addresses too; that this thread may not is not an error. tag: what the owner knows this span by.
 * -ENOMEM. */
int page_faults_open(uint64_t owner, bool watch, uint64_t tag);
/* The owner's span that was opened last: so far, or to the end. -ESRCH: this thread has none. */
int page_faults_so_far(uint64_t owner, struct page_faults *out);
int page_faults_close(uint64_t owner, struct page_faults *out);
/* The faults whose addresses were noted in a span that was just closed, the first ones. */
size_t page_faults_where(const struct page_faults *span, struct fault_record *out, size_t n);

#endif
