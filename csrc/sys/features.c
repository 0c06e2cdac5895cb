#define _GNU_SOURCE
#include "sys/features.h"

#include <pthread.h>
#include <sys/mman.h>

#include "sys/advice.h"
#include "sys/fault_in.h"
#include "sys/mapping.h"
#include "sys/mutex.h"
#include "sys/page.h"
#include "sys/residency.h"

static struct os_features features;
static pthread_once_t features_once = PTHREAD_ONCE_INIT;

/* The kernel refuses MADV_DONTNEED by the kind of the mapping, whether it has a page or not. So a mapping without any page
 * tells, and such a mapping takes nothing from the pool. */
static bool can_drop_hugetlb(void) {
    const struct os_mapping pool = {.fd = -1, .hugetlb = OS_HUGE};
    void *at;
    if (os_map(&pool, OS_HUGE, OS_NO_ACCESS, &at)) return false;
    bool can = os_dontneed(at, OS_HUGE) == 0;
    (void)os_unmap(at, OS_HUGE);
    return can;
}

static void probe(void) {
    void *page;
    if (os_map(&os_anonymous, OS_PAGE, OS_READ_WRITE, &page)) return;
    /* Some vendor kernels before 5.14 give advice 23 another meaning and succeed; others (gVisor) report every page as
     * resident, and there only the return code is left to believe. */
    unsigned char before = 0, after = 1;
    (void)mincore(page, OS_PAGE, &before);
    bool populated = os_populate(page, OS_PAGE, true) == 0;
    (void)mincore(page, OS_PAGE, &after);
    features.populate = populated && ((after & 1) || (before & 1));
    features.dontneed_locked = os_dontneed_locked(page, OS_PAGE) == 0;
    features.vma_names = os_set_name(page, OS_PAGE, "arena") == 0;
    (void)os_unmap(page, OS_PAGE);
    features.dontneed_hugetlb = can_drop_hugetlb();
    struct os_residency unused;
    features.pagemap_scan = true;
    features.pagemap_scan = os_residency(&features, &features, 0, &unused) == 0;
}

const struct os_features *os_features(void) {
    mutex_check_none();
    pthread_once(&features_once, probe);
    return &features;
}
