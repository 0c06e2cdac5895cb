/* vm_copy.h: copies between memory of this process by the kernel's hand, where a copy of ours could be a signal. */
#ifndef ARENA_VM_COPY_H
#define ARENA_VM_COPY_H

#include <stdbool.h>
#include <stddef.h>

/* process_vm_readv or _writev. -EFAULT: a part of `memory` is not (or no longer) there; -EPERM. Part may be copied then. */
int os_vm_copy(void *memory, void *buffer, size_t bytes, bool into_memory);

#endif
