/* retention.h: how much free memory an arena keeps, and when it gives back the rest. Pure: the time, and how much memory is
 * free and committed at this moment, are passed in; the caller serialises. All is bytes, and nanoseconds.
 *
 * Of what is free beyond `retain` (or what was warmed, where that is more) only so much is purgeable as was free during the
 * whole of the last window of decay_ns: the low-water mark of the window. Without decay all of it is, at once. */
#ifndef ARENA_RETENTION_H
#define ARENA_RETENTION_H

#include <stdbool.h>
#include <stdint.h>

struct retention {
    uint64_t retain; /* to keep, as the user said; UINT64_MAX: all */
    uint64_t warmed; /* to keep, for it was made present on purpose */
    uint64_t decay_ns;
    uint64_t low_water; /* the least that was free since the window began */
    uint64_t window_end; /* 0: none has begun */
    uint64_t purgeable;
};

/* Does the time matter? */
static inline bool retention_uses_clock(const struct retention *r) { return r->decay_ns && r->retain != UINT64_MAX; }
/* So much is free now that some of it was taken. */
static inline void retention_note(struct retention *r, uint64_t free_bytes) {
    if (free_bytes < r->low_water) r->low_water = free_bytes;
}
/* Something was freed: is there a chunk to purge by now? */
bool retention_decide(struct retention *r, uint64_t free_bytes, uint64_t now, uint64_t chunk);
static inline bool retention_freed(struct retention *r, uint64_t free_bytes, uint64_t now, uint64_t chunk) {
    return r->retain != UINT64_MAX && retention_decide(r, free_bytes, now, chunk);
}
/* How much to purge now: some of what was purgeable may be in use again. */
uint64_t retention_to_purge(struct retention *r, uint64_t free_bytes);
/* So much was given back. */
void retention_purged(struct retention *r, uint64_t bytes, uint64_t free_bytes);
/* So much was made present, and is to be kept. What was kept for that reason until then: retention_unwarm takes it, should the
 * warming fail after all. */
uint64_t retention_warm(struct retention *r, uint64_t bytes);
void retention_unwarm(struct retention *r, uint64_t bytes, uint64_t before);
/* Nothing is kept any more: nobody will want again what is free. */
void retention_end(struct retention *r);

#endif
