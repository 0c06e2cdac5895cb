/* preflight.h: what may still be committed before a memory cgroup's limit or the machine's memory is reached.
 *
 * Populating past a memory cgroup's limit ends in SIGKILL, not in an error, so the limit is looked at first. It is best
 * effort: neighbours allocate at the same time.
 *
 * available = min(over this process's memory cgroups up to the root, v1 and v2: limit - (usage - file cache);
 *                 MemAvailable; on a NUMA node: MemFree + file cache there) - headroom
 * where memory.high counts as a limit, and active and inactive file pages count as free, for the kernel reclaims them
 * first. Reading it costs about 0.1 ms, so the answer is kept as a budget and read again when that is spent or old. */
#ifndef ARENA_PREFLIGHT_H
#define ARENA_PREFLIGHT_H

#include <stdbool.h>
#include <stdint.h>

struct preflight_report {
    uint64_t available;  /* bytes, headroom already taken off */
    bool oom_killer_off; /* a v1 cgroup answers madvise with ENOMEM but lets a touch hang */
    char where[512];     /* the file that says so: a cgroup's limit, or /proc/meminfo */
};

struct preflight {
    uint64_t headroom;
    int node;          /* of which the memory is to come; -1: any */
    int64_t budget;    /* atomic */
    uint64_t good_for; /* atomic: until this time (ns) */
    bool oom_killer_off;
};

/* A hugetlb cgroup's tightest limit on pages of so many bytes; UINT64_MAX, and out->where empty: none. */
void preflight_hugetlb(uint64_t page, struct preflight_report *out);

void preflight_init(struct preflight *p, uint64_t headroom, int node);
void preflight_read(const struct preflight *p, struct preflight_report *out);

/* May so much be committed as a whole? Takes nothing off. -ENOMEM, with *out filled. */
int preflight_whole(struct preflight *p, uint64_t bytes, struct preflight_report *out);

/* Takes a step's bytes off the budget; reads anew when it is spent. -ENOMEM: not that much is there. Thread-safe. */
int preflight_step(struct preflight *p, uint64_t bytes);

#endif
