#include "memory/huge_pages.h"

#include <errno.h>
#include <string.h>

#include "memory/mounts.h"
#include "sys/hugepages.h"
#include "sys/page.h"

static bool allows(int word, bool shared) {
    switch (word) {
        case OS_THP_ALWAYS: return true;
        case OS_THP_MADVISE: return !shared;
        case OS_THP_WITHIN_SIZE:
        case OS_THP_ADVISE:
        case OS_THP_FORCE: return shared;
        default: return false;
    }
}

int huge_pages_allowed(uint64_t bytes, bool shared) {
    int all = os_thp_switch(0, shared);
    if (all < 0) return all;
    if (all == OS_THP_ABSENT) return false;
    if (shared && all == OS_THP_DENY) return false;
    if (shared && all == OS_THP_FORCE) return true;
    /* The switch of a size overrides the one for all, which it may inherit (Linux 6.8). */
    int one = os_thp_switch(bytes, shared);
    if (one < 0) return one;
    if (one == OS_THP_ABSENT) return bytes == OS_HUGE && allows(all, shared);
    return allows(one == OS_THP_INHERIT ? all : one, shared);
}

int huge_pages_allowed_on(uint64_t device, uint64_t bytes) {
    struct mount mount;
    if (bytes != OS_HUGE) return false;
    int rc = mounts_find(device, &mount);
    return rc == -EMFILE || rc == -ENFILE ? rc : mount.huge;
}

static uint64_t less(uint64_t a, uint64_t b) { return a > b ? a - b : 0; }

int huge_page_pool(uint64_t page, int node, struct huge_page_pool *out) {
    struct os_hugetlb pool;
    int rc = os_hugetlb(page, node, &pool);
    /* What is reserved is told for all nodes alone. */
    uint64_t free = node < 0 ? less(pool.free, pool.reserved) : pool.free;
    uint64_t more = less(pool.surplus_max, pool.surplus);
    *out = (struct huge_page_pool){.total = (pool.pages + more) * page, .free = (free + more) * page};
    memcpy(out->where, pool.where, sizeof out->where);
    return rc;
}
