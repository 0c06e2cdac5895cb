/* huge_pages.h: which huge pages there are to be had. */
#ifndef ARENA_HUGE_PAGES_H
#define ARENA_HUGE_PAGES_H

#include <stdbool.h>
#include <stdint.h>

/* Are huge pages of so many bytes (64 KiB: mTHP, Linux 6.8; 2 MiB: THP) to be had by asking for them (MADV_HUGEPAGE), as /sys
 * says now: for private anonymous memory, or for shared memory without a mount of its own (memfd)? 1 or 0, or -EMFILE and
 * -ENFILE. */
int huge_pages_allowed(uint64_t bytes, bool shared);
/* The same of the files of a tmpfs mount: what its huge= says. */
int huge_pages_allowed_on(uint64_t device, uint64_t bytes);

/* A hugetlb pool, in bytes: how much it could still give, on one NUMA node or (node < 0) on all, surplus pages included, and
 * how much it has in all, those that could be made included. *where: the file that says so. 0: there is no pool of this size.
 * -EMFILE, -ENFILE: its files cannot be read. */
struct huge_page_pool {
    uint64_t total, free;
    char where[96];
};
int huge_page_pool(uint64_t page, int node, struct huge_page_pool *out);

#endif
