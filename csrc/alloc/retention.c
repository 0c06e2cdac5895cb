#include "alloc/retention.h"

static uint64_t excess(const struct retention *r, uint64_t free_bytes) {
    uint64_t keep = r->retain > r->warmed ? r->retain : r->warmed;
    return free_bytes > keep ? free_bytes - keep : 0;
}

bool retention_decide(struct retention *r, uint64_t free_bytes, uint64_t now, uint64_t chunk) {
    if (r->decay_ns == 0) {
        r->purgeable = excess(r, free_bytes);
    } else if (now >= r->window_end) {
        r->purgeable = r->window_end ? excess(r, r->low_water) : 0;
        r->low_water = free_bytes;
        r->window_end = r->decay_ns < UINT64_MAX - now ? now + r->decay_ns : UINT64_MAX;
    }
    return r->purgeable >= chunk;
}

uint64_t retention_to_purge(struct retention *r, uint64_t free_bytes) {
    uint64_t most = r->retain == UINT64_MAX ? 0 : excess(r, free_bytes);
    if (r->decay_ns == 0 || r->purgeable > most) r->purgeable = most;
    return r->purgeable;
}

void retention_purged(struct retention *r, uint64_t bytes, uint64_t free_bytes) {
    retention_note(r, free_bytes); /* it is not free any more */
    r->purgeable = r->purgeable > bytes ? r->purgeable - bytes : 0;
}

uint64_t retention_warm(struct retention *r, uint64_t bytes) {
    uint64_t before = r->warmed;
    if (bytes > before) r->warmed = bytes;
    return before;
}

void retention_unwarm(struct retention *r, uint64_t bytes, uint64_t before) {
    if (r->warmed == bytes) r->warmed = before; /* unless another has warmed more meanwhile */
}

void retention_end(struct retention *r) { r->retain = r->warmed = r->decay_ns = 0; }
