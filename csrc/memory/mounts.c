#define _GNU_SOURCE
#include "memory/mounts.h"

#include <stdio.h>
#include <string.h>
#include <sys/sysmacros.h>

#include "sys/proc.h"

struct search {
    char device[32];
    struct mount *found;
};

/* "36 35 0:32 /root /mount options - tmpfs source rw,huge=always" */
static bool one_line(void *arg, char *line) {
    struct search *s = arg;
    char at[32], point[256];
    if (sscanf(line, "%*s %*s %31s %*s %255s", at, point) != 2 || strcmp(at, s->device) != 0) return true;
    const char *options = strstr(line, " - ");
    s->found->huge = options && (strstr(options, "huge=always") || strstr(options, "huge=within_size") ||
                                 strstr(options, "huge=advise"));
    memcpy(s->found->point, point, sizeof point);
    return false;
}

int mounts_find(uint64_t device, struct mount *out) {
    struct search s = {.found = out};
    *out = (struct mount){.huge = false};
    snprintf(s.device, sizeof s.device, "%u:%u", major(device), minor(device));
    return os_each_line("/proc/self/mountinfo", one_line, &s);
}
