/* advice.h: what the kernel is told of a range: madvise(2), mbind(2), names. */
#ifndef ARENA_ADVICE_H
#define ARENA_ADVICE_H

#include <stdbool.h>
#include <stddef.h>

#include "sys/features.h"

/* madvise(2). -ENOMEM also for an EAGAIN that does not pass: it is the kernel's lack of memory, but vm.max_map_count too,
 * where a mapping would have to be split. */
int os_madvise(void *addr, size_t bytes, int advice);

/* MADV_DONTNEED: the pages are not mapped any more. Private copies are gone with that, shared memory is not. -ENOMEM: a part
 * of the range is not mapped at all; the rest was done. -EINVAL, and what comes before it in the range was done: locked
 * memory, a driver's own pages, and pages of the hugetlb pool on kernels without `dontneed_hugetlb`. */
int os_dontneed(void *addr, size_t bytes);
/* MADV_DONTNEED_LOCKED: the same of locked memory too, which stays locked. For kernels with `dontneed_locked`. */
int os_dontneed_locked(void *addr, size_t bytes);
/* MADV_REMOVE: frees shared memory that has no descriptor, for everybody. -EINVAL: locked memory. */
int os_madvise_remove(void *addr, size_t bytes);

int os_advise_huge(void *addr, size_t bytes, bool huge);
int os_advise_dump(void *addr, size_t bytes, bool dump);
enum os_fork { OS_FORK_COPY, OS_FORK_SHARE, OS_FORK_DROP, OS_FORK_WIPE };
/* COPY and SHARE are what the mapping does by itself. */
int os_advise_fork(void *addr, size_t bytes, enum os_fork fork);
/* Memory of the range comes from this NUMA node and no other. -EINVAL: no such node. -ENOSYS: a kernel without NUMA. */
int os_bind(void *addr, size_t bytes, int node);
/* The name that /proc/self/maps shows for private anonymous memory. -EINVAL: not on this kernel. */
int os_set_name(void *addr, size_t bytes, const char *name);
/* The same as far as it goes: kernels without `vma_names` are not asked. */
void os_name(const struct os_features *f, void *addr, size_t bytes, const char *name);

#endif
