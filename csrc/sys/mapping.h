/* mapping.h: address space is mapped, made accessible, mapped anew and unmapped. */
#ifndef ARENA_MAPPING_H
#define ARENA_MAPPING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What is mapped: private anonymous memory by default. */
struct os_mapping {
    int fd; /* -1: anonymous */
    bool shared, readonly;
    bool device;      /* its driver wants to see at once what it is mapped for */
    uint64_t hugetlb; /* anonymous, of the pool with pages of so many bytes; else 0 */
};
extern const struct os_mapping os_anonymous;

enum os_access { OS_NO_ACCESS, OS_READ, OS_READ_WRITE };

/* mmap(2) from the beginning of the file, where the kernel likes, without a reservation of memory (MAP_NORESERVE).
 * -ENOMEM: address space (RLIMIT_AS), overcommit, or vm.max_map_count. -EAGAIN: RLIMIT_MEMLOCK, under mlockall(MCL_FUTURE)
 * and for a file whose pages are always locked. -EACCES, -EPERM, -ENODEV, …: the file does not allow it. */
int os_map(const struct os_mapping *what, size_t bytes, enum os_access access, void **out);
/* The same at exactly this address, where nothing may be mapped: -EEXIST. */
int os_map_exactly(const struct os_mapping *what, void *addr, size_t bytes, enum os_access access);
/* mremap(2) to a larger size; where *addr may move, on return it says where the mapping is. Unlike mmap(2), this counts
 * nothing against RLIMIT_MEMLOCK where the mapping is not locked. -ENOMEM: as os_map; and what is mapped behind it, if it may
 * not move. */
int os_grow(void **addr, size_t bytes, size_t larger, bool may_move);
/* -ENOMEM: vm.max_map_count does not let the range be cut out of a mapping that the kernel has merged with others. What the
 * range held of private memory is given back, and the address space is too with a later call. The caller has done with it in
 * any case. */
int os_unmap(void *addr, size_t bytes);
/* The same, but what cannot be cut off stays mapped, and the caller's. */
int os_cut_off(void *addr, size_t bytes);

/* mprotect(2), for reading and writing, or for reading alone. -ENOMEM: overcommit mode 2, where private writable memory is
 * charged; RLIMIT_DATA; vm.max_map_count. */
int os_make_accessible(void *addr, size_t bytes);
int os_make_readable(void *addr, size_t bytes);
/* Releases a range, uncharges it and takes all access away. The kernel keeps the charge at a mere mprotect, so the range is
 * mapped anew, at its offset in the file; the caller repeats its advice. When it fails the range is still the caller's. */
int os_decommit_lazy(const struct os_mapping *what, void *addr, size_t bytes, uint64_t offset);
/* The same, and the range has the access that its kind of mapping has. When only that is refused, the range is given back all
 * the same and the answer is 0: a later os_populate answers that it has no access. */
int os_map_anew(const struct os_mapping *what, void *addr, size_t bytes, uint64_t offset);

/* msync(MS_SYNC): what was written to a shared mapping of a file is on its disk. -EIO, -ENOSPC, -EDQUOT: it cannot be had
 * there. -EINTR: some file systems. */
int os_flush(void *addr, size_t bytes);

#endif
