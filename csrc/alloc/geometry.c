#include "alloc/geometry.h"

#include <errno.h>

#include "alloc/freelist.h"
#include "sys/page.h"

#define CHUNK_MOST ((uint64_t)1 << 30)

static uint64_t page_of(const struct reservation_config *r) {
    bool huge = r->pages == ARENA_PAGES_THP || r->pages == ARENA_PAGES_HUGETLB;
    if (!huge) return OS_PAGE;
    return r->page_bytes ? r->page_bytes : OS_HUGE;
}

/* As large as a huge page, but no larger than a small arena needs. */
static uint64_t default_chunk(uint64_t size, uint64_t page) {
    uint64_t chunk = OS_HUGE;
    while (chunk > OS_PAGE && chunk > size) chunk >>= 1;
    return chunk > page ? chunk : page;
}

static struct geometry refused(struct geometry g, const char *what) {
    g.rc = -EINVAL;
    g.refused = what;
    return g;
}

struct geometry choose_geometry(const struct arena_config *config, uint64_t page) {
    const struct reservation_config *r = &config->reservation;
    struct geometry g = {.size = r->size, .page = page ? page : page_of(r), .page_bytes = r->page_bytes};
    g.chunk = config->chunk ? config->chunk : default_chunk(g.size, g.page);
    if (g.size == 0 || g.size > FREELIST_MAX_GRANULES << FREELIST_GRANULE_SHIFT) return refused(g, "size");
    if (r->readonly) return refused(g, "readonly");
    bool is_power = (g.chunk & (g.chunk - 1)) == 0;
    /* A part of a huge page cannot be given back. */
    if (!is_power || g.chunk < g.page || g.chunk > CHUNK_MOST || g.size / g.chunk >= FREELIST_MAX_CHUNKS)
        return refused(g, "chunk");
    if (r->pages == ARENA_PAGES_AUTO && g.chunk < OS_HUGE) g.page_bytes = g.chunk;
    g.size = (g.size + g.chunk - 1) & ~(g.chunk - 1);
    return g;
}
