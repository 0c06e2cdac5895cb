/* fault_in.h: pages are faulted in: by a call, by a touch, or by the kernel's touch. */
#ifndef ARENA_FAULT_IN_H
#define ARENA_FAULT_IN_H

#include <stdbool.h>
#include <stddef.h>

/* MADV_POPULATE_WRITE or _READ, for kernels with `populate`. -EFAULT, -ENOMEM, -EHWPOISON, -EINVAL as madvise(2); a part may
 * be populated then. */
int os_populate(void *addr, size_t bytes, bool write);
/* Faults in every page of `page` bytes by an atomic OR of 0 into its last byte, which cannot lose another thread's
 * write; or by a load. Only for private anonymous memory: there is no answer but a signal when it fails. */
void os_touch(void *addr, size_t bytes, size_t page, bool write);
/* The same by the kernel's hand: an atomic OR of 0 (futex(2), FUTEX_WAKE_OP) or a load (FUTEX_WAIT), 2 to 4 µs a page,
 * which answers -EFAULT or -ENOMEM where a touch of ours would be a SIGBUS. For kernels without `populate`. */
int os_touch_carefully(void *addr, size_t bytes, size_t page, bool write);

#endif
