#define _GNU_SOURCE
#include "memory/mirror.h"

#include <errno.h>
#include <string.h>

#include "memory/address_space.h"
#include "memory/decommit.h"
#include "memory/explain.h"
#include "memory/mlockall.h"
#include "memory/populate.h"
#include "memory/preflight.h"
#include "memory/registry.h"
#include "sys/advice.h"
#include "sys/files.h"
#include "sys/mlock.h"
#include "sys/page.h"

#define BYTES_MAX ((uint64_t)64 << 40)
#define UNMAP_STEP ((uint64_t)64 << 20) /* 4 ms of small pages */

/* What is being made. */
struct making {
    struct mirror *mirror;
    struct os_mapping file;
    uint64_t span; /* the page and one mapping: the file's size */
    uint64_t promised; /* see preflight_whole */
    struct preflight_report report; /* what a preflight has said last */
    const char *op;
    arena_progress progress;
    void *progress_arg;
};

static uint64_t whole(const struct mirror *m) { return OS_PAGE + 2 * m->bytes; }

/* --- for registry.h ------------------------------------------------------------------------------------------------ */

static void nothing(void *self) { (void)self; }

/* Who makes it, or unmaps it, stayed with the parent. */
static void in_child(void *self) {
    struct mirror *m = self;
    if (!m->changing || pthread_equal(m->thread, pthread_self())) return;
    os_unmap(m->base, whole(m));
    m->base = NULL;
    registry_remove(&m->entry);
}

static size_t ranges(void *self, struct registry_range out[REGISTRY_RANGES]) {
    const struct mirror *m = self;
    out[0] = (struct registry_range){m->base, whole(m)};
    return 1;
}

/* One of the two mappings is enough, and counted: pages that are locked anywhere are reclaimed nowhere. */
static int lock_first(const struct mirror *m) { return os_mlock(m->base, OS_PAGE + m->bytes); }

static int lock(void *self, bool own) {
    const struct mirror *m = self;
    if (m->changing || (own && !m->lock)) return 0; /* who makes it looks for himself when he is done */
    int rc = lock_first(m);
    /* In the child of a fork it is not mapped yet. */
    if (rc == 0 && !own) (void)populate_at_once(m->features, m->base, whole(m), true, false);
    return rc;
}

/* --- make and destroy ----------------------------------------------------------------------------------------------- */

/* Both mappings, with nothing present. The second takes the place of what the first has beyond the end of the file. */
static int map(struct making *m) {
    bool lazy;
    void *base;
    m->op = "mmap";
    int rc = address_space_reserve(&m->file, m->span + m->mirror->bytes, OS_PAGE, &base, &lazy);
    if (rc) return rc;
    m->mirror->base = base;
    char *second = m->mirror->base + m->span;
    rc = os_decommit_lazy(&m->file, second, m->mirror->bytes, OS_PAGE);
    if (rc == 0) rc = os_make_accessible(second, m->mirror->bytes);
    if (rc == 0) (void)os_advise_dump(base, m->span + m->mirror->bytes, false);
    return rc;
}

static int map_and_register(struct making *m) {
    struct mirror *mirror = m->mirror;
    mirror->entry = (struct registry_entry){nothing, nothing, in_child, ranges, lock, mirror, NULL, NULL};
    registry_lock();
    int rc = map(m);
    if (mirror->base) registry_add(&mirror->entry);
    registry_unlock();
    return rc;
}

static int make_present(struct making *m, const struct preflight *preflight) {
    struct preparation preparation = {.base = m->mirror->base, .fd = m->file.fd};
    struct populate first = {.features = m->mirror->features,
                             .preflight = preflight,
                             .write = true,
                             .page = OS_PAGE,
                             .costs = 1,
                             .preparation = &preparation,
                             .progress = m->progress,
                             .progress_arg = m->progress_arg,
                             .total = m->span,
                             .promised = m->promised,
                             .fork_generation = &fork_generation};
    struct populate second = first;
    second.costs = 0;
    second.preparation = NULL;
    second.total = m->mirror->bytes;
    m->op = "mlock";
    int rc = m->mirror->lock ? lock_first(m->mirror) : 0;
    if (rc) return rc;
    m->op = "madvise(MADV_POPULATE_WRITE)";
    rc = populate_range(&first, m->mirror->base, m->span);
    m->promised = first.promised;
    if (preparation.refused) m->op = "fallocate";
    if (rc && first.refused) {
        m->op = "preflight";
        m->report = first.report;
    }
    if (rc) return rc;
    return populate_range(&second, m->mirror->base + m->span, m->mirror->bytes);
}

/* From now on mlockall.h sees to it; and it may have been on, or have unlocked all, meanwhile. */
static int made(struct making *m) {
    m->op = "mlock";
    registry_lock();
    int rc = m->mirror->lock || mlockall_in_force() ? lock_first(m->mirror) : 0;
    if (rc == 0) m->mirror->changing = false;
    registry_unlock();
    return rc;
}

static int make_file(struct making *m, const char *name) {
    m->op = "memfd_create";
    int rc = os_memfd(name, 0, &m->file.fd);
    if (rc) return rc;
    m->op = "ftruncate";
    rc = os_file_set_size(m->file.fd, m->span);
    if (rc) return rc;
    m->op = "fcntl(F_ADD_SEALS)";
    return os_seal_size(m->file.fd);
}

static int make(struct making *m, const char *name) {
    struct preflight preflight;
    m->op = "preflight";
    int rc = preflight_init(&preflight, 0, true, -1, &m->report);
    if (rc == 0) rc = preflight_whole(&preflight, m->span, &m->promised, &m->report);
    if (rc == 0) rc = make_file(m, name);
    if (rc == 0) rc = map_and_register(m);
    if (rc == 0) rc = make_present(m, &preflight);
    return rc ? rc : made(m);
}

static void explain_making(const struct making *m, int rc, struct arena_error *e) {
    explain(e, rc, m->op, 0, m->span);
    if (strcmp(m->op, "mlock") == 0) explain_mlock(e);
    if (strcmp(m->op, "preflight") == 0) explain_report(e, &m->report);
}

int mirror_create(const struct os_features *features, uint64_t bytes, bool lock_it, const char *name,
                  arena_progress progress, void *arg, struct mirror *out, struct arena_error *error) {
    if (bytes == 0 || bytes > BYTES_MAX) return explain(error, -EINVAL, "size", 0, bytes);
    bytes = (bytes + OS_PAGE - 1) & ~(uint64_t)(OS_PAGE - 1);
    *out = (struct mirror){
        .features = features, .bytes = bytes, .lock = lock_it, .changing = true, .thread = pthread_self()};
    struct making m = {.mirror = out,
                       .file = {.fd = -1, .shared = true},
                       .report = {.available = UINT64_MAX},
                       .span = OS_PAGE + bytes,
                       .progress = progress,
                       .progress_arg = arg};
    int rc = make(&m, name);
    if (m.promised) preflight_keep_promise(m.promised);
    if (rc) explain_making(&m, rc, error);
    if (rc) mirror_destroy(out);
    if (m.file.fd >= 0) os_close_file(m.file.fd); /* the mappings keep the file */
    return rc;
}

void mirror_destroy(struct mirror *m) {
    if (!m->base) return;
    registry_lock();
    m->changing = true;
    m->thread = pthread_self();
    registry_unlock();
    /* As reservation_close: to unmap what is present holds the mmap_lock for long. */
    for (uint64_t at = 0, n; at < whole(m); at += n) {
        n = whole(m) - at < UNMAP_STEP ? whole(m) - at : UNMAP_STEP;
        (void)decommit_pages(m->features, m->base + at, n);
    }
    registry_lock();
    os_unmap(m->base, whole(m));
    m->base = NULL;
    registry_remove(&m->entry);
    registry_unlock();
}
