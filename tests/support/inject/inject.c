/* Which call fails: decided here, and carried out in calls.c. */
#define _GNU_SOURCE
#include "inject.h"

#include <link.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

enum { RANGES_MAX = 64 };

struct control *control;

/* The code of the package's extension modules. Only what they call fails: an interpreter without memory is CPython's
 * affair, and the driver's own calls have to work. */
static struct {
    uintptr_t begin, end;
} ranges[RANGES_MAX];
static int n_ranges;

static int add_ranges(struct dl_phdr_info *object, size_t size, void *folder) {
    (void)size;
    if (!object->dlpi_name || strncmp(object->dlpi_name, folder, strlen(folder)) != 0) return 0;
    for (int i = 0; i < object->dlpi_phnum && n_ranges < RANGES_MAX; i++) {
        if (object->dlpi_phdr[i].p_type != PT_LOAD) continue;
        ranges[n_ranges].begin = object->dlpi_addr + object->dlpi_phdr[i].p_vaddr;
        ranges[n_ranges].end = ranges[n_ranges].begin + object->dlpi_phdr[i].p_memsz;
        n_ranges++;
    }
    return 0;
}

/* For the driver: the calls of the modules loaded from this folder are the ones to count from now on. Gives the number of
 * ranges that they lie in. */
int inject_calls_from(char *folder);
int inject_calls_from(char *folder) {
    n_ranges = 0;
    dl_iterate_phdr(add_ranges, folder);
    return n_ranges;
}

/* For the driver, once. */
struct control *inject_control(void);
struct control *inject_control(void) {
    if (!control) {
        void *p = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        control = p == MAP_FAILED ? NULL : p;
    }
    return control;
}

unsigned long inject_control_size(void);
unsigned long inject_control_size(void) { return sizeof *control; }

static int is_the_packages(const void *caller) {
    uintptr_t at = (uintptr_t)caller;
    for (int i = 0; i < n_ranges; i++)
        if (at >= ranges[i].begin && at < ranges[i].end) return 1;
    return 0;
}

static int same(const struct call *call, const char *name, long variant) {
    return call->variant == variant && strcmp(call->name, name) == 0;
}

static int decide(const char *name, long variant, const char *path) {
    struct control *c = control;
    for (int i = 0; i < STANDING_MAX; i++) {
        const struct standing *s = &c->standing[i];
        if (strcmp(s->name, name) == 0 && (s->variant == EVERY_VARIANT || s->variant == variant)) return s->error;
    }
    long index = __atomic_add_fetch(&c->calls, 1, __ATOMIC_RELAXED);
    if (index <= TRACE_MAX) c->trace[index - 1] = (struct call){name, variant};
    if (c->index == 0 || index < c->index) return 0;
    if (index == c->index) {
        c->hit = (struct call){name, variant};
        if (path) strncpy(c->hit_path, path, sizeof c->hit_path - 1);
    } else if (c->hits >= c->repeat || !c->hit.name || !same(&c->hit, name, variant)) {
        return 0;
    }
    __atomic_add_fetch(&c->hits, 1, __ATOMIC_RELAXED);
    return c->error;
}

int inject(const char *name, long variant, const void *caller, const char *path) {
    return control && control->armed && is_the_packages(caller) ? decide(name, variant, path) : 0;
}

/* For the driver: a call that a Python module of the package makes. The name has to stay. */
int inject_from_python(const char *name);
int inject_from_python(const char *name) { return control && control->armed ? decide(name, 0, NULL) : 0; }
