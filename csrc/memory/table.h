/* table.h: bookkeeping memory. A sparse array that is populated by parts, on demand and on purpose: an index must not fault
 * where the memory it manages does not. Not thread-safe but for parts that do not overlap. */
#ifndef ARENA_TABLE_H
#define ARENA_TABLE_H

#include <stdbool.h>
#include <stddef.h>

#include "sys/features.h"

struct table {
    char *base;
    size_t bytes; /* whole pages */
    bool lazy;
    const struct os_features *features;
};

int table_reserve(struct table *t, size_t bytes, const struct os_features *features);
/* Makes [offset, offset + bytes), rounded outward to pages and cut at the end, present and zero if new. -ENOMEM. */
int table_populate(struct table *t, size_t offset, size_t bytes);
/* All of it is absent and zero again. */
void table_clear(struct table *t);
void table_unmap(struct table *t);

#endif
