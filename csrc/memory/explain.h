/* explain.h: failures whose reason has to be found out. The error may be NULL. */
#ifndef ARENA_EXPLAIN_H
#define ARENA_EXPLAIN_H

#include "memory/error.h"
#include "memory/preflight.h"

/* What mlock was refused: *e is filled already, but for the limit that said no. */
void explain_mlock(struct arena_error *e);
/* What a preflight has seen. */
void explain_report(struct arena_error *e, const struct preflight_report *report);

#endif
