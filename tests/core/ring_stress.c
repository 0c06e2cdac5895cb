/* mirror.h and ring.h: one thread writes a sequence into windows of any size, one reads it, and no byte is lost, doubled or
 * out of order. Two that write at once spoil the data and touch nothing beyond it.
 *
 * Runs for ARENA_STRESS_SECONDS. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "memory/mirror.h"
#include "realtime/ring.h"
#include "sys/page.h"
#include "stress.h"

static struct mirror mirror;
static struct ring *ring;
static char *data;
static uint64_t total; /* bytes to go through */

static uint64_t draw(uint64_t *state, uint64_t below) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (*state >> 33) % below;
}

static void *write_all(void *arg) {
    uint64_t state = (uintptr_t)arg;
    for (uint64_t done = 0; done < total;) {
        uint64_t n = ring_writable(ring, mirror.bytes), want = 1 + draw(&state, mirror.bytes);
        if (n > want) n = want;
        if (n > total - done) n = total - done;
        char *at = data + ring_written(ring) % mirror.bytes;
        for (uint64_t i = 0; i < n; i++) at[i] = (char)((done + i) % 251);
        MUST(ring_produce(ring, n, mirror.bytes));
        done += n;
    }
    return NULL;
}

static void *read_all(void *arg) {
    uint64_t state = (uintptr_t)arg;
    for (uint64_t done = 0; done < total;) {
        uint64_t n = ring_readable(ring, mirror.bytes), want = 1 + draw(&state, mirror.bytes);
        if (n > want) n = want;
        const char *at = data + ring_read(ring) % mirror.bytes;
        for (uint64_t i = 0; i < n; i++) MUST(at[i] == (char)((done + i) % 251));
        MUST(ring_consume(ring, n, mirror.bytes));
        done += n;
    }
    return NULL;
}

/* As writing, by somebody who is not alone: whatever the counts say, a window is within the memory. */
static void *spoil(void *arg) {
    uint64_t state = (uintptr_t)arg;
    for (int i = 0; i < 20000; i++) {
        uint64_t n = draw(&state, mirror.bytes + 1);
        bool writes = draw(&state, 2);
        uint64_t at = (writes ? ring_written(ring) : ring_read(ring)) % mirror.bytes;
        MUST(ring_readable(ring, mirror.bytes) <= mirror.bytes && ring_writable(ring, mirror.bytes) <= mirror.bytes);
        MUST(at + n <= 2 * mirror.bytes);
        (void)(writes ? ring_produce(ring, n, mirror.bytes) : ring_consume(ring, n, mirror.bytes));
    }
    return NULL;
}

static void both(void *(*one)(void *), void *(*other)(void *)) {
    pthread_t a, b;
    MUST(!pthread_create(&a, NULL, one, (void *)(uintptr_t)7));
    MUST(!pthread_create(&b, NULL, other, (void *)(uintptr_t)8));
    pthread_join(a, NULL);
    pthread_join(b, NULL);
}

static void open_ring(uint64_t bytes) {
    struct arena_error e;
    MUST(mirror_create(bytes, false, "stress", NULL, NULL, &mirror, &e) == 0);
    ring = (struct ring *)mirror.base;
    data = mirror.base + OS_PAGE;
}

int main(void) {
    uint64_t end = stress_end(), sizes[] = {1, 12288, 1 << 20};
    struct arena_error e;
    MUST(mirror_create(0, false, "none", NULL, NULL, &mirror, &e) == -EINVAL && strcmp(e.op, "size") == 0);
    MUST(mirror_create(UINT64_MAX, false, "none", NULL, NULL, &mirror, &e) == -EINVAL);
    do {
        for (int i = 0; i < 3; i++) {
            open_ring(sizes[i]);
            MUST(mirror.bytes % OS_PAGE == 0 && mirror.bytes >= sizes[i]);
            data[1] = 'x';
            MUST(data[mirror.bytes + 1] == 'x');
            /* Counts near their end wrap like any others where the size is a power of two. */
            if (i != 1) ring->written = ring->read = UINT64_MAX - 5000;
            total = 3 * mirror.bytes + 4 * 1024 * 1024;
            both(write_all, read_all);
            MUST(ring_readable(ring, mirror.bytes) == 0);
            both(spoil, spoil);
            mirror_destroy(&mirror);
            mirror_destroy(&mirror);
        }
    } while (os_now_ns() < end);
    return 0;
}
