/* address_space.h: address space is reserved, in the way that this kernel and its limits allow. */
#ifndef ARENA_ADDRESS_SPACE_H
#define ARENA_ADDRESS_SPACE_H

#include <stdbool.h>
#include <stddef.h>

#include "sys/mapping.h"

/* Reserves address space without memory or (outside overcommit mode 2) commit charge, at a multiple of align.
 * *lazy on return: the pages have no access, and os_make_accessible has to be called before they are populated; chosen, for
 * private writable mappings, in overcommit mode 2 and where RLIMIT_DATA forbids the whole range.
 * -ENOMEM: address space (RLIMIT_AS) or overcommit. -EAGAIN: RLIMIT_MEMLOCK, for pages of the hugetlb pool under
 * mlockall(MCL_FUTURE) and for a file whose pages are always locked. -EACCES, -EPERM, -ENODEV, …: the file does not allow it,
 * as mmap(2). */
int address_space_reserve(const struct os_mapping *what, size_t bytes, size_t align, void **out, bool *lazy);
/* Zero pages at exactly this range, which must be free: -EEXIST. They can be read at least. */
int address_space_fill(void *addr, size_t bytes);

#endif
