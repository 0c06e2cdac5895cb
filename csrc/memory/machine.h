/* machine.h: how much memory this process may still have: what its memory cgroups and the machine say at this moment.
 *
 * available = min(over this process's memory cgroups up to the root, v1 and v2: limit - (usage - file cache);
 *                 MemAvailable; on a NUMA node: MemFree + file cache there)
 * where memory.high counts as a limit, and active and inactive file pages count as free, for the kernel reclaims them
 * first; locked file pages are neither, and count as used.
 *
 * The files are held open (held.h). They are found anew when the process has moved to another cgroup, and in the child
 * of a fork. One thread at a time looks: between machine_enter and machine_leave, for microseconds. */
#ifndef ARENA_MACHINE_H
#define ARENA_MACHINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "arena.h"

#define MACHINE_WHERE sizeof(((struct arena_error *)0)->where)

struct machine_look {
    uint64_t available;  /* UINT64_MAX: nothing says */
    uint64_t limit;      /* of which that is left */
    bool oom_killer_off; /* a v1 cgroup answers madvise with ENOMEM but lets a touch hang */
    int lockable;        /* see machine_lock; -1: none */
    char where[MACHINE_WHERE]; /* the file that says so: a cgroup's limit, or /proc/meminfo */
};

void machine_enter(void);
void machine_leave(void);

/* *lockable: the cgroup nearest to the root that has less than `near` left. node < 0: any. -errno: a file that says a limit
 * could not be read (-EMFILE, …), and `where` tells which; that is not "no limit". */
int machine_look(int node, uint64_t near, struct machine_look *out);

/* The processes of a cgroup take turns: flock on its folder, which whoever may read it may have, and which ends with its
 * process. -EWOULDBLOCK: another process has it. -EBADF: it cannot be had. Not between enter and leave. */
int machine_lock(int lockable);
void machine_unlock(int lockable);

/* One memory cgroup, for whoever wants to know them all. */
struct machine_level {
    char path[4096]; /* the folder */
    bool v1, seen;   /* seen: its files could be read */
    uint64_t limit, high, usage, cache; /* UINT64_MAX: no limit */
};
/* 0, 1 (the process's own cgroup cannot be seen) or -errno, as cgroups_walk. */
int machine_levels(bool (*level)(void *arg, const struct machine_level *level), void *arg);

/* One limit of a hugetlb cgroup on pages of so many bytes: on those that are used, or (rsvd.) those that are reserved or
 * used without a reservation, as ours are. */
struct machine_hugetlb {
    char path[4096]; /* the file that says the limit */
    uint64_t limit, usage;
};
/* Those that have a limit. Answers as machine_levels. */
int machine_hugetlb(uint64_t page, bool (*limit)(void *arg, const struct machine_hugetlb *limit), void *arg);

/* What the rest of a charge would be refused by, where mprotect or mmap says ENOMEM: RLIMIT_DATA, or in overcommit mode 2
 * the CommitLimit. UINT64_MAX in *available: neither is known to be less than `bytes`. */
void machine_charge(uint64_t bytes, struct machine_look *out);

/* "dir/file", with what is too much of it left out at the front. */
void machine_where(char *out, size_t size, const char *dir, const char *file);
/* "key 123", or "key: 123 kB", in a text of such lines, also of a node's meminfo ("Node 0 MemFree: 1 kB"). 0: not there. */
uint64_t machine_field(const char *text, const char *key);

#endif
