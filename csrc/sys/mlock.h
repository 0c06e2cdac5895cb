/* mlock.h: memory that the kernel may not take away. */
#ifndef ARENA_MLOCK_H
#define ARENA_MLOCK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* mlock2(MLOCK_ONFAULT): what is present is locked, and what will be. -ENOMEM: RLIMIT_MEMLOCK, or vm.max_map_count.
 * -EPERM: RLIMIT_MEMLOCK is 0. The kernel locks whole ranges of address space, populated or not, and counts them so. */
int os_mlock(void *addr, size_t bytes);
int os_munlock(void *addr, size_t bytes);
/* mlock(2), which also populates what can be: what cannot, as beyond the end of a file, is left out. */
void os_mlock_whole(void *addr, size_t bytes);
/* mlockall(2) of what is mapped from now on, with or without MCL_ONFAULT; munlockall(2). */
int os_mlock_future(bool on_fault);
int os_munlock_all(void);
/* Bytes that this process may lock, and has locked. UINT64_MAX: it may lock all it likes (CAP_IPC_LOCK). */
void os_mlock_limit(uint64_t *limit, uint64_t *locked);

#endif
