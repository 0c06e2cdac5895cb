/* populate.h: makes a range of memory present; how, with how many threads, and how politely.
 *
 * - In pieces of POPULATE_STEP, claimed by the caller and its helpers with an atomic counter; between the caller's pieces
 *   `progress` is asked whether to go on.
 * - Huge pages tail first: a fault on the last 4 KiB of a 2 MiB page makes the kernel clear it forward, which is twice as
 *   fast on some CPUs (kernels after 6.19 do so by themselves). Measured on the first huge pages that are wanted anyway,
 *   and used unless it is slower. The fault is a populate call of 4 KiB; in fresh private anonymous memory, where there are
 *   other threads, it is a touch, for that takes the per-VMA lock (Linux 6.4) and so leaves their mmap alone. Never where a
 *   touch could be a SIGBUS, as on a page that is marked as poisoned.
 * - A populate call over the piece follows as the guarantee; on huge pages that are there it costs next to nothing, and it
 *   fills in small pages where no huge one was to be had.
 * - The populate call holds the mmap_lock, and takes it again before a waiting writer gets it; so where it does the
 *   work and the process has other threads, each 8 units of work are followed by 1 of sleep.
 * - The helpers use what lies on the caller's stack. A caller that is ended in `progress` (pthread_exit, as CPython up
 *   to 3.13 ends daemon threads that ask for the GIL at interpreter exit) takes the helpers along before its stack
 *   goes. */
#ifndef ARENA_POPULATE_H
#define ARENA_POPULATE_H

#include <stdbool.h>
#include <stdint.h>

#include "arena.h"
#include "memory/preflight.h"
#include "memory/prepare.h"
#include "sys/features.h"
#include "sys/page.h"

#define POPULATE_STEP OS_HUGE

struct populate {
    const struct os_features *features;
    const struct preflight *preflight;
    unsigned threads;          /* 0: min(CPUs, 16, bytes / 64 MiB) */
    bool write;
    bool touchable;            /* private anonymous memory, where a touch hurts no more than the program's own */
    bool fresh;                /* nothing of the range is present */
    uint64_t page;             /* bytes: 4 KiB, or how large the huge pages are */
    unsigned costs;            /* bytes of memory for each byte */
    struct preparation *preparation; /* of each piece before it is populated, or NULL: it needs none */
    arena_progress progress;           /* called by the calling thread only, at least every 10 ms; may be NULL */
    void *progress_arg;
    uint64_t done, total;      /* what `progress` is told; done is advanced */
    uint64_t promised; /* atomic: bytes, of preflight_whole; kept step by step, and what is left is the caller's */
    bool touch; /* found out by populate_range */
    bool refused; /* atomic: it was the preflight of a step that said no */
    struct preflight_report report; /* what a preflight has said last */
    /* If it moves the helpers are gone: this is the child of a fork made in `progress`. */
    const uint32_t *fork_generation;
};

/* All at once, without steps and politeness, for what is small: by a populate call where the kernel has one, else by touches.
 * touchable: as above. -errno as os_populate and os_touch_carefully. */
int populate_at_once(const struct os_features *f, void *at, size_t bytes, bool write, bool touchable);

/* 0, or -errno of the first failure; then an unknown part of the range is present. */
int populate_range(struct populate *p, char *base, uint64_t bytes);

#endif
