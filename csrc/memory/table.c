#include "memory/table.h"

#include <errno.h>

#include "memory/address_space.h"
#include "memory/decommit.h"
#include "memory/mlockall.h"
#include "memory/populate.h"
#include "sys/advice.h"
#include "sys/mlock.h"
#include "sys/page.h"

int table_reserve(struct table *t, size_t bytes, const struct os_features *features) {
    void *base;
    t->features = features;
    t->bytes = (bytes + OS_PAGE - 1) & ~(OS_PAGE - 1);
    int rc = address_space_reserve(&os_anonymous, t->bytes, OS_PAGE, &base, &t->lazy);
    if (rc) return rc;
    t->base = base;
    /* A huge page here would be 2 MiB for the sake of a few entries. */
    (void)os_advise_huge(base, t->bytes, false);
    (void)os_advise_dump(base, t->bytes, false);
    os_name(features, base, t->bytes, "arena index");
    return 0;
}

int table_populate(struct table *t, size_t offset, size_t bytes) {
    size_t start = offset & ~(OS_PAGE - 1), end = (offset + bytes + OS_PAGE - 1) & ~(OS_PAGE - 1);
    if (end > t->bytes) end = t->bytes;
    if (start >= end) return 0;
    int rc = t->lazy ? os_make_accessible(t->base + start, end - start) : 0;
    if (rc) return rc;
    rc = populate_at_once(t->features, t->base + start, end - start, true, true);
    /* Afterwards: whoever locks all memory at this moment either finds it present, or was before us. */
    return rc == 0 && mlockall_in_force() ? os_mlock(t->base + start, end - start) : rc;
}

void table_clear(struct table *t) {
    if (t->lazy)
        (void)os_decommit_lazy(&os_anonymous, t->base, t->bytes, 0);
    else
        (void)decommit_pages(t->features, t->base, t->bytes);
}

void table_unmap(struct table *t) {
    if (t->base) os_unmap(t->base, t->bytes);
    t->base = NULL;
}
