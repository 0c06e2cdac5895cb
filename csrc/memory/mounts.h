/* mounts.h: where a file system is mounted, and with what options. */
#ifndef ARENA_MOUNTS_H
#define ARENA_MOUNTS_H

#include <stdbool.h>
#include <stdint.h>

struct mount {
    char point[256]; /* empty where that cannot be told */
    bool huge;       /* tmpfs: a page fault gets huge pages there, after MADV_HUGEPAGE (mounted with huge=) */
};
/* The mount of a device, as os_file_look tells it. 0 also where there is none. -EMFILE, -ENFILE: it cannot be read; others as
 * open(2). */
int mounts_find(uint64_t device, struct mount *out);

#endif
