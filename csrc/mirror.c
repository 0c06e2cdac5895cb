#define _GNU_SOURCE
#include "mirror.h"

#include <errno.h>
#include <string.h>

#include "forks.h"
#include "os.h"
#include "os_file.h"
#include "populate.h"
#include "preflight.h"

#define BYTES_MAX ((uint64_t)64 << 40)

/* What is being made. */
struct making {
    struct os_mapping file;
    char *base;
    uint64_t span; /* the page and one mapping: the file's size */
    uint64_t promised; /* see preflight_whole */
    bool lock;
    const char *op;
    arena_tick tick;
    void *tick_arg;
};

static int allocate(void *self, char *at, uint64_t n) {
    struct making *m = self;
    int rc = os_allocate(m->file.fd, (uint64_t)(at - m->base), n);
    if (rc == 0 || rc == -EOPNOTSUPP) return 0; /* then populating it does, and answers where it cannot */
    __atomic_store_n(&m->op, "fallocate", __ATOMIC_RELAXED);
    return rc;
}

/* Both mappings, with nothing present. The second takes the place of what the first has beyond the end of the file. */
static int map(struct making *m, uint64_t bytes) {
    bool lazy;
    void *base;
    m->op = "mmap";
    int rc = os_reserve(&m->file, m->span + bytes, OS_PAGE, &base, &lazy);
    if (rc) return rc;
    m->base = base;
    rc = os_close(&m->file, m->base + m->span, bytes, OS_PAGE);
    if (rc == 0) rc = os_open(m->base + m->span, bytes);
    if (rc == 0) (void)os_advise_dump(m->base, m->span + bytes, false);
    return rc;
}

static int make_present(struct making *m, uint64_t bytes, const struct preflight *preflight) {
    struct populate first = {.features = os_features(),
                             .preflight = preflight,
                             .write = true,
                             .page = OS_PAGE,
                             .costs = 1,
                             .prepare = allocate,
                             .prepare_arg = m,
                             .tick = m->tick,
                             .tick_arg = m->tick_arg,
                             .total = m->span,
                             .promised = m->promised,
                             .fork_count = &forks_count};
    struct populate second = first;
    second.costs = 0;
    second.prepare = NULL;
    second.total = bytes;
    m->op = "mlock";
    int rc = m->lock ? os_mlock(m->base, m->span) : 0;
    if (rc) return rc;
    m->op = "madvise(MADV_POPULATE_WRITE)";
    rc = populate_range(&first, m->base, m->span);
    m->promised = first.promised;
    if (rc && first.refused) m->op = "preflight";
    return rc ? rc : populate_range(&second, m->base + m->span, bytes);
}

static int make(struct making *m, uint64_t bytes, const char *name, const struct preflight *preflight,
                struct preflight_report *report) {
    m->op = "preflight";
    int rc = preflight_whole(preflight, m->span, &m->promised, report);
    if (rc) return rc;
    m->op = "memfd_create";
    if ((rc = os_memfd(name, 0, &m->file.fd)) != 0) return rc;
    m->op = "ftruncate";
    if ((rc = os_truncate(m->file.fd, m->span)) != 0) return rc;
    m->op = "fcntl(F_ADD_SEALS)";
    if ((rc = os_seal_size(m->file.fd)) != 0) return rc;
    rc = map(m, bytes);
    return rc ? rc : make_present(m, bytes, preflight);
}

static void explain(const struct making *m, int rc, const struct preflight *preflight, struct preflight_report *report,
                    struct arena_error *e) {
    *e = (struct arena_error){.err = -rc, .op = m->op, .requested = m->span, .available = UINT64_MAX};
    if (strcmp(m->op, "mlock") == 0) {
        uint64_t limit, locked;
        os_mlock_limit(&limit, &locked);
        e->available = limit == UINT64_MAX ? limit : limit > locked ? limit - locked : 0;
        if (e->available < m->span) strcpy(e->where, "RLIMIT_MEMLOCK");
    } else if (strcmp(m->op, "preflight") == 0) {
        if (!report->where[0]) (void)preflight_read(preflight, report);
        e->available = report->available;
        memcpy(e->where, report->where, sizeof e->where);
    }
}

int mirror_create(uint64_t bytes, bool lock, const char *name, arena_tick tick, void *arg, struct mirror *out,
                  struct arena_error *error) {
    if (bytes == 0 || bytes > BYTES_MAX) {
        *error = (struct arena_error){.err = EINVAL, .op = "size", .requested = bytes, .available = UINT64_MAX};
        return -EINVAL;
    }
    bytes = (bytes + OS_PAGE - 1) & ~(uint64_t)(OS_PAGE - 1);
    struct making m = {
        .file = {.fd = -1, .shared = true}, .span = OS_PAGE + bytes, .lock = lock, .tick = tick, .tick_arg = arg};
    struct preflight preflight;
    struct preflight_report report = {.available = UINT64_MAX};
    int rc = preflight_init(&preflight, 0, true, -1, &report);
    m.op = "preflight";
    if (rc == 0) rc = make(&m, bytes, name, &preflight, &report);
    if (m.promised) preflight_keep_promise(m.promised);
    if (rc) explain(&m, rc, &preflight, &report, error);
    if (rc && m.base) os_unmap(m.base, m.span + bytes);
    if (m.file.fd >= 0) os_close_file(m.file.fd); /* the mappings keep the file */
    if (rc == 0) *out = (struct mirror){.base = m.base, .bytes = bytes};
    return rc;
}

void mirror_destroy(struct mirror *m) {
    if (m->base) (void)os_unmap(m->base, OS_PAGE + 2 * m->bytes);
    m->base = NULL;
}
