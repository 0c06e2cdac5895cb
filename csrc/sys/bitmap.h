/* bitmap.h: runs of bits, a word at a time. Words are read and written whole and relaxed, so that an operation may look at
 * bits that nobody else changes while the others in their word move under the lock. */
#ifndef ARENA_BITMAP_H
#define ARENA_BITMAP_H

#include <stdbool.h>
#include <stdint.h>

static inline uint64_t bit_word(const uint64_t *map, uint64_t word) {
    return __atomic_load_n(&map[word], __ATOMIC_RELAXED);
}

/* The first i in [from, end) whose bit is `value`; end if there is none. */
static inline uint64_t bit_next(const uint64_t *map, uint64_t from, uint64_t end, bool value) {
    while (from < end) {
        uint64_t word = bit_word(map, from / 64);
        word = (value ? word : ~word) >> (from % 64);
        if (word) {
            from += (uint64_t)__builtin_ctzll(word);
            return from < end ? from : end;
        }
        from = (from / 64 + 1) * 64;
    }
    return end;
}

/* The next run of bits that are `value`, from *from on and before `end`: [*first, *from). false: there is none. */
static inline bool bit_next_run(const uint64_t *map, bool value, uint64_t *from, uint64_t end, uint64_t *first) {
    *first = bit_next(map, *from, end, value);
    *from = bit_next(map, *first, end, !value);
    return *first < *from;
}

/* Are all of [from, end) set? */
static inline bool bit_all(const uint64_t *map, uint64_t from, uint64_t end) {
    return bit_next(map, from, end, false) == end;
}

static inline uint64_t bit_mask(uint64_t from, uint64_t end, uint64_t *n) {
    *n = 64 - from % 64;
    if (*n > end - from) *n = end - from;
    return (*n == 64 ? ~0ull : (1ull << *n) - 1) << (from % 64);
}

/* Sets [from, end) to `value`; returns how many bits changed. */
static inline uint64_t bit_fill(uint64_t *map, uint64_t from, uint64_t end, bool value) {
    uint64_t changed = 0, n;
    for (; from < end; from += n) {
        uint64_t mask = bit_mask(from, end, &n), word = bit_word(map, from / 64);
        changed += (uint64_t)__builtin_popcountll((value ? ~word : word) & mask);
        __atomic_store_n(&map[from / 64], value ? word | mask : word & ~mask, __ATOMIC_RELAXED);
    }
    return changed;
}

/* Sets or clears [from, end) where others change their bits of the same words at the same time. */
static inline void bit_fill_shared(uint64_t *map, uint64_t from, uint64_t end, bool value) {
    uint64_t n;
    for (; from < end; from += n) {
        uint64_t mask = bit_mask(from, end, &n);
        if (value)
            __atomic_fetch_or(&map[from / 64], mask, __ATOMIC_RELAXED);
        else
            __atomic_fetch_and(&map[from / 64], ~mask, __ATOMIC_RELAXED);
    }
}

static inline uint64_t bit_count(const uint64_t *map, uint64_t from, uint64_t end) {
    uint64_t count = 0, n;
    for (; from < end; from += n) {
        uint64_t mask = bit_mask(from, end, &n);
        count += (uint64_t)__builtin_popcountll(bit_word(map, from / 64) & mask);
    }
    return count;
}

#endif
