/* page.h: the sizes that the core counts in. */
#ifndef ARENA_PAGE_H
#define ARENA_PAGE_H

#include <stddef.h>

#define OS_PAGE ((size_t)4096)
#define OS_HUGE ((size_t)2 << 20)
#define OS_CACHE_LINE 64

#endif
