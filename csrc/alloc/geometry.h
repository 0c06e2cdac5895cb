/* geometry.h: the sizes of an arena, of its chunks and of its pages, which depend on each other. Pure. */
#ifndef ARENA_GEOMETRY_H
#define ARENA_GEOMETRY_H

#include "arena.h"

struct geometry {
    int rc;              /* 0, or -EINVAL */
    const char *refused; /* then: "size", "readonly", "chunk" */
    uint64_t size;       /* whole chunks */
    uint64_t chunk;
    uint64_t page;       /* bytes that can be released only as a whole */
    uint64_t page_bytes; /* for the reservation: a chunk of less than a huge page wants no larger pages than it is */
};

/* `page`: what the memory turned out to have, for a hugetlbfs file has the pages it has; 0: it is not known yet. */
struct geometry choose_geometry(const struct arena_config *config, uint64_t page);

#endif
