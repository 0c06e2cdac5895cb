from arena._core cimport Arena, arena_block, arena_error, arena_handle, block_alloc, block_alloc_committed, block_free
