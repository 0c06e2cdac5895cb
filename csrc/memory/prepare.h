/* prepare.h: what is done in a file before a piece of its mapping is populated: blocks are allocated, for populating alone
 * would find a full file system too late; and pages that a commit is going to make are noted. By several threads. */
#ifndef ARENA_PREPARE_H
#define ARENA_PREPARE_H

#include <stdbool.h>
#include <stdint.h>

#include "memory/backing.h"

struct preparation {
    const char *base; /* where the file's beginning is mapped */
    const struct backing *backing; /* NULL: a memfd by itself, `fd` */
    int fd;
    bool write;
    uint64_t *made; /* a bit a page: pages that the file lacked are noted here. NULL: that is of no use */
    unsigned page_shift;
    bool *any_made; /* atomic */
    bool busy; /* atomic: a thread is allocating */
    bool refused; /* atomic: something failed, and it was the allocating */
};

/* -errno as backing_allocate. */
int prepare_piece(struct preparation *p, const char *at, uint64_t bytes);

#endif
