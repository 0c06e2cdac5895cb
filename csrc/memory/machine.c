#define _GNU_SOURCE
#include "memory/machine.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "memory/cgroups.h"
#include "sys/held.h"
#include "sys/proc.h"
#include "sys/thread.h"

#define LEVELS_MAX 32u
#define NODES_MAX 64u /* whose files are held open; of others they are opened each time */
#define AGAIN_NS 10000000000u /* how often it is looked for files that were missing */

/* A memory cgroup. Files that are missing there stay closed. */
struct level {
    char *folder;
    bool v1;
    bool tried;  /* for its limits */
    bool opened; /* all that is read once there is a limit */
    struct os_held limit, high, usage, stat, oom, self;
};

/* All that this file knows; under the gate. */
static struct {
    uint32_t gate; /* 0: nobody looks; else somebody does */
    bool found;
    int hidden; /* as cgroups_walk */
    unsigned levels;
    uint64_t found_at;
    struct level level[LEVELS_MAX];
    struct os_held cgroup, meminfo, node[NODES_MAX];
    char own[4096];    /* /proc/self/cgroup when the levels were found */
    char text[8192];   /* what was read last */
    char path[4096 + 64];
} m = {.cgroup = {.fd = -1}, .meminfo = {.fd = -1}};
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* Is this the error of a process that has no descriptor or memory left, and not of a file that is not for it? */
static bool is_shortage(int rc) {
    static const int of_the_file[] = {ENOENT, EACCES, EPERM, ENOTDIR, ENODEV, ENXIO, ESRCH, EOPNOTSUPP, EINVAL};
    for (size_t i = 0; i < sizeof of_the_file / sizeof *of_the_file; i++)
        if (rc == -of_the_file[i]) return false;
    return rc < 0;
}

/* --- one at a time, and forks ------------------------------------------------------------------------------------- */

static void forget(void) {
    for (unsigned i = 0; i < LEVELS_MAX; i++) {
        struct level *l = &m.level[i];
        if (!l->folder) continue;
        os_held_close(&l->limit);
        os_held_close(&l->high);
        os_held_close(&l->usage);
        os_held_close(&l->stat);
        os_held_close(&l->oom);
        os_held_close(&l->self);
    }
    os_held_close(&m.cgroup);
    m.levels = 0;
    m.found = false;
}

/* /proc/self/cgroup would be the parent's, and its descriptors of the folders would share the parent's locks. Whoever
 * looked at the moment of the fork is not in the child. */
static void child(void) {
    forget();
    __atomic_store_n(&m.gate, 0, __ATOMIC_RELEASE);
}

static void install(void) {
    for (unsigned i = 0; i < NODES_MAX; i++) m.node[i] = OS_HELD_NONE;
    (void)pthread_atfork(NULL, NULL, child);
}

void machine_enter(void) {
    pthread_once(&once, install);
    while (__atomic_exchange_n(&m.gate, 1, __ATOMIC_ACQUIRE)) os_wait(&m.gate, 1, 1000000);
}

void machine_leave(void) {
    __atomic_store_n(&m.gate, 0, __ATOMIC_RELEASE);
    os_wake_all(&m.gate);
}

/* --- reading ------------------------------------------------------------------------------------------------------ */

uint64_t machine_field(const char *text, const char *key) {
    size_t n = strlen(key);
    for (const char *at = text; at && *at; at = strchr(at, '\n'), at = at ? at + 1 : NULL) {
        if (strncmp(at, "Node ", 5) == 0) at += strcspn(at + 5, " ") + 6;
        if (strncmp(at, key, n) == 0 && (at[n] == ' ' || at[n] == ':')) return strtoull(at + n + 1, NULL, 10);
    }
    return 0;
}

void machine_where(char *out, size_t size, const char *dir, const char *file) {
    size_t a = strlen(dir), b = strlen(file), all = a + 1 + b, skip = 0;
    static const char cut[] = "…";
    if (all >= size) skip = all + sizeof cut - size;
    /* No part of a character is left at the front. */
    while (skip && skip < a && (dir[skip] & 0xc0) == 0x80) skip++;
    if (skip >= a)
        snprintf(out, size, "%s", file);
    else
        snprintf(out, size, "%s%s/%s", skip ? cut : "", dir + skip, file);
}

/* "max", and v1's huge number: UINT64_MAX, none. */
static uint64_t as_limit(const char *text) {
    uint64_t n = text[0] == 'm' ? UINT64_MAX : strtoull(text, NULL, 10);
    return n >= (uint64_t)1 << 62 ? UINT64_MAX : n;
}

/* 1: there is no such file, or it may not be read. */
static int read_number(struct os_held *h, const char *folder, const char *file, uint64_t *out) {
    char text[64];
    if ((size_t)snprintf(m.path, sizeof m.path, "%s/%s", folder, file) >= sizeof m.path) return 1;
    int rc = os_held_read(h, m.path, text, sizeof text);
    if (rc > 0 && text[0] != 'm' && (text[0] < '0' || text[0] > '9')) {
        os_held_close(h); /* whatever that is, it is opened anew the next time */
        rc = -EIO;
    }
    *out = rc > 0 ? as_limit(text) : UINT64_MAX;
    return rc >= 0 ? 0 : is_shortage(rc) ? rc : 1;
}

static uint64_t cache_in(const char *stat, bool v1) {
    return v1 ? machine_field(stat, "total_active_file") + machine_field(stat, "total_inactive_file")
              : machine_field(stat, "active_file") + machine_field(stat, "inactive_file");
}

/* --- finding the cgroups ------------------------------------------------------------------------------------------ */

static bool one_folder(void *arg, const char *path, bool v1) {
    int *rc = arg;
    struct level *l = &m.level[m.levels];
    if (m.levels == LEVELS_MAX) return false;
    free(l->folder);
    *l = (struct level){.folder = strdup(path),
                        .v1 = v1,
                        .limit = OS_HELD_NONE,
                        .high = OS_HELD_NONE,
                        .usage = OS_HELD_NONE,
                        .stat = OS_HELD_NONE,
                        .oom = OS_HELD_NONE,
                        .self = OS_HELD_NONE};
    if (!l->folder) *rc = -ENOMEM;
    m.levels += l->folder != NULL;
    return l->folder != NULL;
}

static const char *limit_file(const struct level *l) { return l->v1 ? "memory.limit_in_bytes" : "memory.max"; }

/* Where the cgroups of this process are; found again when it has been moved. */
static int find_levels(void) {
    int rc = os_held_read(&m.cgroup, "/proc/self/cgroup", m.text, sizeof m.own);
    if (is_shortage(rc)) return rc;
    if (rc < 0) m.text[0] = 0;
    if (m.found && strcmp(m.own, m.text) == 0) return 0;
    struct os_held cgroup = m.cgroup; /* stays open */
    m.cgroup = OS_HELD_NONE;
    forget();
    m.cgroup = cgroup;
    memcpy(m.own, m.text, sizeof m.own);
    int failed = 0;
    rc = cgroups_walk("memory", one_folder, &failed);
    if (rc >= 0 && failed) rc = failed;
    if (rc < 0) return rc;
    m.hidden = rc;
    m.found = true;
    m.found_at = os_now_ns();
    return 0;
}

/* --- looking ------------------------------------------------------------------------------------------------------ */

/* Keeps the tightest limit. */
static void narrow(struct machine_look *out, uint64_t limit, uint64_t left, const char *dir, const char *file) {
    if (left >= out->available) return;
    out->available = left;
    out->limit = limit;
    machine_where(out->where, sizeof out->where, dir, file);
}

static uint64_t less(uint64_t a, uint64_t b) { return a > b ? a - b : 0; }

/* A file that was missing is tried again now and then, but that there is no descriptor for it says nothing new. */
static int read_limit(const struct level *l, struct os_held *h, const char *file, bool again, uint64_t *out) {
    *out = UINT64_MAX;
    if (h->fd < 0 && l->tried && !again) return 1;
    bool was_missing = h->fd < 0 && l->tried;
    int rc = read_number(h, l->folder, file, out);
    return rc < 0 && was_missing ? 1 : rc;
}

static void open_the_rest(struct level *l) {
    static const char *const of_v1[] = {"memory.usage_in_bytes", "memory.stat", "memory.oom_control"};
    static const char *const of_v2[] = {"memory.current", "memory.stat"};
    struct os_held *held[] = {&l->usage, &l->stat, &l->oom};
    for (unsigned i = 0; i < (l->v1 ? 3u : 2u); i++) {
        if ((size_t)snprintf(m.path, sizeof m.path, "%s/%s", l->folder, l->v1 ? of_v1[i] : of_v2[i]) < sizeof m.path)
            (void)os_held_open(held[i], m.path, false);
    }
    (void)os_held_open(&l->self, l->folder, true);
    l->opened = true;
}

static int look_at(unsigned i, bool again, uint64_t near, struct machine_look *out) {
    struct level *l = &m.level[i];
    uint64_t limit, high = UINT64_MAX, usage, cache = 0;
    int rc = read_limit(l, &l->limit, limit_file(l), again, &limit);
    if (rc >= 0 && !l->v1) rc = read_limit(l, &l->high, "memory.high", again, &high);
    if (rc < 0) return rc;
    l->tried = true;
    if (limit == UINT64_MAX && high == UINT64_MAX) return 0;
    if (!l->opened) open_the_rest(l); /* while there are descriptors */
    rc = read_number(&l->usage, l->folder, l->v1 ? "memory.usage_in_bytes" : "memory.current", &usage);
    if (rc < 0) return rc;
    if (rc > 0) return 0;
    uint64_t tight = limit < high ? limit : high;
    /* With the cache there is only more, so where this is not the tightest it need not be known. */
    if (less(tight, usage) < out->available || less(tight, usage) < near) {
        if ((size_t)snprintf(m.path, sizeof m.path, "%s/memory.stat", l->folder) < sizeof m.path) {
            rc = os_held_read(&l->stat, m.path, m.text, sizeof m.text);
            if (is_shortage(rc)) return rc;
            if (rc > 0) cache = cache_in(m.text, l->v1);
        }
    }
    uint64_t used = less(usage, cache);
    narrow(out, limit, less(limit, used), l->folder, limit_file(l));
    if (high != UINT64_MAX) narrow(out, high, less(high, used), l->folder, "memory.high");
    if (less(tight, used) < near) {
        out->lockable = (int)i;
        (void)os_held_open(&l->self, l->folder, true);
    }
    if (l->v1) {
        if ((size_t)snprintf(m.path, sizeof m.path, "%s/memory.oom_control", l->folder) >= sizeof m.path) return 0;
        rc = os_held_read(&l->oom, m.path, m.text, sizeof m.text);
        if (is_shortage(rc)) return rc;
        if (rc > 0 && machine_field(m.text, "oom_kill_disable")) out->oom_killer_off = true;
    }
    return 0;
}

/* Memory bound to a node is not taken from another: past it there is the OOM killer. */
static int look_at_node(int node, struct machine_look *out) {
    struct os_held once_only = OS_HELD_NONE, *h = node < (int)NODES_MAX ? &m.node[node] : &once_only;
    snprintf(m.path, sizeof m.path, "/sys/devices/system/node/node%d/meminfo", node);
    int rc = os_held_read(h, m.path, m.text, sizeof m.text);
    os_held_close(&once_only);
    if (rc <= 0) return is_shortage(rc) ? rc : 0;
    uint64_t left = machine_field(m.text, "MemFree") + machine_field(m.text, "Active(file)") +
                    machine_field(m.text, "Inactive(file)");
    m.path[strlen(m.path) - strlen("/meminfo")] = 0;
    narrow(out, machine_field(m.text, "MemTotal") << 10, left << 10, m.path, "meminfo");
    return 0;
}

static int look_at_all(int node, uint64_t near, struct machine_look *out) {
    snprintf(m.path, sizeof m.path, "/proc/meminfo");
    int rc = os_held_read(&m.meminfo, m.path, m.text, sizeof m.text);
    if (is_shortage(rc)) return rc;
    if (rc > 0 && strstr(m.text, "MemAvailable")) {
        out->available = machine_field(m.text, "MemAvailable") << 10;
        out->limit = machine_field(m.text, "MemTotal") << 10;
        snprintf(out->where, sizeof out->where, "/proc/meminfo MemAvailable");
    }
    if (node >= 0 && (rc = look_at_node(node, out)) < 0) return rc;
    snprintf(m.path, sizeof m.path, "/proc/self/cgroup");
    if ((rc = find_levels()) < 0) return rc;
    /* A controller may be enabled, or a file be allowed, later on. */
    bool again = os_now_ns() - m.found_at > AGAIN_NS;
    if (again) m.found_at = os_now_ns();
    for (unsigned i = 0; i < m.levels; i++) {
        rc = look_at(i, again, near, out);
        if (rc < 0) return rc;
    }
    if (out->available < near && out->lockable < 0 && m.levels) {
        out->lockable = (int)m.levels - 1;
        (void)os_held_open(&m.level[m.levels - 1].self, m.level[m.levels - 1].folder, true);
    }
    return 0;
}

int machine_look(int node, uint64_t near, struct machine_look *out) {
    *out = (struct machine_look){.available = UINT64_MAX, .limit = UINT64_MAX, .lockable = -1};
    int rc = look_at_all(node, near, out);
    if (rc == 0) return 0;
    /* The path of what could not be read. */
    out->available = 0;
    size_t length = strlen(m.path), skip = length < sizeof out->where ? 0 : length + 1 - sizeof out->where;
    memcpy(out->where, m.path + skip, length + 1 - skip);
    return rc;
}

int machine_lock(int lockable) {
    machine_enter();
    int rc = lockable >= 0 && lockable < (int)m.levels ? os_held_lock(&m.level[lockable].self) : -EBADF;
    machine_leave();
    return rc;
}

void machine_unlock(int lockable) {
    machine_enter();
    /* Whoever has moved to another cgroup meanwhile has closed the folder, and that has unlocked it. */
    if (lockable >= 0 && lockable < (int)m.levels) os_held_unlock(&m.level[lockable].self);
    machine_leave();
}

/* --- for whoever wants to know it all ----------------------------------------------------------------------------- */

static int number_of(const char *folder, const char *file, uint64_t *out) {
    char path[4096 + 64], text[64];
    snprintf(path, sizeof path, "%s/%s", folder, file);
    int rc = os_read(path, text, sizeof text);
    *out = rc > 0 ? as_limit(text) : UINT64_MAX;
    return rc > 0 ? 0 : is_shortage(rc) ? rc : 1;
}

struct levels {
    bool (*level)(void *arg, const struct machine_level *level);
    void *arg;
    int rc;
};

static bool tell_level(void *arg, const char *path, bool v1) {
    struct levels *t = arg;
    struct machine_level *l = calloc(1, sizeof *l);
    char *stat = malloc(sizeof m.text);
    t->rc = l && stat ? 0 : -ENOMEM;
    if (t->rc == 0) {
        snprintf(l->path, sizeof l->path, "%s", path);
        l->v1 = v1;
        l->high = UINT64_MAX;
        t->rc = number_of(path, v1 ? "memory.limit_in_bytes" : "memory.max", &l->limit);
        if (t->rc >= 0 && !v1) t->rc = number_of(path, "memory.high", &l->high);
        int used = t->rc < 0 ? t->rc : number_of(path, v1 ? "memory.usage_in_bytes" : "memory.current", &l->usage);
        if (t->rc >= 0) t->rc = used;
        l->seen = used == 0;
        snprintf(l->path, sizeof l->path, "%s/memory.stat", path);
        if (l->seen && os_read(l->path, stat, sizeof m.text) > 0) l->cache = cache_in(stat, v1);
        snprintf(l->path, sizeof l->path, "%s", path);
    }
    bool more = t->rc >= 0 && t->level(t->arg, l);
    free(stat);
    free(l);
    return more;
}

int machine_levels(bool (*level)(void *arg, const struct machine_level *level), void *arg) {
    struct levels t = {.level = level, .arg = arg};
    int rc = cgroups_walk("memory", tell_level, &t);
    return rc >= 0 && t.rc < 0 ? t.rc : rc;
}

struct pool_limits {
    const char *size; /* "2MB" */
    bool (*limit)(void *arg, const struct machine_hugetlb *limit);
    void *arg;
    int rc;
};

static bool tell_hugetlb(void *arg, const char *path, bool v1) {
    struct pool_limits *t = arg;
    struct machine_hugetlb *l = calloc(1, sizeof *l);
    bool more = l != NULL;
    t->rc = l ? 0 : -ENOMEM;
    for (int reserved = 0; more && reserved < 2; reserved++) {
        char limit[64], usage[64];
        const char *of = reserved ? "rsvd." : "";
        snprintf(limit, sizeof limit, "hugetlb.%s.%s%s", t->size, of, v1 ? "limit_in_bytes" : "max");
        snprintf(usage, sizeof usage, "hugetlb.%s.%s%s", t->size, of, v1 ? "usage_in_bytes" : "current");
        t->rc = number_of(path, limit, &l->limit);
        if (t->rc == 0 && l->limit != UINT64_MAX && (t->rc = number_of(path, usage, &l->usage)) == 0) {
            machine_where(l->path, sizeof l->path, path, limit);
            more = t->limit(t->arg, l);
        }
        if (t->rc < 0) more = false;
    }
    free(l);
    return more;
}

int machine_hugetlb(uint64_t page, bool (*limit)(void *arg, const struct machine_hugetlb *limit), void *arg) {
    char size[16];
    unsigned long long kib = page >> 10;
    if (kib < 1024)
        snprintf(size, sizeof size, "%lluKB", kib);
    else if (kib < 1024 * 1024)
        snprintf(size, sizeof size, "%lluMB", kib >> 10);
    else
        snprintf(size, sizeof size, "%lluGB", kib >> 20);
    struct pool_limits t = {.size = size, .limit = limit, .arg = arg};
    int rc = cgroups_walk("hugetlb", tell_hugetlb, &t);
    return rc >= 0 && t.rc < 0 ? t.rc : rc;
}

void machine_charge(uint64_t bytes, struct machine_look *out) {
    struct rlimit limit;
    char text[4096];
    *out = (struct machine_look){.available = UINT64_MAX, .limit = UINT64_MAX, .lockable = -1};
    if (getrlimit(RLIMIT_DATA, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY &&
        os_read("/proc/self/status", text, sizeof text) > 0) {
        uint64_t left = less(limit.rlim_cur, machine_field(text, "VmData") << 10);
        if (left < bytes) {
            out->available = left;
            snprintf(out->where, sizeof out->where, "RLIMIT_DATA");
            return;
        }
    }
    if (os_overcommit_mode() == 2 && os_read("/proc/meminfo", text, sizeof text) > 0) {
        uint64_t most = machine_field(text, "CommitLimit"), now = machine_field(text, "Committed_AS");
        narrow(out, most << 10, less(most, now) << 10, "/proc", "meminfo CommitLimit");
    }
}
