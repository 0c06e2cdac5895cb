#include "memory/address_space.h"

#include <errno.h>
#include <stdint.h>

#include "sys/files.h"
#include "sys/mlock.h"
#include "sys/page.h"
#include "sys/proc.h"

/* --- under mlockall(MCL_FUTURE) ------------------------------------------------------------------------------------- */

/* Without CAP_IPC_LOCK mmap(2) counts all that it maps under mlockall(MCL_FUTURE), and says EAGAIN: but mremap(2) does not
 * count what an unlocked mapping grows by. So a page is mapped, unlocked and grown. */

static int grow(void **addr, size_t bytes, bool may_move) {
    int rc = os_munlock(*addr, OS_PAGE);
    if (rc == 0) rc = os_grow(addr, OS_PAGE, bytes, may_move);
    if (rc) (void)os_unmap(*addr, OS_PAGE);
    return rc;
}

static int none_grown(size_t bytes, void **out) {
    int rc = os_map(&os_anonymous, OS_PAGE, OS_NO_ACCESS, out);
    return rc ? rc : grow(out, bytes, true);
}

/* In place, at an address where nothing may be: what is in the way stays. */
static int exactly_grown(const struct os_mapping *what, void *addr, size_t bytes) {
    int rc = os_map_exactly(what, addr, OS_PAGE, OS_NO_ACCESS);
    if (rc) return rc;
    rc = grow(&addr, bytes, false);
    return rc == -ENOMEM ? -EEXIST : rc; /* one cannot be told from the other */
}

/* Shared anonymous memory is a file that does not grow with its mapping; so another file takes its place, a memfd that has
 * its size. */
static int shared_grown(const struct os_mapping *what, void *addr, size_t bytes) {
    struct os_mapping memfd = *what;
    int rc = os_memfd("arena", 0, &memfd.fd);
    if (rc) return rc;
    rc = os_file_set_size(memfd.fd, bytes);
    if (rc == 0) rc = exactly_grown(&memfd, addr, bytes);
    os_close_file(memfd.fd);
    return rc;
}

/* Pages of the hugetlb pool cannot be had in this way, and memfd_secret is to be counted. */
static int file_grown(const struct os_mapping *what, void *addr, size_t bytes) {
    struct os_file file;
    int rc = os_file_look(what->fd, &file);
    if (rc) return rc;
    if (file.type == OS_FILE_HUGETLBFS || file.type == OS_FILE_OTHER) return -EAGAIN;
    return exactly_grown(what, addr, bytes);
}

static int any_grown(const struct os_mapping *what, void *addr, size_t bytes) {
    if (what->device || what->hugetlb) return -EAGAIN;
    return what->fd < 0 ? shared_grown(what, addr, bytes) : file_grown(what, addr, bytes);
}

/* --- at a multiple of align ----------------------------------------------------------------------------------------- */

static char *aligned(void *raw, size_t align) {
    return (char *)(((uintptr_t)raw + align - 1) & ~(uintptr_t)(align - 1));
}

/* Address space for itself; *counted: it was to be had by growing alone. */
static int reserve_none(size_t bytes, void **out, bool *counted) {
    int rc = os_map(&os_anonymous, bytes, OS_NO_ACCESS, out);
    *counted = rc == -EAGAIN;
    return *counted ? none_grown(bytes, out) : rc;
}

#define PLACE_TRIES 100 /* how often another thread may map what was found free */

/* An address is found by reserving more than is needed and giving all of it back: for the file, which may refuse, is not
 * mapped over anything. */
static int map_file(const struct os_mapping *what, size_t bytes, size_t span, size_t align, enum os_access access,
                    char **out) {
    int rc = -EEXIST;
    for (int tries = 0; rc == -EEXIST && tries < PLACE_TRIES; tries++) {
        void *raw;
        bool counted;
        if ((rc = reserve_none(span, &raw, &counted)) != 0) return rc;
        *out = aligned(raw, align);
        if ((rc = os_unmap(raw, span)) != 0) return rc;
        rc = os_map_exactly(what, *out, bytes, access);
        if (rc == -EAGAIN && counted) rc = any_grown(what, *out, bytes);
    }
    return rc == -EEXIST ? -ENOMEM : rc;
}

/* Private anonymous memory: what was reserved is kept, but for what is too much at its ends. */
static int map_anonymous(size_t bytes, size_t span, size_t align, char **out) {
    void *raw;
    bool counted;
    int rc = reserve_none(span, &raw, &counted);
    if (rc) return rc;
    *out = aligned(raw, align);
    size_t before = (size_t)(*out - (char *)raw), after = span - before - bytes;
    rc = before ? os_cut_off(raw, before) : 0;
    if (rc) {
        (void)os_unmap(raw, span); /* vm.max_map_count; of the whole there is nothing to cut */
        return rc;
    }
    rc = after ? os_cut_off(*out + bytes, after) : 0;
    if (rc) (void)os_unmap(*out, bytes + after);
    return rc;
}

/* --- reserve -------------------------------------------------------------------------------------------------------- */

/* Private writable memory can wait for its access until it is committed. */
static bool may_be_lazy(const struct os_mapping *what) { return !what->shared && !what->readonly && !what->device; }

/* Overcommit mode 2 charges private memory when it is made writable; RLIMIT_DATA counts it in any mode, and says ENOMEM. */
static int give_access(const struct os_mapping *what, void *base, size_t bytes, bool *lazy) {
    *lazy = may_be_lazy(what) && !what->hugetlb && os_overcommit_mode() == 2;
    if (*lazy || what->device) return 0;
    int rc = what->readonly ? os_make_readable(base, bytes) : os_make_accessible(base, bytes);
    *lazy = rc == -ENOMEM && may_be_lazy(what);
    return *lazy ? 0 : rc;
}

int address_space_reserve(const struct os_mapping *what, size_t bytes, size_t align, void **out, bool *lazy) {
    size_t span = bytes + (align > OS_PAGE ? align : 0);
    if (span < bytes) return -ENOMEM;
    bool anonymous = what->fd < 0 && !what->shared && !what->hugetlb;
    enum os_access at_once = !what->device ? OS_NO_ACCESS : what->readonly ? OS_READ : OS_READ_WRITE;
    char *base = NULL;
    int rc = anonymous ? map_anonymous(bytes, span, align, &base) : map_file(what, bytes, span, align, at_once, &base);
    if (rc) return rc;
    /* Under mlockall(MCL_FUTURE) a range made writable is populated whole at once, unless it was unlocked before. */
    (void)os_munlock(base, bytes);
    rc = give_access(what, base, bytes, lazy);
    if (rc)
        (void)os_unmap(base, bytes);
    else
        *out = base;
    return rc;
}

int address_space_fill(void *addr, size_t bytes) {
    int rc = os_map_exactly(&os_anonymous, addr, bytes, OS_READ_WRITE);
    /* RLIMIT_DATA, overcommit mode 2: to be read at least. */
    return rc == -ENOMEM ? os_map_exactly(&os_anonymous, addr, bytes, OS_READ) : rc;
}
