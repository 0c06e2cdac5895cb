/* hugepages.h: what /sys says of huge pages: the switches of transparent ones, and the pools of hugetlb pages. */
#ifndef ARENA_HUGEPAGES_H
#define ARENA_HUGEPAGES_H

#include <stdbool.h>
#include <stdint.h>

/* The word in brackets of a switch; ABSENT: the kernel has no such switch, or does not let it be read. */
enum os_thp {
    OS_THP_ABSENT,
    OS_THP_NEVER,
    OS_THP_ALWAYS,
    OS_THP_MADVISE,
    OS_THP_INHERIT,
    OS_THP_ADVISE,
    OS_THP_WITHIN_SIZE,
    OS_THP_DENY,
    OS_THP_FORCE,
    OS_THP_OTHER /* a word that this list does not have */
};
/* The switch for transparent huge pages of so many bytes (Linux 6.8), or the one for all sizes (0); of private anonymous
 * memory, or of shared memory. -EMFILE, -ENFILE: its file cannot be read. */
int os_thp_switch(uint64_t bytes, bool shared);

/* A hugetlb pool, in pages of a size: those that there are and those of them that are free, on one NUMA node or (node < 0)
 * on all; and on all, those of the free ones that are reserved for somebody, those beyond the pool's size that were made, and
 * how many such may be made. *where: the file that says what is free. All 0: there is no pool of this size. -EMFILE,
 * -ENFILE: its files cannot be read. */
struct os_hugetlb {
    uint64_t pages, free, reserved, surplus, surplus_max;
    char where[96];
};
int os_hugetlb(uint64_t page, int node, struct os_hugetlb *out);

#endif
