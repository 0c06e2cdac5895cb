/* stress.h: what the small stress programs share. */
#ifndef ARENA_STRESS_H
#define ARENA_STRESS_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "sys/thread.h"

#define MUST(x)                                                     \
    do {                                                            \
        if (!(x)) {                                                 \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x); \
            exit(1);                                                \
        }                                                           \
    } while (0)

/* When to stop, in nanoseconds of os_now_ns(): ARENA_STRESS_SECONDS (5) from now. */
static inline uint64_t stress_end(void) {
    const char *seconds = getenv("ARENA_STRESS_SECONDS");
    return os_now_ns() + (uint64_t)(seconds ? atoi(seconds) : 5) * 1000000000u;
}

#endif
