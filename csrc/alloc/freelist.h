/* freelist.h: which granules of an arena are free.
 *
 * Integers only. The index never touches the memory it manages, makes no system call, takes no lock
 * and allocates nothing: its tables are handed in (sparse, zero-filled) and its caller serialises.
 *
 * A free range is maximal: two free ranges never touch. Ranges are kept in bins of a two-level
 * segregated fit (TLSF; Masmano et al., 2004): 32 steps an octave, exact below 64 granules. There are
 * two sets of bins. The set `COMMITTED` holds every range by its longest run of committed granules,
 * the set `TOTAL` holds by size those ranges that are not committed from end to end. An allocation
 * looks at COMMITTED first, so memory that is there is preferred to memory that is not, and at TOTAL
 * afterwards, so that a range that is half committed can still be handed out whole.
 *
 * The block freed last is left as it is: a request for the same size finds it as it was, which makes last in, first out a matter of
 * a few stores. Anything else first joins it with its neighbours; nobody outside can tell that it had not been.
 *
 * Allocation looks at a few members of the bin the request falls in, then takes a bin whose every
 * member fits, or else looks at the first FREELIST_SCAN members of its own: a fit within 1/32 of the
 * request can be missed when more ranges than that share the bin.
 *
 * What is committed is known by chunk. A range with both committed and uncommitted granules contains a chunk boundary,
 * and its extra record (struct freelist_side) lies at the index of its first one: no second allocator is needed. */
#ifndef ARENA_FREELIST_H
#define ARENA_FREELIST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FREELIST_GRANULE_SHIFT 6
#define FREELIST_GRANULE (1u << FREELIST_GRANULE_SHIFT)
#define FREELIST_PAGE_GRANULES 64u /* one 4 KiB page: the unit of the address map */
#define FREELIST_SUBBITS 5
#define FREELIST_ROWS 37
#define FREELIST_BINS (FREELIST_ROWS << FREELIST_SUBBITS)
#define FREELIST_SCAN 32
#define FREELIST_MAX_GRANULES (1ull << 40) /* 64 TiB */
#define FREELIST_MAX_NODES ((1u << 31) - 1)
#define FREELIST_MAX_CHUNKS (1ull << 27)

struct freelist_link {
    uint32_t prev, next;
};

/* A block or a free range; 32 bytes, 0.8% of a block of 4 KiB. */
struct freelist_node {
    uint64_t offset;     /* granules */
    uint64_t size;       /* granules, and the state in the top bits */
    uint32_t prev, next; /* neighbours by address; 0: none */
    union {
        struct freelist_link link; /* free: in COMMITTED if fully committed, else in TOTAL */
        uint64_t serial;           /* live: the allocation's number, the upper half of its handle */
    };
};

/* The map's second level, where more than one block starts in a page. */
struct freelist_leaf {
    uint32_t node[FREELIST_PAGE_GRANULES];
};

/* What a range that is committed in part needs beyond its node. */
struct freelist_side {
    uint64_t head, tail;       /* committed granules at its two ends */
    uint64_t inner, inner_at;  /* the longest committed run strictly inside, and where it begins */
    uint64_t inner_runs;       /* how many such runs */
    struct freelist_link link; /* in COMMITTED, by max(head, tail, inner) */
};

/* Sizes in bytes of the tables for an arena of this size. */
struct freelist_layout {
    uint64_t granules;
    uint32_t chunk_shift; /* log2 of the granules in a chunk */
    uint32_t max_nodes, max_leaves;
    size_t node_bytes, leaf_bytes; /* filled upward: the `ready` counts say how far they may be touched */
    size_t map_bytes, side_bytes, chunk_bytes; /* indexed by address, see freelist_touch */
    size_t summary_bytes; /* the first part of the chunk table: to be present at freelist_init */
};

struct freelist_tables {
    struct freelist_node *node;
    struct freelist_leaf *leaf;
    uint32_t *map;               /* by page: 0, or a node, or a leaf */
    struct freelist_side *side;  /* by chunk, one more than there are */
    uint64_t *chunk;             /* a bit a chunk: committed; before these, a bit a word of them that is not 0, */
                                 /* and a bit a word that is ~0 */
};

struct freelist_bins {
    uint64_t rows;
    uint32_t sub[FREELIST_ROWS];
    uint32_t head[FREELIST_BINS];
};

struct freelist {
    struct freelist_layout layout;
    struct freelist_tables table;
    struct freelist_bins committed, total;
    uint32_t nodes_ready, nodes_used, nodes_spare; /* spare: head of the list of returned nodes */
    uint32_t leaves_ready, leaves_used, leaves_spare;
    uint32_t nodes_free, leaves_free; /* what can be had without more `ready` */
    uint32_t serial, first;           /* first: the node at offset 0 */
    uint32_t last_freed;                  /* the block freed last, or 0 */
    const uint64_t
        *index_ready; /* a bit for 2^index_ready_shift chunks: freelist_touch was done for them; NULL: for all */
    unsigned index_ready_shift;
    uint64_t live, blocks, free_committed, committed_granules; /* granules */
};

struct freelist_block {
    uint64_t handle; /* serial << 32 | node; never 0 */
    uint64_t offset, size; /* granules */
    bool committed;        /* every chunk of it is */
};

struct freelist_span {
    uint64_t first, count; /* chunks */
    uint32_t range;        /* for freelist_unpick */
};

struct freelist_stats {
    uint64_t live, free, free_committed, committed, largest_free, largest_committed; /* granules */
    uint64_t blocks;
};

enum { FREELIST_COMMITTED_ONLY = 1 };

/* What tables are needed. 0, or -EINVAL: granules is 0, over FREELIST_MAX_GRANULES or no multiple of the chunk. */
int freelist_plan(uint64_t granules, uint32_t chunk_shift, struct freelist_layout *out);

/* One free, uncommitted range. The tables are zero where they can be touched. `serial` continues across resets, so old
 * handles stay stale; any number the first time. Node 0 is never used. */
void freelist_init(struct freelist *f, const struct freelist_layout *layout, const struct freelist_tables *tables,
                   uint32_t nodes_ready, uint32_t leaves_ready, uint32_t serial);

/* The tables may now be touched up to these counts (never fewer than before). */
void freelist_ready(struct freelist *f, uint32_t nodes, uint32_t leaves);

/* The byte ranges of the map, side and chunk tables that operations on these chunks touch: [0] map, [1] side, [2]
 * chunk. To be present before a block is put there, together with those of the chunk behind it. At freelist_init: those
 * of chunk 0. */
struct freelist_extent {
    size_t offset, bytes;
};
void freelist_touch(const struct freelist_layout *layout, uint64_t first, uint64_t count,
                    struct freelist_extent out[3]);

/* size granules at a multiple of align granules (a power of two, at most a chunk). The lowest part of the range found
 * is used, except a committed tail, where the highest is. -ENOSPC: no such range (or no committed one). -EAGAIN: fewer
 * than 3 nodes or 1 leaf are at hand, and nothing was done. -ENODATA: freelist_touch was not done for where the block
 * would be (*out, for freelist_take). -EINVAL: size 0, align not a power of two or over a chunk. */
int freelist_alloc(struct freelist *f, uint64_t size, uint64_t align, unsigned flags, struct freelist_block *out);

/* Are fewer nodes or leaves at hand than a block may need? Then freelist_ready has to come first. */
bool freelist_is_short(const struct freelist *f);

/* A block at the place that -ENODATA was said of, once freelist_touch was done for it: no second search. -EAGAIN: the place is
 * not free any more, or freelist_is_short. */
int freelist_take(struct freelist *f, const struct freelist_block *place, struct freelist_block *out);

/* What is lacking for `size` granules to be free and committed in one piece: a block that begins and ends with uncommitted
 * chunks, to be committed and freed again, while what is committed on both sides of it stays to be had. out->size 0:
 * nothing is lacking. Errors as freelist_alloc. */
int freelist_hold(struct freelist *f, uint64_t size, struct freelist_block *out);

/* -EINVAL: no live block has this handle. */
int freelist_free(struct freelist *f, uint64_t handle);
/* Joins the block freed last with its neighbours, for those who look at the ranges. */
void freelist_settle(struct freelist *f);
int freelist_get(const struct freelist *f, uint64_t handle, struct freelist_block *out);

/* The block that begins at this granule, in O(1); -ENOENT. */
int freelist_find(const struct freelist *f, uint64_t offset, struct freelist_block *out);

/* Grows into the range behind, or gives its end back. out->committed says whether all of the block is. Errors of alloc
 * and free. */
int freelist_resize(struct freelist *f, uint64_t handle, uint64_t size, unsigned flags, struct freelist_block *out);

/* These chunks are committed now (some may have been before). `near` is a live block that touches them, whose neighbours
 * are refreshed. Without one (0) the range is looked for in the map, from there downward to the next block. */
void freelist_commit(struct freelist *f, uint64_t first, uint64_t count, uint64_t near);

/* How many granules of a range are committed. */
uint64_t freelist_committed_in(const struct freelist *f, uint64_t offset, uint64_t size);

/* Takes up to max_chunks whole, free, committed chunks, from the end of the longest committed run, and marks them
 * uncommitted: the caller is about to release them. -ENOENT: there is none, or the first 16384 runs of one to two
 * chunks lie so that they hold no whole one. */
int freelist_pick(struct freelist *f, uint64_t max_chunks, struct freelist_span *out);
/* Undoes the pick, before anything else was done. */
void freelist_unpick(struct freelist *f, const struct freelist_span *span);

/* Up to max blocks (at least FREELIST_PAGE_GRANULES, for a page is never split) in address order, from *cursor (0 at
 * first) on; blocks that are not committed yet are left out. *cursor is UINT64_MAX at the end. Looks at a bounded
 * number of pages. */
size_t freelist_scan(const struct freelist *f, uint64_t *cursor, struct freelist_block *out, size_t max);

/* Every block is gone at once; what is committed stays so. The map is cleared where blocks were. */
void freelist_reset(struct freelist *f);

/* Exact. O(1) but for the largest size class in use, whose members are walked until one that fills it. */
void freelist_stats(struct freelist *f, struct freelist_stats *out);

/* For tests: every invariant, O(everything). 0, or the number of the line that found it broken. */
int freelist_check(const struct freelist *f);

#endif
