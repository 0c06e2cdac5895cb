/* A long random run of the free-space index, with every invariant checked along the way. To be compiled with
 *
 *     gcc -O1 -g -fsanitize=address,undefined -Icsrc -Icsrc/include tests/core/freelist_stress.c csrc/alloc/freelist*.c
 *
 * The arguments are the seed and the number of operations in each arena. Every second arena keeps its tables closed
 * where the contract of freelist_touch says that nothing is looked at, so a stray access is a crash: to the byte under
 * the sanitizer, else to the page. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

#include "alloc/freelist.h"

#define PAGE 4096u
#define BLOCKS 4096u

#define MUST(x)                                                                            \
    do {                                                                                   \
        if (!(x)) {                                                                        \
            fprintf(stderr, "%s:%d: %s (arena %s)\n", __FILE__, __LINE__, #x, arena_name); \
            exit(1);                                                                       \
        }                                                                                  \
    } while (0)

static char arena_name[80];
static uint64_t state;

static uint64_t draw(uint64_t below) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (state >> 11) % below;
}

struct world {
    struct freelist index;
    struct freelist_layout layout;
    struct freelist_tables tables;
    uint64_t *index_ready;
    size_t table_bytes[5];
    uint64_t handle[BLOCKS], offset[BLOCKS], size[BLOCKS];
    unsigned char *owner, *committed; /* by granule: is it live; by chunk */
    uint32_t blocks;
    bool closed;
};

#ifdef __SANITIZE_ADDRESS__
static void table_close(void *base, size_t bytes) { __asan_poison_memory_region(base, bytes); }
static void table_open(void *base, size_t offset, size_t bytes) {
    __asan_unpoison_memory_region((char *)base + offset, bytes);
}
#else
static void table_close(void *base, size_t bytes) { MUST(mprotect(base, bytes, PROT_NONE) == 0); }
static void table_open(void *base, size_t offset, size_t bytes) {
    size_t start = offset & ~(size_t)(PAGE - 1), end = (offset + bytes + PAGE - 1) & ~(size_t)(PAGE - 1);
    if (start < end) MUST(mprotect((char *)base + start, end - start, PROT_READ | PROT_WRITE) == 0);
}
#endif

static void *table_new(size_t bytes, bool closed) {
    void *base = mmap(NULL, bytes + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    MUST(base != MAP_FAILED);
    if (closed) table_close(base, bytes + PAGE);
    return base;
}

static void touch(struct world *w, uint64_t first, uint64_t last) {
    uint64_t chunks = w->layout.granules >> w->layout.chunk_shift;
    for (uint64_t at = first; at <= last && at < chunks; at++) {
        struct freelist_extent part[3];
        freelist_touch(&w->layout, at, 1, part);
        table_open(w->tables.map, part[0].offset, part[0].bytes);
        table_open(w->tables.side, part[1].offset, part[1].bytes);
        table_open(w->tables.chunk, part[2].offset, part[2].bytes);
        w->index_ready[at / 64] |= 1ull << (at % 64);
    }
}

static void world_new(struct world *w, uint64_t granules, uint32_t chunk_shift, bool closed) {
    memset(w, 0, sizeof *w);
    MUST(freelist_plan(granules, chunk_shift, &w->layout) == 0);
    const struct freelist_layout *l = &w->layout;
    size_t bytes[5] = {l->node_bytes, l->leaf_bytes, l->map_bytes, l->side_bytes, l->chunk_bytes};
    memcpy(w->table_bytes, bytes, sizeof bytes);
    w->closed = closed;
    if (closed) {
        w->tables = (struct freelist_tables){table_new(bytes[0], false), table_new(bytes[1], false),
                                             table_new(bytes[2], true), table_new(bytes[3], true),
                                             table_new(bytes[4], true)};
        w->index_ready = calloc((granules >> chunk_shift) / 64 + 1, 8);
        MUST(w->index_ready);
        table_open(w->tables.chunk, 0, l->summary_bytes);
        touch(w, 0, 0);
    } else { /* from the heap, so that the sanitizer sees the ends */
        w->tables = (struct freelist_tables){calloc(bytes[0], 1), calloc(bytes[1], 1), calloc(bytes[2], 1),
                                             calloc(bytes[3], 1), calloc(bytes[4], 1)};
    }
    w->owner = calloc(granules, 1);
    w->committed = calloc((granules >> chunk_shift) + 1, 1);
    MUST(w->owner && w->committed);
    freelist_init(&w->index, l, &w->tables, 4, 2, closed ? UINT32_MAX - 1000 : 0);
    w->index.index_ready = w->index_ready;
}

static void world_drop(struct world *w) {
    void *table[5] = {w->tables.node, w->tables.leaf, w->tables.map, w->tables.side, w->tables.chunk};
    for (int i = 0; i < 5; i++) {
        if (w->closed) {
            table_open(table[i], 0, w->table_bytes[i] + PAGE);
            munmap(table[i], w->table_bytes[i] + PAGE);
        } else {
            free(table[i]);
        }
    }
    free(w->index_ready);
    free(w->owner);
    free(w->committed);
}

static bool there(const struct world *w, uint64_t offset, uint64_t size) {
    for (uint64_t c = offset >> w->layout.chunk_shift; c << w->layout.chunk_shift < offset + size; c++) {
        if (!w->committed[c]) return false;
    }
    return true;
}

/* Some or all of a block's chunks. */
static void commit(struct world *w, uint32_t i, bool all) {
    unsigned shift = w->layout.chunk_shift;
    uint64_t first = w->offset[i] >> shift, end = ((w->offset[i] + w->size[i] - 1) >> shift) + 1;
    if (!all) {
        first += draw(end - first);
        end = first + 1 + draw(end - first);
    }
    memset(w->committed + first, 1, end - first);
    freelist_commit(&w->index, first, end - first, w->handle[i]);
    struct freelist_block b;
    MUST(freelist_get(&w->index, w->handle[i], &b) == 0);
    MUST(b.committed == there(w, b.offset, b.size));
}

static void take(struct world *w, uint32_t i, const struct freelist_block *b, uint64_t from) {
    for (uint64_t g = b->offset + from; g < b->offset + b->size; g++) {
        MUST(!w->owner[g]);
        w->owner[g] = 1;
    }
    MUST(b->committed == there(w, b->offset, b->size));
    w->handle[i] = b->handle;
    w->offset[i] = b->offset;
    w->size[i] = b->size;
}

static uint64_t some_size(const struct world *w) {
    uint64_t top = w->layout.granules;
    if (draw(3) == 0) return 1 + draw(48);
    if (draw(50) == 0) return 1 + draw(top);
    while (draw(4)) top = top > 8 ? top / 3 : top;
    return 1 + draw(top > 2048 ? 2048 : top);
}

/* Does what the caller of the index has to do when it is told to; true: try again. */
static bool more(struct world *w, int rc, const struct freelist_block *b) {
    struct freelist *f = &w->index;
    if (rc == -EAGAIN) {
        uint32_t nodes = f->nodes_ready + 3, leaves = f->leaves_ready + 1;
        if (nodes > f->layout.max_nodes) nodes = f->layout.max_nodes;
        if (leaves > f->layout.max_leaves) leaves = f->layout.max_leaves;
        MUST(nodes > f->nodes_ready || leaves > f->leaves_ready);
        freelist_ready(f, nodes, leaves);
        return true;
    }
    if (rc != -ENODATA) return false;
    touch(w, b->offset >> w->layout.chunk_shift, ((b->offset + b->size - 1) >> w->layout.chunk_shift) + 1);
    return true;
}

static void alloc_one(struct world *w) {
    uint64_t size = some_size(w), align = draw(3) ? 1 : 1ull << draw(w->layout.chunk_shift + 1);
    unsigned flags = draw(4) ? 0 : FREELIST_COMMITTED_ONLY;
    struct freelist_block b;
    int rc;
    if (w->blocks == BLOCKS) return;
    do {
        rc = freelist_alloc(&w->index, size, align, flags, &b);
        if (rc == -ENODATA && draw(4)) {
            struct freelist_block place = b;
            MUST(freelist_take(&w->index, &place, &b) == -EAGAIN); /* its tables are not there yet */
            (void)more(w, rc, &place);
            rc = freelist_take(&w->index, &place, &b);
        }
    } while (more(w, rc, &b));
    if (rc == -ENOSPC) return;
    MUST(rc == 0 && b.size == size && b.offset % align == 0 && (b.committed || !flags));
    take(w, w->blocks++, &b, 0);
    if (!b.committed && draw(3)) commit(w, w->blocks - 1, draw(3) != 0);
}

static void free_one(struct world *w, uint32_t i) {
    uint64_t handle = w->handle[i];
    struct freelist_block b;
    MUST(freelist_find(&w->index, w->offset[i], &b) == 0 && b.handle == handle && b.size == w->size[i]);
    MUST(freelist_free(&w->index, handle) == 0);
    MUST(freelist_free(&w->index, handle) == -EINVAL);
    memset(w->owner + w->offset[i], 0, w->size[i]);
    w->blocks--;
    w->handle[i] = w->handle[w->blocks];
    w->offset[i] = w->offset[w->blocks];
    w->size[i] = w->size[w->blocks];
}

static void resize_one(struct world *w, uint32_t i) {
    uint64_t size = draw(2) ? 1 + draw(w->size[i]) : w->size[i] + draw(2 * w->size[i] + 1), had = w->size[i];
    struct freelist_block b;
    int rc;
    do rc = freelist_resize(&w->index, w->handle[i], size, draw(2), &b);
    while (more(w, rc, &b));
    if (rc == -ENOSPC) return;
    MUST(rc == 0 && b.handle == w->handle[i] && b.offset == w->offset[i] && b.size == size);
    if (size < had) memset(w->owner + b.offset + size, 0, had - size);
    take(w, i, &b, size < had ? size : had);
}

static void pick_one(struct world *w) {
    struct freelist_span span;
    if (freelist_pick(&w->index, 1 + draw(8), &span)) return;
    unsigned shift = w->layout.chunk_shift;
    for (uint64_t c = span.first; c < span.first + span.count; c++) {
        MUST(w->committed[c]);
        w->committed[c] = 0;
    }
    for (uint64_t g = span.first << shift; g < (span.first + span.count) << shift; g++) MUST(!w->owner[g]);
    if (draw(8) == 0) { /* the release failed */
        memset(w->committed + span.first, 1, span.count);
        if (draw(2))
            freelist_unpick(&w->index, &span);
        else
            freelist_commit(&w->index, span.first, span.count, 0);
    }
}

static void scan_all(struct world *w) {
    static struct freelist_block found[128];
    uint64_t cursor = 0, expected = 0, seen = 0, end = 0;
    for (uint32_t i = 0; i < w->blocks; i++) expected += there(w, w->offset[i], w->size[i]);
    while (cursor != UINT64_MAX) {
        size_t n = freelist_scan(&w->index, &cursor, found, 64 + draw(65));
        for (size_t i = 0; i < n; i++) {
            MUST(found[i].committed && found[i].offset >= end);
            end = found[i].offset + found[i].size;
        }
        seen += n;
    }
    MUST(seen == expected);
}

static void run(uint64_t granules, uint32_t chunk_shift, bool closed, uint64_t operations) {
    static struct world w;
    snprintf(arena_name, sizeof arena_name, "of %llu granules, chunk shift %u, %s", (unsigned long long)granules,
             chunk_shift, closed ? "closed" : "open");
    world_new(&w, granules, chunk_shift, closed);
    for (uint64_t n = 0; n < operations; n++) {
        uint64_t what = draw(100), phase = n >> 12 & 1;
        if (what < (phase ? 35 : 55))
            alloc_one(&w);
        else if (what < 80)
            w.blocks ? free_one(&w, (uint32_t)draw(w.blocks)) : alloc_one(&w);
        else if (what < 90)
            w.blocks ? resize_one(&w, (uint32_t)draw(w.blocks)) : alloc_one(&w);
        else if (what < 96)
            pick_one(&w);
        else if (what < 98 && w.blocks)
            commit(&w, (uint32_t)draw(w.blocks), draw(2));
        else if (draw(10) == 0)
            scan_all(&w);
        else if (draw(100) == 0) {
            freelist_reset(&w.index);
            memset(w.owner, 0, granules);
            if (w.blocks) MUST(freelist_free(&w.index, w.handle[0]) == -EINVAL);
            w.blocks = 0;
        }
        if (n % 16 == 0) {
            int line = freelist_check(&w.index);
            if (line)
                fprintf(stderr, "freelist_check.c:%d does not hold after %llu operations\n", line,
                        (unsigned long long)n);
            MUST(line == 0);
        }
    }
    world_drop(&w);
}

int main(int argc, char **argv) {
    state = argc > 1 ? strtoull(argv[1], NULL, 0) * 2 + 1 : 20260101;
    uint64_t operations = argc > 2 ? strtoull(argv[2], NULL, 0) : 60000;
    static const struct {
        uint64_t chunks;
        uint32_t shift;
    } arenas[] = {{1, 6}, {3, 6}, {64, 6}, {300, 6}, {2000, 6}, {40, 9}, {500, 9}, {130, 12}, {3, 14}};
    for (size_t i = 0; i < 2 * sizeof arenas / sizeof *arenas; i++)
        run(arenas[i / 2].chunks << arenas[i / 2].shift, arenas[i / 2].shift, i % 2, operations);
    return 0;
}
