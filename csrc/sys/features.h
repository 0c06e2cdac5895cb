/* features.h: what this kernel can do beyond what every kernel can.
 *
 * Found out once, by effect rather than by version. Every function whose way depends on a feature is told the features, so
 * that a test can play an old kernel: os_features() is asked where a reservation or a mirror is made, and nowhere below.
 *
 * This folder (sys/) holds every system call of the core, with one contract for each function, and decides nothing: what is
 * to be done when the kernel refuses, and which of two ways is better, is decided in memory/. Unless a contract says
 * otherwise a function returns 0 or -errno, leaves things as they were when it fails, and takes addresses and lengths that
 * are multiples of the page size that its caller works with. No function but os_now_ns may be called under the mutex of an
 * arena or a reservation: builds with ARENA_CHECKED abort there (mutex.h). */
#ifndef ARENA_FEATURES_H
#define ARENA_FEATURES_H

#include <stdbool.h>

/* All false is right on every kernel, only slower. */
struct os_features {
    bool populate;        /* MADV_POPULATE_(READ|WRITE), Linux 5.14: a page was absent before and present after */
    bool dontneed_locked; /* MADV_DONTNEED_LOCKED, Linux 5.18 */
    bool dontneed_hugetlb; /* MADV_DONTNEED of pages of the hugetlb pool, Linux 5.18 */
    bool pagemap_scan;    /* PAGEMAP_SCAN, Linux 6.7 */
    bool vma_names;       /* PR_SET_VMA_ANON_NAME, Linux 5.17 and CONFIG_ANON_VMA_NAME */
};
const struct os_features *os_features(void);

#endif
