/* residency.h: what of a range is present. */
#ifndef ARENA_RESIDENCY_H
#define ARENA_RESIDENCY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "sys/features.h"

/* What the kernel says of a range, in bytes. */
struct os_residency {
    uint64_t present, huge, zero, swapped;
};
/* Without `pagemap_scan` huge and zero pages cannot be told apart: they are 0. */
int os_residency(const struct os_features *f, const void *addr, size_t bytes, struct os_residency *out);
/* Adds to *count the bytes present that others have mapped too, as after a fork; all of them, where that cannot be told.
 * -EMFILE, -ENFILE. */
int os_mapped_by_others(const void *addr, size_t bytes, uint64_t *count);
/* mincore(2): bit 0 of each byte, one for each OS_PAGE: present. -ENOMEM: a part of the range is not mapped. */
int os_mincore(void *addr, size_t bytes, unsigned char *present);
/* Is there anything mapped at this page? */
bool os_is_mapped(void *page);

#endif
