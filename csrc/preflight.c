#define _GNU_SOURCE
#include "preflight.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "os.h"

#define BUDGET_NS 100000000u     /* neighbours move: a budget older than 0.1 s is not believed */
#define SLACK ((uint64_t)1 << 20) /* page tables and the kernel's own per-CPU charges come on top */

/* "key 123" in a file of such lines. */
static uint64_t field(const char *text, const char *key) {
    size_t n = strlen(key);
    for (const char *at = text; at && *at; at = strchr(at, '\n'), at = at ? at + 1 : NULL) {
        if (strncmp(at, key, n) == 0 && (at[n] == ' ' || at[n] == ':')) return strtoull(at + n + 1, NULL, 10);
    }
    return 0;
}

/* A limit file's number. UINT64_MAX: none ("max", v1's huge number, no such file). */
static uint64_t number(const char *dir, const char *file) {
    char path[4096 + 64], text[64];
    snprintf(path, sizeof path, "%s/%s", dir, file);
    if (os_read(path, text, sizeof text) <= 0 || text[0] == 'm') return UINT64_MAX;
    uint64_t n = strtoull(text, NULL, 10);
    return n >= (uint64_t)1 << 62 ? UINT64_MAX : n;
}

/* Keeps the tightest limit. */
static void narrow(const char *dir, const char *file, uint64_t limit, uint64_t usage, uint64_t cache,
                   struct preflight_report *out) {
    if (limit == UINT64_MAX) return;
    uint64_t used = usage > cache ? usage - cache : 0, left = limit > used ? limit - used : 0;
    if (left >= out->available) return;
    out->available = left;
    snprintf(out->where, sizeof out->where, "%.110s/%s", dir, file);
}

static uint64_t file_cache(const char *dir, bool v1) {
    char path[4096 + 64], text[8192];
    snprintf(path, sizeof path, "%s/memory.stat", dir);
    if (os_read(path, text, sizeof text) <= 0) return 0;
    return v1 ? field(text, "total_active_file") + field(text, "total_inactive_file")
              : field(text, "active_file") + field(text, "inactive_file");
}

static void one_cgroup(const char *dir, bool v1, struct preflight_report *out) {
    uint64_t limit = number(dir, v1 ? "memory.limit_in_bytes" : "memory.max");
    uint64_t high = v1 ? UINT64_MAX : number(dir, "memory.high");
    if (limit == UINT64_MAX && high == UINT64_MAX) return;
    uint64_t usage = number(dir, v1 ? "memory.usage_in_bytes" : "memory.current");
    if (usage == UINT64_MAX) return;
    uint64_t cache = file_cache(dir, v1);
    narrow(dir, v1 ? "memory.limit_in_bytes" : "memory.max", limit, usage, cache, out);
    narrow(dir, "memory.high", high, usage, cache, out);
    if (v1) {
        char path[4096 + 64], text[256];
        snprintf(path, sizeof path, "%s/memory.oom_control", dir);
        if (os_read(path, text, sizeof text) > 0 && field(text, "oom_kill_disable")) out->oom_killer_off = true;
    }
}

/* From this process's cgroup up to the mount point of the hierarchy. In a container the mount shows a subtree (`root`),
 * and the path of /proc/self/cgroup may begin above it. */
static void walk(const char *mount, const char *root, const char *path, bool v1, struct preflight_report *out) {
    char dir[4096];
    size_t skip = strcmp(root, "/") == 0 ? 0 : strlen(root);
    if (skip && strncmp(path, root, skip) != 0) skip = strlen(path);
    int n = snprintf(dir, sizeof dir, "%s%s", mount, path + skip);
    if (n < 0 || (size_t)n >= sizeof dir) return;
    size_t top = strlen(mount);
    for (;;) {
        size_t len = strlen(dir);
        while (len > top && dir[len - 1] == '/') dir[--len] = 0;
        one_cgroup(dir, v1, out);
        if (len <= top) return;
        *strrchr(dir, '/') = 0;
    }
}

/* The path of this process in a hierarchy, from /proc/self/cgroup: "5:memory:/a/b" or "0::/a/b". */
static bool own_path(const char *cgroups, bool v1, char *out, size_t size) {
    for (const char *line = cgroups; line && *line; line = strchr(line, '\n'), line = line ? line + 1 : NULL) {
        const char *first = strchr(line, ':'), *second = first ? strchr(first + 1, ':') : NULL;
        const char *end = line + strcspn(line, "\n");
        if (!second || second > end) continue;
        bool match = !v1 && second == first + 1;
        if (v1) { /* a comma-separated list of controllers, one of them memory */
            for (const char *at = first + 1; at < second; at += strcspn(at, ",:") + 1)
                if (strncmp(at, "memory", 6) == 0 && (at[6] == ',' || at[6] == ':')) match = true;
        }
        if (!match) continue;
        size_t n = (size_t)(end - second - 1);
        if (n >= size) return false;
        memcpy(out, second + 1, n);
        out[n] = 0;
        return true;
    }
    return false;
}

static void cgroups(struct preflight_report *out) {
    char own[4096], path[4096], mounts[32768];
    if (os_read("/proc/self/cgroup", own, sizeof own) <= 0) return;
    if (os_read("/proc/self/mountinfo", mounts, sizeof mounts) <= 0) return;
    /* "36 35 98:0 /root /mount/point options - type source superoptions" */
    for (char *save = NULL, *line = strtok_r(mounts, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        char *dash = strstr(line, " - cgroup");
        if (!dash) continue;
        bool v1 = dash[9] == ' ';
        if (v1) {
            char *super = strrchr(dash, ' '), *memory = super ? strstr(super, "memory") : NULL;
            if (!memory || (memory[6] != 0 && memory[6] != ',')) continue;
        }
        char root[1024], mount[1024];
        if (sscanf(line, "%*s %*s %*s %1023s %1023s", root, mount) != 2) continue;
        if (own_path(own, v1, path, sizeof path)) walk(mount, root, path, v1, out);
    }
}

void preflight_read(uint64_t headroom, struct preflight_report *out) {
    char text[2048];
    memset(out, 0, sizeof *out);
    out->available = UINT64_MAX;
    if (os_read("/proc/meminfo", text, sizeof text) > 0 && strstr(text, "MemAvailable")) {
        out->available = field(text, "MemAvailable") << 10;
        snprintf(out->where, sizeof out->where, "/proc/meminfo MemAvailable");
    }
    cgroups(out);
    uint64_t keep = headroom < UINT64_MAX - SLACK ? headroom + SLACK : UINT64_MAX;
    if (out->available != UINT64_MAX) out->available = out->available > keep ? out->available - keep : 0;
}

void preflight_init(struct preflight *p, uint64_t headroom) { *p = (struct preflight){.headroom = headroom}; }

static int refill(struct preflight *p, uint64_t bytes, struct preflight_report *out) {
    preflight_read(p->headroom, out);
    __atomic_store_n(&p->oom_killer_off, out->oom_killer_off, __ATOMIC_RELAXED);
    if (out->available < bytes) {
        __atomic_store_n(&p->budget, 0, __ATOMIC_RELAXED);
        return -ENOMEM;
    }
    /* Near a limit the budget is small and is read again soon. */
    uint64_t budget = out->available / 8;
    if (budget < bytes) budget = 0;
    if (budget > (uint64_t)1 << 40) budget = (uint64_t)1 << 40;
    __atomic_store_n(&p->budget, (int64_t)budget, __ATOMIC_RELAXED);
    __atomic_store_n(&p->good_for, os_now_ns() + BUDGET_NS, __ATOMIC_RELAXED);
    return 0;
}

static bool fresh(const struct preflight *p) { return os_now_ns() < __atomic_load_n(&p->good_for, __ATOMIC_RELAXED); }

int preflight_whole(struct preflight *p, uint64_t bytes, struct preflight_report *out) {
    if (bytes <= INT64_MAX && __atomic_load_n(&p->budget, __ATOMIC_RELAXED) >= (int64_t)bytes && fresh(p)) return 0;
    return refill(p, bytes, out);
}

int preflight_step(struct preflight *p, uint64_t bytes) {
    if (__atomic_fetch_sub(&p->budget, (int64_t)bytes, __ATOMIC_RELAXED) >= (int64_t)bytes && fresh(p)) return 0;
    struct preflight_report report;
    return refill(p, bytes, &report);
}
