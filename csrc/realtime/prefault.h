/* prefault.h: this library's code, the calling thread's stack, and malloc's memory, present before they are used. */
#ifndef ARENA_PREFAULT_H
#define ARENA_PREFAULT_H

#include <stdbool.h>
#include <stddef.h>

/* The code and the constants of the library that this is a part of. In the child of a fork they are not, until they are run. */
void prefault_code(void);

/* What this thread may still use of its stack, in bytes, with enough left out to handle a signal. -errno. */
long prefault_stack_left(void);
/* So many bytes below the caller's frame; no more than are left. */
void prefault_stack(size_t bytes);

/* From here on malloc keeps what is freed, and takes no memory by mmap(2); or again as it does by itself. False: this C library
 * cannot be told (it is not glibc). */
bool prefault_keep_heap(bool keep, size_t bytes);
/* So many bytes that malloc has and nobody uses. -ENOMEM. */
int prefault_heap(size_t bytes);
/* Gives the machine what nobody uses. */
void prefault_trim_heap(void);

#endif
