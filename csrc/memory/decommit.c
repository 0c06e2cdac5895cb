#include "memory/decommit.h"

#include <errno.h>

#include "sys/advice.h"
#include "sys/mlock.h"

int decommit_pages(const struct os_features *f, void *addr, size_t bytes) {
    int rc = os_dontneed(addr, bytes);
    if (rc != -EINVAL) return rc;
    if (f->dontneed_locked) return os_dontneed_locked(addr, bytes);
    /* Whoever locked it, as by an mlockall of the program's own, wants it locked afterwards. */
    if (os_munlock(addr, bytes)) return rc;
    rc = os_dontneed(addr, bytes);
    if (rc != -EINVAL) (void)os_mlock(addr, bytes);
    return rc;
}

int decommit_shared(void *addr, size_t bytes) {
    int rc = os_madvise_remove(addr, bytes);
    if (rc != -EINVAL || os_munlock(addr, bytes)) return rc;
    rc = os_madvise_remove(addr, bytes);
    (void)os_mlock(addr, bytes);
    return rc;
}
