/* The index's memory: sparse tables, populated a unit at a time before the index looks at them. */
#include <errno.h>
#include <stdlib.h>

#include "alloc/arena_internal.h"
#include "sys/bitmap.h"
#include "sys/thread.h"

#define NODES_FIRST 2048u  /* 64 KiB */
#define LEAVES_FIRST 128u  /* 32 KiB */
#define NODES_AT_ONCE 8192u /* 256 KiB: one populate call for so many blocks more */
#define LEAVES_AT_ONCE 256u
#define NODES_A_TICK (1u << 18)   /* 8 MiB: 2 ms */
#define UNIT ((uint64_t)64 << 20) /* the index is populated for so much memory at a time */
#define PROGRESS_NS 10000000u

static int touch_units(struct arena *a, uint64_t first, uint64_t last, const struct commit_control *how) {
    const struct freelist_layout *layout = &a->index.layout;
    uint64_t chunks = layout->granules >> layout->chunk_shift, unit = (uint64_t)1 << a->unit_shift;
    uint64_t asked = os_now_ns();
    for (uint64_t u = first >> a->unit_shift; u <= last >> a->unit_shift; u++) {
        uint64_t from = u * unit;
        if (from >= chunks) break;
        struct freelist_extent part[3];
        freelist_touch(layout, from, unit < chunks - from ? unit : chunks - from, part);
        int rc = table_populate(&a->map, part[0].offset, part[0].bytes);
        if (rc == 0) rc = table_populate(&a->side, part[1].offset, part[1].bytes);
        if (rc == 0) rc = table_populate(&a->chunks, part[2].offset, part[2].bytes);
        if (rc == 0 && how->progress && os_now_ns() - asked > PROGRESS_NS) {
            rc = how->progress(how->arg, 0, 0);
            asked = os_now_ns();
        }
        if (rc) return rc;
    }
    return 0;
}

/* For a block that is going to be where freelist_alloc said. Outside the lock: two threads may do the same, and the second
 * finds it done. The index for memory that cannot be had is not populated. */
static int touch_index(struct arena *a, const struct freelist_block *b, const struct commit_control *how,
                       struct arena_error *error) {
    uint64_t first = bytes_of(b->offset) >> a->chunk_shift;
    uint64_t last = (bytes_of(b->offset + b->size) >> a->chunk_shift) + 1;
    mutex_lock(&a->lock);
    uint64_t lacking = bytes_of(b->size - freelist_committed_in(&a->index, b->offset, b->size));
    mutex_unlock(&a->lock);
    int rc = a->read_only_populate ? 0 : reservation_preflight(&a->reservation, bytes_of(b->offset), lacking, error);
    if (rc) return rc;
    rc = touch_units(a, first, last, how);
    if (rc) return arena_explain(error, rc, "populating the index", bytes_of(b->size), UINT64_MAX);
    mutex_lock(&a->lock);
    uint64_t units = ((a->index.layout.granules >> a->index.layout.chunk_shift) >> a->unit_shift) + 2;
    uint64_t end = (last >> a->unit_shift) + 1;
    (void)bit_fill(a->index_ready, first >> a->unit_shift, end < units ? end : units, true);
    mutex_unlock(&a->lock);
    return 0;
}

static int grow_index(struct arena *a, uint64_t nodes, uint64_t leaves) {
    struct freelist *f = &a->index;
    mutex_lock(&a->lock);
    uint32_t had_nodes = f->nodes_ready, had_leaves = f->leaves_ready;
    bool enough = f->nodes_free >= nodes && f->leaves_free >= leaves; /* others have been here, or have freed */
    nodes = f->nodes_free < nodes ? had_nodes + (nodes - f->nodes_free) + NODES_AT_ONCE : had_nodes;
    leaves = f->leaves_free < leaves ? had_leaves + (leaves - f->leaves_free) + LEAVES_AT_ONCE : had_leaves;
    mutex_unlock(&a->lock);
    if (nodes > f->layout.max_nodes) nodes = f->layout.max_nodes;
    if (leaves > f->layout.max_leaves) leaves = f->layout.max_leaves;
    if (nodes <= had_nodes && leaves <= had_leaves) return enough ? 0 : -ENOMEM;
    int rc = table_populate(&a->nodes, had_nodes * sizeof(struct freelist_node),
                            (nodes - had_nodes) * sizeof(struct freelist_node));
    if (rc == 0)
        rc = table_populate(&a->leaves, had_leaves * sizeof(struct freelist_leaf),
                            (leaves - had_leaves) * sizeof(struct freelist_leaf));
    if (rc) return rc;
    mutex_lock(&a->lock);
    if (nodes > f->nodes_ready || leaves > f->leaves_ready)
        freelist_ready(f, nodes > f->nodes_ready ? (uint32_t)nodes : f->nodes_ready,
                       leaves > f->leaves_ready ? (uint32_t)leaves : f->leaves_ready);
    mutex_unlock(&a->lock);
    return 0;
}

int arena_index_extend(struct arena *a, int lacks, const struct freelist_block *b, const struct commit_control *how,
                       struct arena_error *error) {
    if (lacks == -ENODATA) return touch_index(a, b, how, error);
    int rc = grow_index(a, 4, 2);
    return rc ? arena_explain(error, rc, "populating the index", 0, UINT64_MAX) : 0;
}

static int reserve_tables(struct arena *a, const struct freelist_layout *layout) {
    const struct os_features *features = a->reservation.features;
    int rc = table_reserve(&a->nodes, layout->node_bytes, features);
    if (rc == 0) rc = table_reserve(&a->leaves, layout->leaf_bytes, features);
    if (rc == 0) rc = table_reserve(&a->map, layout->map_bytes, features);
    if (rc == 0) rc = table_reserve(&a->side, layout->side_bytes, features);
    if (rc == 0) rc = table_reserve(&a->chunks, layout->chunk_bytes, features);
    return rc;
}

/* What freelist_init may touch. */
static int populate_first(struct arena *a, uint32_t nodes, uint32_t leaves) {
    int rc = table_populate(&a->nodes, 0, nodes * sizeof(struct freelist_node));
    if (rc == 0) rc = table_populate(&a->leaves, 0, leaves * sizeof(struct freelist_leaf));
    if (rc == 0) rc = table_populate(&a->chunks, 0, a->index.layout.summary_bytes);
    return rc ? rc : touch_units(a, 0, 1, &(struct commit_control){0});
}

int arena_index_create(struct arena *a, uint64_t size, struct arena_error *error) {
    struct freelist_layout *layout = &a->index.layout;
    int rc = freelist_plan(granules_of(size), a->chunk_shift - FREELIST_GRANULE_SHIFT, layout);
    if (rc) return arena_explain(error, rc, "index", size, UINT64_MAX);
    a->unit_shift = (uint64_t)1 << a->chunk_shift < UNIT ? (unsigned)__builtin_ctzll(UNIT) - a->chunk_shift : 0;
    uint64_t units = ((size >> a->chunk_shift) >> a->unit_shift) + 2;
    a->index_ready = calloc((size_t)(units / 64 + 1), sizeof *a->index_ready);
    rc = a->index_ready ? reserve_tables(a, layout) : -ENOMEM;
    if (rc) return arena_explain(error, rc, "mmap of the index", size, UINT64_MAX);
    uint32_t nodes = NODES_FIRST < layout->max_nodes ? NODES_FIRST : layout->max_nodes;
    uint32_t leaves = LEAVES_FIRST < layout->max_leaves ? LEAVES_FIRST : layout->max_leaves;
    rc = populate_first(a, nodes, leaves);
    if (rc) return arena_explain(error, rc, "populating the index", size, UINT64_MAX);
    struct freelist_tables tables = {.node = (void *)a->nodes.base,
                                     .leaf = (void *)a->leaves.base,
                                     .map = (void *)a->map.base,
                                     .side = (void *)a->side.base,
                                     .chunk = (void *)a->chunks.base};
    struct freelist_layout plan = *layout;
    /* Arenas number their blocks far from each other, so that each knows the others' handles for foreign. */
    uint32_t serial = (uint32_t)(os_now_ns() ^ (uintptr_t)a) * 2654435769u;
    freelist_init(&a->index, &plan, &tables, nodes, leaves, serial);
    a->index.index_ready = a->index_ready;
    a->index.index_ready_shift = a->unit_shift;
    (void)bit_fill(a->index_ready, 0, (1u >> a->unit_shift) + 1, true);
    return 0;
}

void arena_index_free(struct arena *a) {
    table_unmap(&a->nodes);
    table_unmap(&a->leaves);
    table_unmap(&a->map);
    table_unmap(&a->side);
    table_unmap(&a->chunks);
    free(a->index_ready);
    a->index_ready = NULL;
}

size_t arena_index_ranges(struct arena *a, struct registry_range *out) {
    const struct table *all[] = {&a->nodes, &a->leaves, &a->map, &a->side, &a->chunks};
    size_t n = 0;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i]->base) out[n++] = (struct registry_range){all[i]->base, all[i]->bytes};
    return n;
}

int arena_index_warm(struct arena *a, uint64_t blocks, const struct commit_control *how) {
    for (;;) {
        mutex_lock(&a->lock);
        uint64_t at_hand = a->index.nodes_free;
        bool all = a->index.nodes_ready == a->index.layout.max_nodes;
        mutex_unlock(&a->lock);
        if (at_hand >= blocks || all) return 0;
        int rc = grow_index(a, blocks - at_hand < NODES_A_TICK ? blocks : at_hand + NODES_A_TICK, 1);
        if (rc == 0 && how->progress) rc = how->progress(how->arg, 0, 0);
        if (rc) return rc;
    }
}
