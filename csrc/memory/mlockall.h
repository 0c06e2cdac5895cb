/* mlockall.h: mlockall(2) for a process with sparse reservations.
 *
 * mlockall(MCL_CURRENT) populates every reservation whole. Here all mappings but ours are locked one by one, of ours what is
 * committed, and, with `future`, what will be. Under RLIMIT_MEMLOCK only that counts. */
#ifndef ARENA_MLOCKALL_H
#define ARENA_MLOCKALL_H

#include "arena.h"
#include "sys/features.h"

/* Locks what is mapped now (current), what will be mapped or committed (future); on_fault: without populating what is not
 * there. -ENOMEM, -EPERM: RLIMIT_MEMLOCK (error->requested more, with error->committed locked, than error->available);
 * then all is unlocked as by munlockall_sparse. */
int mlockall_sparse(bool current, bool future, bool on_fault, struct arena_error *error);
/* All of it, but for what reservations with `lock` have committed. */
int munlockall_sparse(void);
/* Is what is committed to be locked? Not in the child of a fork, which inherits no locks. */
bool mlockall_in_force(void);
/* mlocks the parts of private anonymous memory that are present, whose pages are then this process's own: after a fork they
 * were copy-on-write. */
int mlockall_present(const struct os_features *f, void *addr, size_t bytes);
/* Moves whenever locks may go or come: whoever locked something meanwhile has to look whether it still is. */
uint32_t mlockall_generation(void);

#endif
