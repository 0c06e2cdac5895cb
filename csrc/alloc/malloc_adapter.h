/* malloc_adapter.h: malloc's interface on an arena, for those who know memory by its address only, such as NumPy's data handlers (NEP 49)
 * and STL allocators. Each function takes the adapter as void *, which is how such interfaces pass it.
 *
 * Memory is 64-byte aligned and present. Thread-safe. What is freed goes back whichever adapter of the arena had it, and also
 * after arena_close. While there is any, arena_reset is -EBUSY. The arena outlives its adapters. */
#ifndef ARENA_MALLOC_ADAPTER_H
#define ARENA_MALLOC_ADAPTER_H

#include "arena.h"

struct malloc_adapter {
    arena *arena;
    /* What the arena cannot give comes from malloc: not present, and not 64-byte aligned. Once the arena is closed that is so in
     * any case, for NumPy allocates by a context's default, and not because somebody chose this arena now. */
    bool overflow;
    /* A lock of the caller's (Python's GIL) is let go of around what may take long, where the thread holds it: leave says so
     * with what come_back needs, or NULL. progress is asked where it was held, see arena_alloc. closed is called where
     * it is held again, after memory came from malloc because the arena is closed. All may be NULL. */
    void *(*leave)(void);
    void (*come_back)(void *held);
    arena_progress progress;
    void (*closed)(void *arg);
    void *arg;
};

/* NULL: errno is ENOMEM, and adapter_why says more. 0 bytes are taken for 1. */
void *adapter_malloc(void *adapter, size_t bytes);
/* Clears only what is not known to be zero. */
void *adapter_calloc(void *adapter, size_t count, size_t bytes);
/* In place where what lies behind is free. NULL: the old block is as it was. */
void *adapter_realloc(void *adapter, void *old, size_t bytes);
/* O(1). The size is the arena's own affair: `unused`, which NumPy passes, is wrong now and then. An address within the
 * arena where no block begins is ignored. */
void adapter_free(void *adapter, void *address, size_t unused);

/* -errno of the last request that no adapter of this arena could serve, or that went to malloc, and why; 0: there was none. */
int adapter_why(arena *a, struct arena_error *out);

#endif
