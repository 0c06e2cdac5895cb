#define _GNU_SOURCE
#include "memory/mlockall.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "memory/error.h"
#include "memory/populate.h"
#include "memory/registry.h"
#include "sys/fault_in.h"
#include "sys/mlock.h"
#include "sys/page.h"
#include "sys/proc.h"
#include "sys/residency.h"

static bool commits; /* atomic */
static uint32_t commits_in; /* atomic: fork_generation of the process that said so */
static uint32_t generation; /* atomic */

bool mlockall_in_force(void) {
    return __atomic_load_n(&commits, __ATOMIC_ACQUIRE) &&
           __atomic_load_n(&commits_in, __ATOMIC_RELAXED) == __atomic_load_n(&fork_generation, __ATOMIC_RELAXED);
}

uint32_t mlockall_generation(void) { return __atomic_load_n(&generation, __ATOMIC_ACQUIRE); }

static void set(bool on) {
    __atomic_store_n(&commits_in, __atomic_load_n(&fork_generation, __ATOMIC_RELAXED), __ATOMIC_RELAXED);
    __atomic_store_n(&commits, on, __ATOMIC_RELEASE);
    __atomic_fetch_add(&generation, 1, __ATOMIC_RELEASE);
}

int mlockall_present(const struct os_features *f, void *addr, size_t bytes) {
    unsigned char there[4096]; /* 16 MiB at a time */
    for (char *at = addr, *end = at + bytes, *next; at < end; at = next) {
        next = (size_t)(end - at) > sizeof there * OS_PAGE ? at + sizeof there * OS_PAGE : end;
        size_t pages = (size_t)(next - at) / OS_PAGE, from = 0, to;
        int rc = os_mincore(at, (size_t)(next - at), there);
        if (rc) return rc;
        for (; from < pages; from = to + 1) {
            for (to = from; to < pages && there[to] & 1; to++) {
            }
            if (to == from) continue;
            char *first = at + from * OS_PAGE;
            size_t nbytes = (to - from) * OS_PAGE;
            if ((rc = os_mlock(first, nbytes)) != 0) return rc;
            /* As mlock(2) without MLOCK_ONFAULT: what a fork has made copy-on-write is our own again. */
            if (populate_at_once(f, first, nbytes, true, true)) os_touch(first, nbytes, OS_PAGE, true);
        }
    }
    return 0;
}

struct walk {
    struct registry_range *ours; /* by address */
    size_t n;
    bool on_fault;
    int rc;
    uint64_t failed; /* bytes */
};

static int by_address(const void *a, const void *b) {
    const struct registry_range *x = a, *y = b;
    return x->base < y->base ? -1 : x->base > y->base;
}

static int collect(struct walk *w) {
    size_t room = 0;
    for (const struct registry_entry *f = registry_first(); f; f = f->next) room += REGISTRY_RANGES;
    w->ours = malloc((room + 1) * sizeof *w->ours);
    if (!w->ours) return -ENOMEM;
    for (const struct registry_entry *f = registry_first(); f; f = f->next) w->n += f->ranges(f->self, w->ours + w->n);
    qsort(w->ours, w->n, sizeof *w->ours, by_address);
    return 0;
}

/* A mapping, or a part of one, that is not ours. */
static bool lock_foreign(struct walk *w, char *start, char *end, bool accessible) {
    if (start >= end) return true;
    uint64_t limit, locked, bytes = (uint64_t)(end - start);
    int rc = os_mlock(start, bytes);
    if (rc) {
        /* It was unmapped meanwhile, or cannot be locked at all: nobody loses by that. */
        os_mlock_limit(&limit, &locked);
        if (rc != -EPERM && (limit == UINT64_MAX || (locked < limit && limit - locked >= bytes))) return true;
        w->rc = rc;
        w->failed = bytes;
        return false;
    }
    if (!w->on_fault && accessible) os_mlock_whole(start, bytes);
    return true;
}

/* [vdso], [vvar] and others of that kind, [vsyscall]: in the sixth field, where the path of a file begins with a slash. */
static bool is_kernels(const char *rest) {
    for (int field = 0; field < 4; field++) {
        rest += strspn(rest, " ");
        rest += strcspn(rest, " ");
    }
    rest += strspn(rest, " ");
    return strncmp(rest, "[vdso", 5) == 0 || strncmp(rest, "[vvar", 5) == 0 || strncmp(rest, "[vsyscall", 9) == 0;
}

static bool lock_line(void *arg, char *line) {
    struct walk *w = arg;
    char *rest;
    uintptr_t start = strtoull(line, &rest, 16), end = *rest == '-' ? strtoull(rest + 1, &rest, 16) : 0;
    if (end <= start || is_kernels(rest)) return true;
    bool accessible = strncmp(rest, " ---", 4) != 0;
    char *at = (char *)start, *last = (char *)end;
    for (size_t i = 0; i < w->n && at < last; i++) {
        char *mine = w->ours[i].base, *stop = mine + w->ours[i].bytes;
        if (stop <= at || mine >= last) continue;
        if (!lock_foreign(w, at, mine, accessible)) return false;
        if (stop > at) at = stop;
    }
    return lock_foreign(w, at, last, accessible);
}

static int lock_current(bool on_fault, uint64_t *failed) {
    struct walk w = {.on_fault = on_fault};
    int rc = collect(&w);
    if (rc == 0) rc = os_each_line("/proc/self/maps", lock_line, &w);
    if (rc == 0) rc = w.rc;
    for (const struct registry_entry *f = registry_first(); f && rc == 0; f = f->next) rc = f->lock(f->self, false);
    free(w.ours);
    *failed = w.failed;
    return rc;
}

/* All but what reservations with `lock` have: munlockall(2) takes that too, for a moment. */
static int unlock_others(void) {
    int rc = os_munlock_all();
    for (const struct registry_entry *f = registry_first(); f && rc == 0; f = f->next) rc = f->lock(f->self, true);
    return rc;
}

int mlockall_sparse(bool current, bool future, bool on_fault, struct arena_error *error) {
    uint64_t failed = 0;
    registry_lock();
    set(future);
    int rc = future ? os_mlock_future(on_fault) : 0;
    if (rc == 0 && current) rc = lock_current(on_fault, &failed);
    if (rc) {
        uint64_t limit, locked;
        os_mlock_limit(&limit, &locked);
        set(false);
        (void)unlock_others();
        explain(error, rc, "mlockall", 0, failed);
        if (error) {
            error->committed = locked;
            error->available = limit;
        }
    }
    registry_unlock();
    return rc;
}

int munlockall_sparse(void) {
    registry_lock();
    set(false);
    int rc = unlock_others();
    registry_unlock();
    return rc;
}
