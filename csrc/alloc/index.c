#include "alloc/index.h"

#include <errno.h>
#include <stdlib.h>

#include "sys/bitmap.h"
#include "sys/thread.h"

#define NODES_FIRST 2048u  /* 64 KiB */
#define LEAVES_FIRST 128u  /* 32 KiB */
#define NODES_AT_ONCE 8192u /* 256 KiB: one populate call for so many blocks more */
#define LEAVES_AT_ONCE 256u
#define NODES_A_STEP (1u << 18) /* 8 MiB: 2 ms */
#define LEAVES_A_STEP (1u << 15) /* as much */
#define UNIT ((uint64_t)64 << 20) /* the index is populated for so much memory at a time */
#define PROGRESS_NS 10000000u

/* Populates the part of the tables that belongs to these units. */
static int populate_units(struct index *x, uint64_t first, uint64_t last, arena_progress progress, void *arg) {
    const struct freelist_layout *layout = &x->list.layout;
    uint64_t chunks = layout->granules >> layout->chunk_shift, unit = (uint64_t)1 << x->unit_shift;
    uint64_t asked = os_now_ns();
    for (uint64_t u = first; u <= last && u * unit < chunks; u++) {
        uint64_t from = u * unit;
        struct freelist_extent part[3];
        freelist_touch(layout, from, unit < chunks - from ? unit : chunks - from, part);
        int rc = table_populate(&x->map, part[0].offset, part[0].bytes);
        if (rc == 0) rc = table_populate(&x->side, part[1].offset, part[1].bytes);
        if (rc == 0) rc = table_populate(&x->chunks, part[2].offset, part[2].bytes);
        if (rc == 0 && progress && os_now_ns() - asked > PROGRESS_NS) {
            rc = progress(arg, 0, 0);
            asked = os_now_ns();
        }
        if (rc) return rc;
    }
    return 0;
}

int index_ensure_place(struct index *x, const struct freelist_block *place, arena_progress progress, void *arg) {
    unsigned shift = x->list.layout.chunk_shift + x->unit_shift;
    uint64_t chunk = (uint64_t)1 << x->list.layout.chunk_shift;
    /* The chunk behind it too: what is left of the free range may have its side record there. */
    uint64_t first = place->offset >> shift, last = (place->offset + place->size + chunk) >> shift;
    int rc = populate_units(x, first, last, progress, arg);
    if (rc) return rc;
    uint64_t units = (x->list.layout.granules >> shift) + 2;
    mutex_lock(x->lock);
    (void)bit_fill(x->ready, first, last + 1 < units ? last + 1 : units, true);
    mutex_unlock(x->lock);
    return 0;
}

/* Up to so many of both at hand, and some more: one populate call for many blocks. */
static int grow(struct index *x, uint64_t nodes, uint64_t leaves) {
    struct freelist *f = &x->list;
    mutex_lock(x->lock);
    uint32_t had_nodes = f->nodes_ready, had_leaves = f->leaves_ready;
    nodes = f->nodes_free < nodes ? had_nodes + (nodes - f->nodes_free) + NODES_AT_ONCE : had_nodes;
    leaves = f->leaves_free < leaves ? had_leaves + (leaves - f->leaves_free) + LEAVES_AT_ONCE : had_leaves;
    mutex_unlock(x->lock);
    if (nodes > f->layout.max_nodes) nodes = f->layout.max_nodes;
    if (leaves > f->layout.max_leaves) leaves = f->layout.max_leaves;
    if (nodes <= had_nodes && leaves <= had_leaves) return 0; /* others have been here, or have freed */
    int rc = table_populate(&x->nodes, had_nodes * sizeof(struct freelist_node),
                            (nodes - had_nodes) * sizeof(struct freelist_node));
    if (rc == 0)
        rc = table_populate(&x->leaves, had_leaves * sizeof(struct freelist_leaf),
                            (leaves - had_leaves) * sizeof(struct freelist_leaf));
    if (rc) return rc;
    mutex_lock(x->lock);
    if (nodes < f->nodes_ready) nodes = f->nodes_ready; /* another was faster */
    if (leaves < f->leaves_ready) leaves = f->leaves_ready;
    freelist_ready(f, (uint32_t)nodes, (uint32_t)leaves);
    mutex_unlock(x->lock);
    return 0;
}

int index_room(const struct index *x) {
    const struct freelist *f = &x->list;
    if (!freelist_is_short(f)) return 0;
    return f->nodes_free < 3 && f->nodes_ready == f->layout.max_nodes ? -ENOMEM : -EAGAIN;
}

int index_ensure(struct index *x, uint64_t nodes, uint64_t leaves, arena_progress progress, void *arg) {
    const struct freelist *f = &x->list;
    for (;;) {
        mutex_lock(x->lock);
        uint64_t has_nodes = f->nodes_free, has_leaves = f->leaves_free;
        bool all_nodes = f->nodes_ready == f->layout.max_nodes, all_leaves = f->leaves_ready == f->layout.max_leaves;
        mutex_unlock(x->lock);
        if ((has_nodes >= nodes || all_nodes) && (has_leaves >= leaves || all_leaves)) break;
        uint64_t next_nodes = nodes > has_nodes + NODES_A_STEP ? has_nodes + NODES_A_STEP : nodes;
        uint64_t next_leaves = leaves > has_leaves + LEAVES_A_STEP ? has_leaves + LEAVES_A_STEP : leaves;
        int rc = grow(x, all_nodes ? 0 : next_nodes, all_leaves ? 0 : next_leaves);
        if (rc == 0 && progress) rc = progress(arg, 0, 0);
        if (rc) return rc;
    }
    return 0;
}

static int reserve_tables(struct index *x, const struct os_features *features) {
    const struct freelist_layout *layout = &x->list.layout;
    int rc = table_reserve(&x->nodes, layout->node_bytes, features);
    if (rc == 0) rc = table_reserve(&x->leaves, layout->leaf_bytes, features);
    if (rc == 0) rc = table_reserve(&x->map, layout->map_bytes, features);
    if (rc == 0) rc = table_reserve(&x->side, layout->side_bytes, features);
    if (rc == 0) rc = table_reserve(&x->chunks, layout->chunk_bytes, features);
    return rc;
}

/* What freelist_init may touch. */
static int populate_first(struct index *x, uint32_t nodes, uint32_t leaves) {
    int rc = table_populate(&x->nodes, 0, nodes * sizeof(struct freelist_node));
    if (rc == 0) rc = table_populate(&x->leaves, 0, leaves * sizeof(struct freelist_leaf));
    if (rc == 0) rc = table_populate(&x->chunks, 0, x->list.layout.summary_bytes);
    return rc ? rc : populate_units(x, 0, 1 >> x->unit_shift, NULL, NULL);
}

int index_create(struct index *x, uint64_t bytes, unsigned chunk_shift, struct mutex *lock,
                 const struct os_features *features, const char **op) {
    struct freelist_layout *layout = &x->list.layout;
    *op = "index";
    int rc = freelist_plan(bytes >> FREELIST_GRANULE_SHIFT, chunk_shift - FREELIST_GRANULE_SHIFT, layout);
    if (rc) return rc;
    x->lock = lock;
    x->unit_shift = (uint64_t)1 << chunk_shift < UNIT ? (unsigned)__builtin_ctzll(UNIT) - chunk_shift : 0;
    uint64_t units = ((bytes >> chunk_shift) >> x->unit_shift) + 2;
    *op = "mmap of the index";
    x->ready = calloc((size_t)(units / 64 + 1), sizeof *x->ready);
    rc = x->ready ? reserve_tables(x, features) : -ENOMEM;
    if (rc) return rc;
    *op = "populating the index";
    uint32_t nodes = NODES_FIRST < layout->max_nodes ? NODES_FIRST : layout->max_nodes;
    uint32_t leaves = LEAVES_FIRST < layout->max_leaves ? LEAVES_FIRST : layout->max_leaves;
    rc = populate_first(x, nodes, leaves);
    if (rc) return rc;
    struct freelist_tables tables = {.node = (void *)x->nodes.base,
                                     .leaf = (void *)x->leaves.base,
                                     .map = (void *)x->map.base,
                                     .side = (void *)x->side.base,
                                     .chunk = (void *)x->chunks.base};
    struct freelist_layout plan = *layout;
    /* Arenas number their blocks far from each other, so that each knows the others' handles for foreign. */
    uint32_t serial = (uint32_t)(os_now_ns() ^ (uintptr_t)x) * 2654435769u;
    freelist_init(&x->list, &plan, &tables, nodes, leaves, serial);
    x->list.index_ready = x->ready;
    x->list.index_ready_shift = x->unit_shift;
    (void)bit_fill(x->ready, 0, (1u >> x->unit_shift) + 1, true);
    return 0;
}

void index_destroy(struct index *x) {
    table_unmap(&x->nodes);
    table_unmap(&x->leaves);
    table_unmap(&x->map);
    table_unmap(&x->side);
    table_unmap(&x->chunks);
    free(x->ready);
    x->ready = NULL;
}

size_t index_ranges(const struct index *x, struct registry_range *out) {
    const struct table *all[] = {&x->nodes, &x->leaves, &x->map, &x->side, &x->chunks};
    size_t n = 0;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i]->base) out[n++] = (struct registry_range){all[i]->base, all[i]->bytes};
    return n;
}
