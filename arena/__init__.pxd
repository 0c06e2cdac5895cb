from arena._core cimport Arena, Block, arena_block, arena_error, arena_handle, block_alloc, block_attempt, block_free
