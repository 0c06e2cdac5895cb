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
        if (strncmp(at, "Node ", 5) == 0) at += strcspn(at + 5, " ") + 6; /* a node's meminfo: "Node 0 MemFree: 1 kB" */
        if (strncmp(at, key, n) == 0 && (at[n] == ' ' || at[n] == ':')) return strtoull(at + n + 1, NULL, 10);
    }
    return 0;
}

/* A limit file's number. UINT64_MAX: none ("max", v1's huge number, no such file). */
static uint64_t number(const char *dir, const char *file) {
    char path[4096 + 96], text[64];
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
    snprintf(out->where, sizeof out->where, "%.95s/%.60s", dir, file);
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

static void one_hugetlb_cgroup(const char *dir, bool v1, uint64_t page, struct preflight_report *out) {
    char size[16], limit[64], usage[64];
    uint64_t kib = page >> 10;
    if (kib < 1024)
        snprintf(size, sizeof size, "%lluKB", (unsigned long long)kib);
    else if (kib < 1024 * 1024)
        snprintf(size, sizeof size, "%lluMB", (unsigned long long)(kib >> 10));
    else
        snprintf(size, sizeof size, "%lluGB", (unsigned long long)(kib >> 20));
    snprintf(limit, sizeof limit, v1 ? "hugetlb.%s.limit_in_bytes" : "hugetlb.%s.max", size);
    snprintf(usage, sizeof usage, v1 ? "hugetlb.%s.usage_in_bytes" : "hugetlb.%s.current", size);
    uint64_t used = number(dir, usage);
    if (used != UINT64_MAX) narrow(dir, limit, number(dir, limit), used, 0, out);
}

/* From this process's cgroup up to the mount point of the hierarchy. In a container the mount shows a subtree (`root`),
 * and the path of /proc/self/cgroup may begin above it. `page`: of hugetlb; 0: memory. */
static void walk(const char *mount, const char *root, const char *path, bool v1, uint64_t page,
                 struct preflight_report *out) {
    char dir[4096];
    size_t skip = strcmp(root, "/") == 0 ? 0 : strlen(root);
    if (skip && strncmp(path, root, skip) != 0) skip = strlen(path);
    int n = snprintf(dir, sizeof dir, "%s%s", mount, path + skip);
    if (n < 0 || (size_t)n >= sizeof dir) return;
    size_t top = strlen(mount);
    for (;;) {
        size_t len = strlen(dir);
        while (len > top && dir[len - 1] == '/') dir[--len] = 0;
        if (page)
            one_hugetlb_cgroup(dir, v1, page, out);
        else
            one_cgroup(dir, v1, out);
        if (len <= top) return;
        *strrchr(dir, '/') = 0;
    }
}

/* The path of this process in a hierarchy, from /proc/self/cgroup: "5:memory:/a/b" or "0::/a/b". */
static bool own_path(const char *cgroups, bool v1, const char *controller, char *out, size_t size) {
    size_t length = strlen(controller);
    for (const char *line = cgroups; line && *line; line = strchr(line, '\n'), line = line ? line + 1 : NULL) {
        const char *first = strchr(line, ':'), *second = first ? strchr(first + 1, ':') : NULL;
        const char *end = line + strcspn(line, "\n");
        if (!second || second > end) continue;
        bool match = !v1 && second == first + 1;
        if (v1) { /* a comma-separated list of controllers, one of them this */
            for (const char *at = first + 1; at < second; at += strcspn(at, ",:") + 1)
                if (strncmp(at, controller, length) == 0 && (at[length] == ',' || at[length] == ':')) match = true;
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

struct search {
    const char *controller;
    uint64_t page;
    const char *own; /* /proc/self/cgroup */
    struct preflight_report *out;
};

/* "36 35 98:0 /root /mount/point options - type source superoptions" */
static bool one_mount(void *arg, char *line) {
    const struct search *s = arg;
    char *dash = strstr(line, " - cgroup");
    if (!dash) return true;
    bool v1 = dash[9] == ' ';
    if (v1) {
        size_t length = strlen(s->controller);
        char *super = strrchr(dash, ' '), *found = super ? strstr(super, s->controller) : NULL;
        if (!found || (found[length] != 0 && found[length] != ',')) return true;
    }
    char root[1024], mount[1024], path[4096];
    if (sscanf(line, "%*s %*s %*s %1023s %1023s", root, mount) == 2 &&
        own_path(s->own, v1, s->controller, path, sizeof path))
        walk(mount, root, path, v1, s->page, s->out);
    return true;
}

static void cgroups(uint64_t page, struct preflight_report *out) {
    char own[8192];
    struct search s = {.controller = page ? "hugetlb" : "memory", .page = page, .own = own, .out = out};
    if (os_read("/proc/self/cgroup", own, sizeof own) <= 0) return;
    (void)os_each_line("/proc/self/mountinfo", one_mount, &s);
}

void preflight_hugetlb(uint64_t page, struct preflight_report *out) {
    *out = (struct preflight_report){.available = UINT64_MAX};
    cgroups(page, out);
}

/* Memory bound to a node is not taken from another: past it there is the OOM killer. */
static void one_node(int node, struct preflight_report *out) {
    char path[64], text[4096];
    snprintf(path, sizeof path, "/sys/devices/system/node/node%d/meminfo", node);
    if (os_read(path, text, sizeof text) <= 0) return;
    uint64_t left = (field(text, "MemFree") + field(text, "Active(file)") + field(text, "Inactive(file)")) << 10;
    if (left >= out->available) return;
    out->available = left;
    snprintf(out->where, sizeof out->where, "%s", path);
}

void preflight_read(const struct preflight *p, struct preflight_report *out) {
    char text[2048];
    memset(out, 0, sizeof *out);
    out->available = UINT64_MAX;
    if (os_read("/proc/meminfo", text, sizeof text) > 0 && strstr(text, "MemAvailable")) {
        out->available = field(text, "MemAvailable") << 10;
        snprintf(out->where, sizeof out->where, "/proc/meminfo MemAvailable");
    }
    if (p->node >= 0) one_node(p->node, out);
    cgroups(0, out);
    uint64_t keep = p->headroom < UINT64_MAX - SLACK ? p->headroom + SLACK : UINT64_MAX;
    if (out->available != UINT64_MAX) out->available = out->available > keep ? out->available - keep : 0;
}

void preflight_init(struct preflight *p, uint64_t headroom, int node) {
    *p = (struct preflight){.headroom = headroom, .node = node};
}

static int refill(struct preflight *p, uint64_t bytes, struct preflight_report *out) {
    preflight_read(p, out);
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
