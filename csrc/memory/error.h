/* error.h: struct arena_error is filled in. It may be NULL; the answer is the rc that was given. */
#ifndef ARENA_ERROR_H
#define ARENA_ERROR_H

#include <errno.h>

#include "arena.h"

static inline int explain(struct arena_error *e, int rc, const char *op, uint64_t offset, uint64_t requested) {
    if (e) {
        *e = (struct arena_error){
            .err = -rc, .op = op, .offset = offset, .requested = requested, .available = UINT64_MAX};
    }
    return rc;
}

/* Of a reservation that is closed or dropped. */
static inline int explain_refusal(struct arena_error *e, int rc, uint64_t offset, uint64_t requested) {
    return explain(e, rc, rc == -ESHUTDOWN ? "reservation" : "fork", offset, requested);
}

#endif
