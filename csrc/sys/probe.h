/* probe.h: what a diagnosis asks of the kernel beyond os_features: system calls tried out on a page or a descriptor of
 * their own, which are gone when the function returns. Asked anew each time: limits and filters change. */
#ifndef ARENA_PROBE_H
#define ARENA_PROBE_H

/* mlockall(MCL_FUTURE), as this process has it now. LOCKED_FULL: on, and RLIMIT_MEMLOCK does not let it map a single page more. */
enum os_lock_future { OS_LOCK_FUTURE_OFF, OS_LOCK_FUTURE_ON, OS_LOCK_FUTURE_ON_FAULT, OS_LOCK_FUTURE_FULL };

struct os_probe {
    /* 0, or -errno. */
    int guard; /* MADV_GUARD_INSTALL, Linux 6.13 */
    int memfd; /* memfd_create(2) */
    int memfd_secret; /* memfd_secret(2), Linux 5.14, and secretmem.enable=1 before 6.5 */
    int mlock; /* of one page */
    int mbind; /* the default policy, for a page */
    int perf_event_open; /* a counter of this thread's own page faults, in user mode */
    /* PR_GET_THP_DISABLE: 0; 1: no huge pages for this process; 3: but where they are asked for. -errno: it cannot be told. */
    int thp_disabled;
    /* enum os_lock_future, or -errno. */
    int lock_future;
};
void os_probe(struct os_probe *out);

#endif
