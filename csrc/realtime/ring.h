/* ring.h: how far a ring was written and read, for one thread (or process) that writes and one that reads.
 *
 * Both are counts of bytes since the beginning that only grow, in 64 bits, each written by one side alone: no loop, no
 * compare-and-swap, so both sides are wait-free. What two writers at once make of them is wrong, and never leads beyond the
 * memory: a window is at most `bytes` long and begins below `bytes`, whatever the counts are. */
#ifndef ARENA_RING_H
#define ARENA_RING_H

#include <stdbool.h>
#include <stdint.h>

/* Two cache lines each: some CPUs fetch them in pairs. */
struct ring {
    _Alignas(128) uint64_t written;
    _Alignas(128) uint64_t read;
};

/* Bytes to read, of `bytes` at most. `read` first: it is never ahead of a `written` that is looked at afterwards. */
static inline uint64_t ring_readable(const struct ring *r, uint64_t bytes) {
    uint64_t read = __atomic_load_n(&r->read, __ATOMIC_ACQUIRE);
    uint64_t n = __atomic_load_n(&r->written, __ATOMIC_ACQUIRE) - read;
    return n < bytes ? n : bytes;
}

static inline uint64_t ring_writable(const struct ring *r, uint64_t bytes) { return bytes - ring_readable(r, bytes); }

static inline uint64_t ring_written(const struct ring *r) { return __atomic_load_n(&r->written, __ATOMIC_RELAXED); }
static inline uint64_t ring_read(const struct ring *r) { return __atomic_load_n(&r->read, __ATOMIC_RELAXED); }

/* For the one who writes, and the one who reads. false: that many bytes are not free, or not there. */
static inline bool ring_produce(struct ring *r, uint64_t n, uint64_t bytes) {
    if (n > ring_writable(r, bytes)) return false;
    __atomic_store_n(&r->written, ring_written(r) + n, __ATOMIC_RELEASE);
    return true;
}

static inline bool ring_consume(struct ring *r, uint64_t n, uint64_t bytes) {
    if (n > ring_readable(r, bytes)) return false;
    __atomic_store_n(&r->read, ring_read(r) + n, __ATOMIC_RELEASE);
    return true;
}

#endif
