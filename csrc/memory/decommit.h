/* decommit.h: pages are taken out of a mapping, whoever has locked them. */
#ifndef ARENA_DECOMMIT_H
#define ARENA_DECOMMIT_H

#include <stddef.h>

#include "sys/features.h"

/* The pages are not mapped any more. Private copies are gone with that, shared memory is not. Locked memory stays locked.
 * Where a part of the range is not mapped at all: -ENOMEM, after the rest was done. -EINVAL, and what comes before it in the
 * range was done: a driver's own pages; without `dontneed_hugetlb` those of the hugetlb pool, for which there is
 * os_map_anew. */
int decommit_pages(const struct os_features *f, void *addr, size_t bytes);
/* Frees shared memory that has no descriptor, for everybody. Locked memory stays locked. */
int decommit_shared(void *addr, size_t bytes);

#endif
