#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "memory/backing.h"
#include "memory/huge_pages.h"
#include "sys/page.h"

/* The table. `gives` is what happens to a file of ours; a private mapping of shared memory costs the page and its copy,
 * while of hugetlb pages and of files on disk it takes the copy alone. Disk blocks are allocated for shared mappings only:
 * what is private never gets there. Pages of a file are mapped clean for reading, and its pages in the page cache are the
 * kernel's to reclaim, so they cost no memory that is to be counted. */
/* clang-format off */
static const struct backing_kind
    PRIVATE            = {"anonymous", false, false, false, AS_IS,         AS_IS,         UNMAP,  1, 0, true},
    SHARED             = {"anonymous", true,  false, true,  AS_IS,         AS_IS,         REMOVE, 1, 1, false},
    PRIVATE_POOL       = {"anonymous", false, true,  false, AS_IS,         AS_IS,         UNMAP,  0, 0, false},
    SHARED_POOL        = {"anonymous", true,  true,  false, AS_IS,         AS_IS,         REMOVE, 0, 0, false},
    PRIVATE_MEMFD      = {"memfd",     false, false, true,  ALLOCATE_OURS, ALLOCATE_OURS, PUNCH,  2, 1, false},
    SHARED_MEMFD       = {"memfd",     true,  false, true,  ALLOCATE,      ALLOCATE_OURS, PUNCH,  1, 1, false},
    PRIVATE_MEMFD_POOL = {"memfd",     false, true,  false, AS_IS,         AS_IS,         PUNCH,  0, 0, false},
    SHARED_MEMFD_POOL  = {"memfd",     true,  true,  false, AS_IS,         AS_IS,         PUNCH,  0, 0, false},
    PRIVATE_TMPFS      = {"tmpfs",     false, false, true,  ALLOCATE_OURS, ALLOCATE_OURS, PUNCH,  2, 1, false},
    SHARED_TMPFS       = {"tmpfs",     true,  false, true,  ALLOCATE,      ALLOCATE_OURS, PUNCH,  1, 1, false},
    PRIVATE_HUGETLBFS  = {"hugetlbfs", false, true,  false, AS_IS,         AS_IS,         PUNCH,  0, 0, false},
    SHARED_HUGETLBFS   = {"hugetlbfs", true,  true,  false, AS_IS,         AS_IS,         PUNCH,  0, 0, false},
    PRIVATE_FILE       = {"file",      false, false, false, AS_IS,         AS_IS,         UNMAP,  1, 0, false},
    SHARED_FILE        = {"file",      true,  false, false, ALLOCATE,      ALLOCATE_OURS, PUNCH,  0, 0, false},
    PRIVATE_DEVICE     = {"device",    false, false, false, AS_IS,         AS_IS,         UNMAP,  1, 0, false},
    SHARED_DEVICE      = {"device",    true,  false, false, AS_IS,         AS_IS,         UNMAP,  0, 0, false};
/* clang-format on */

static const struct backing_kind *const anonymous[2][2] = {{&PRIVATE, &SHARED}, {&PRIVATE_POOL, &SHARED_POOL}};
static const struct backing_kind *const memfd[2][2] = {{&PRIVATE_MEMFD, &SHARED_MEMFD},
                                                       {&PRIVATE_MEMFD_POOL, &SHARED_MEMFD_POOL}};
static const struct backing_kind *const file[4][2] = {[OS_FILE_REGULAR] = {&PRIVATE_FILE, &SHARED_FILE},
                                                      [OS_FILE_TMPFS] = {&PRIVATE_TMPFS, &SHARED_TMPFS},
                                                      [OS_FILE_HUGETLBFS] = {&PRIVATE_HUGETLBFS, &SHARED_HUGETLBFS},
                                                      [OS_FILE_OTHER] = {&PRIVATE_DEVICE, &SHARED_DEVICE}};

struct failure {
    const char **op;
    char *where;
    size_t size;
};

static int fail(const struct failure *f, int rc, const char *op) {
    *f->op = op;
    return rc;
}

/* --- pages -------------------------------------------------------------------------------------------------------- */

static int pool_of(struct backing *b, const struct failure *f) {
    struct huge_page_pool pool;
    int rc = huge_page_pool(b->page, b->node, &pool);
    snprintf(f->where, f->size, "%s", pool.where);
    if (rc) return fail(f, rc, "hugetlb pool");
    return pool.total ? 0 : fail(f, -ENOTSUP, "hugetlb pool");
}

/* 1 or 0, or -errno. */
static int huge_allowed(const struct backing *b, uint64_t bytes, uint64_t device) {
    /* What a private mapping of a file copies, it copies by small pages; and of files on disk it is the file system that
     * makes large pages, or not. */
    if (b->kind->pool || (!b->kind->shmem && b->kind != &PRIVATE) || (b->kind->shmem && !b->kind->shared)) return false;
    return device ? huge_pages_allowed_on(device, bytes) : huge_pages_allowed(bytes, b->kind->shmem);
}

/* The largest size of huge page that a fault would take; nothing smaller can be had on purpose. */
static int largest(const struct backing *b, uint64_t device, uint64_t *bytes) {
    int rc = 0;
    *bytes = OS_HUGE;
    while (*bytes > OS_PAGE && (rc = huge_allowed(b, *bytes, device)) == 0) *bytes >>= 1;
    return rc < 0 ? rc : 0;
}

/* For the kinds without a pool. */
static int choose_pages(struct backing *b, const struct reservation_config *c, uint64_t device,
                        const struct failure *f) {
    uint64_t best = OS_PAGE, most = c->page_bytes ? c->page_bytes : OS_HUGE;
    int rc = c->pages == ARENA_PAGES_4K ? 0 : largest(b, device, &best);
    if (rc) return fail(f, rc, "huge pages");
    if (c->pages == ARENA_PAGES_HUGETLB) return fail(f, -ENOTSUP, "hugetlbfs");
    if (c->pages == ARENA_PAGES_THP && best != most)
        return fail(f, -ENOTSUP, b->kind->shmem ? "huge pages of shared memory" : "transparent huge pages");
    if (c->pages == ARENA_PAGES_AUTO && (best > most || best > c->size)) best = OS_PAGE;
    b->page = best;
    b->huge = best > OS_PAGE;
    /* fallocate knows of no advice: it would make small pages of huge ones, and on a mount with huge=always the reverse. */
    if (b->kind->shmem && (b->huge || (device && huge_pages_allowed_on(device, OS_HUGE) > 0))) b->allocates = false;
    return 0;
}

/* --- files -------------------------------------------------------------------------------------------------------- */

static int set_size(struct backing *b, const struct reservation_config *c, const struct failure *f) {
    b->bytes = (c->size + b->page - 1) & ~(b->page - 1);
    if (b->bytes < c->size || b->bytes > (uint64_t)1 << 47) return fail(f, -ENOMEM, "mmap");
    if (!b->ours || b->mapping.fd < 0) return 0;
    int rc = os_file_set_size(b->mapping.fd, b->bytes);
    return rc ? fail(f, rc, "ftruncate") : 0;
}

static int open_anonymous(struct backing *b, const struct reservation_config *c, const struct failure *f) {
    bool pool = c->pages == ARENA_PAGES_HUGETLB;
    b->kind = anonymous[pool][c->shared];
    b->ours = true;
    if (!pool) return choose_pages(b, c, 0, f);
    b->page = b->mapping.hugetlb = c->page_bytes;
    return pool_of(b, f);
}

static int open_memfd(struct backing *b, const struct reservation_config *c, const struct failure *f) {
    bool pool = c->pages == ARENA_PAGES_HUGETLB;
    b->kind = memfd[pool][c->shared];
    b->ours = b->allocates = true;
    if (pool) b->page = c->page_bytes;
    int rc = pool ? pool_of(b, f) : choose_pages(b, c, 0, f);
    if (rc) return rc;
    rc = os_memfd(c->name, pool ? b->page : 0, &b->mapping.fd);
    return rc ? fail(f, rc, "memfd_create") : 0;
}

static int use_file(struct backing *b, const struct reservation_config *c, const struct failure *f) {
    struct os_file found;
    int rc = os_file_look(b->mapping.fd, &found);
    if (rc) return fail(f, rc, "fstat");
    b->kind = file[found.type][c->shared];
    b->mapping.device = found.type == OS_FILE_OTHER;
    b->allocates = !c->readonly;
    if (found.type != OS_FILE_HUGETLBFS) {
        rc = choose_pages(b, c, found.type == OS_FILE_TMPFS ? found.device : 0, f);
        /* A file that is not ours may end within a huge page, which then could not be populated. */
        if (rc == 0 && !b->ours && b->huge && c->pages == ARENA_PAGES_AUTO && found.size < c->size + b->page &&
            found.size % b->page) {
            b->page = OS_PAGE;
            b->huge = false;
        }
        return rc;
    }
    b->page = found.page;
    if (c->pages == ARENA_PAGES_4K || c->pages == ARENA_PAGES_THP ||
        (c->pages == ARENA_PAGES_HUGETLB && c->page_bytes != found.page))
        return fail(f, -EINVAL, "pages");
    return pool_of(b, f);
}

/* A file that is missing, which nobody finds before it has its size. *exists: somebody else was first. */
static int create_whole(struct backing *b, const struct reservation_config *c, const struct failure *f, bool *exists) {
    char directory[4096], temporary[4096];
    int rc = os_directory_of(c->path, directory, sizeof directory);
    if (rc == 0) rc = os_open_unnamed(directory, &b->mapping.fd, temporary, sizeof temporary);
    if (rc) {
        b->mapping.fd = -1;
        return fail(f, rc, "open");
    }
    b->ours = b->peers = true;
    rc = use_file(b, c, f);
    if (rc == 0) rc = set_size(b, c, f);
    if (rc == 0 && (rc = os_link(b->mapping.fd, temporary, c->path)) != 0) {
        *exists = rc == -EEXIST;
        rc = fail(f, *exists ? rc : -EXDEV, "link");
    }
    b->created = rc == 0;
    if (rc && temporary[0]) os_unlink(temporary, b->mapping.fd);
    return rc;
}

/* The way without links, as on vfat or without /proc: for a moment others find it empty. */
static int create_empty(struct backing *b, const struct reservation_config *c, const struct failure *f, bool *exists) {
    bool directory;
    int rc = os_open_file(c->path, true, true, &b->mapping.fd, &directory);
    *exists = rc == -EEXIST;
    if (rc) {
        b->mapping.fd = -1;
        return fail(f, rc, "open");
    }
    b->ours = b->created = b->peers = true;
    rc = use_file(b, c, f);
    return rc ? rc : set_size(b, c, f);
}

static int create_path(struct backing *b, const struct reservation_config *c, const struct failure *f, bool *exists) {
    const struct backing none = *b;
    *exists = false;
    int rc = create_whole(b, c, f, exists);
    if (rc == -EXDEV) {
        os_close_file(b->mapping.fd);
        *b = none;
        rc = create_empty(b, c, f, exists);
    }
    if (*exists) {
        os_close_file(b->mapping.fd);
        *b = none;
    }
    return rc;
}

static int open_path(struct backing *b, const struct reservation_config *c, const struct failure *f) {
    bool directory, write = !c->readonly, exists;
    int rc;
    for (int tries = 0; tries < 8; tries++) { /* somebody may create or remove it in between */
        rc = os_open_file(c->path, write, false, &b->mapping.fd, &directory);
        /* A private mapping needs no right to write, except for `discard`. */
        if (write && !c->shared && (rc == -EACCES || rc == -EPERM || rc == -EROFS || rc == -ETXTBSY)) {
            write = false;
            continue;
        }
        if (rc != -ENOENT || c->readonly) break;
        b->mapping.fd = -1;
        rc = create_path(b, c, f, &exists);
        if (!exists) return rc;
    }
    if (directory) {
        os_close_file(b->mapping.fd);
        b->mapping.fd = -1;
        if (c->readonly) return fail(f, -EINVAL, "readonly");
        rc = os_open_unnamed(c->path, &b->mapping.fd, NULL, 0);
        b->ours = rc == 0;
    } else if (rc == 0) {
        b->peers = true;
    }
    if (rc) {
        b->mapping.fd = -1;
        return fail(f, rc, "open");
    }
    return use_file(b, c, f);
}

static int open_fd(struct backing *b, const struct reservation_config *c, const struct failure *f) {
    int rc = os_dup(c->fd, &b->mapping.fd);
    if (rc) {
        b->mapping.fd = -1;
        return fail(f, rc, "fd");
    }
    b->peers = true;
    return use_file(b, c, f);
}

int backing_open(struct backing *b, const struct reservation_config *c, const char **op, char *where, size_t n) {
    const struct failure f = {op, where, n};
    enum arena_backing from = c->backing;
    if (from == ARENA_BACKING_AUTO) from = c->shared ? ARENA_BACKING_MEMFD : ARENA_BACKING_ANONYMOUS;
    *b = (struct backing){.mapping = {.fd = -1, .shared = c->shared, .readonly = c->readonly},
                          .other = -1,
                          .node = c->bind ? (int)c->node : -1,
                          .page = OS_PAGE};
    if (c->readonly && from != ARENA_BACKING_PATH && from != ARENA_BACKING_FD) return fail(&f, -EINVAL, "readonly");
    int rc = from == ARENA_BACKING_PATH    ? open_path(b, c, &f)
             : from == ARENA_BACKING_FD    ? open_fd(b, c, &f)
             : from == ARENA_BACKING_MEMFD ? open_memfd(b, c, &f)
                                           : open_anonymous(b, c, &f);
    if (rc == 0 && !b->created) rc = set_size(b, c, &f);
    if (rc == 0 && b->kind == memfd[b->kind->pool][c->shared]) b->sealed = os_seal_size(b->mapping.fd) == 0;
    if (rc) backing_close(b, c->path);
    return rc;
}

void backing_close(struct backing *b, const char *unlink_path) {
    if (b->created && unlink_path) os_unlink(unlink_path, b->mapping.fd);
    os_close_file(b->mapping.fd);
    os_close_file(b->other);
    b->mapping.fd = b->other = -1;
}
