/* explain.h: failures as struct arena_error. The error may be NULL; all of these answer the rc that they are given. */
#ifndef ARENA_EXPLAIN_H
#define ARENA_EXPLAIN_H

#include "arena.h"
#include "memory/preflight.h"

int explain(struct arena_error *e, int rc, const char *op, uint64_t offset, uint64_t requested);
/* Of a reservation that is closed or dropped. */
int explain_refusal(struct arena_error *e, int rc, uint64_t offset, uint64_t requested);
/* What mlock was refused: *e is filled already, but for the limit that said no. */
void explain_mlock(struct arena_error *e);
/* What a preflight has seen. */
void explain_report(struct arena_error *e, const struct preflight_report *report);

#endif
