#define _GNU_SOURCE
#include "memory/cgroups.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sys/proc.h"
#include "sys/thread.h"

#define PATH_BYTES 4096u
#define SEARCHED_MAX 20000u /* folders looked at for this process, a second's work */
#define DEPTH_MAX 32u

/* Too large for the stack of a small thread. */
struct search {
    const char *controller;
    bool v1;
    char own[16384]; /* /proc/self/cgroup */
    char path[PATH_BYTES];     /* of this process in the hierarchy, as /proc/self/cgroup has it */
    char root[PATH_BYTES];     /* what a mount shows at its top */
    char mount[PATH_BYTES];    /* where it is */
    char top[PATH_BYTES];      /* the first mount of the hierarchy that did not tell where this process is in it */
    char top_root[PATH_BYTES]; /* its root */
    char folder[PATH_BYTES];   /* the answer, or how far the search has come */
    bool found;
    unsigned searched;
};

/* --- /proc/self/cgroup -------------------------------------------------------------------------------------------- */

/* The path in a hierarchy, of lines such as "5:memory,cpu:/a/b" (v1) and "0::/a/b" (v2). */
static bool own_path(struct search *s, bool v1) {
    size_t length = strlen(s->controller);
    for (const char *line = s->own; line && *line; line = strchr(line, '\n'), line = line ? line + 1 : NULL) {
        const char *first = strchr(line, ':'), *second = first ? strchr(first + 1, ':') : NULL;
        const char *end = line + strcspn(line, "\n");
        if (!second || second > end) continue;
        bool match = !v1 && second == first + 1;
        for (const char *at = first + 1; v1 && at < second; at += strcspn(at, ",:") + 1)
            if (strncmp(at, s->controller, length) == 0 && (at[length] == ',' || at[length] == ':')) match = true;
        if (!match) continue;
        size_t n = (size_t)(end - second - 1);
        if (n >= sizeof s->path) return false;
        memcpy(s->path, second + 1, n);
        s->path[n] = 0;
        s->v1 = v1;
        return true;
    }
    return false;
}

/* --- /proc/self/mountinfo ----------------------------------------------------------------------------------------- */

/* Copies a word of mountinfo, in which a blank, tab, newline and backslash are written as \040 and so on. */
static const char *copy_word(const char *from, char *to, size_t size) {
    size_t n = 0;
    for (; *from && *from != ' '; n++) {
        char c = *from++;
        if (c == '\\' && from[0] >= '0' && from[0] <= '3' && from[1] && from[2]) {
            c = (char)((from[0] - '0') << 6 | (from[1] - '0') << 3 | (from[2] - '0'));
            from += 3;
        }
        if (n < size - 1) to[n] = c;
    }
    to[n < size ? n : size - 1] = 0;
    return *from ? from + 1 : from;
}

static bool has_word(const char *list, const char *word) {
    size_t n = strlen(word);
    for (const char *at = list; *at; at += strcspn(at, ","), at += *at == ',')
        if (strncmp(at, word, n) == 0 && (at[n] == ',' || at[n] == 0)) return true;
    return false;
}

/* What is left of the path below the mount's root; NULL: the mount does not say. */
static const char *below(const char *root, const char *path) {
    size_t n = strcmp(root, "/") == 0 ? 0 : strlen(root);
    if (strncmp(root, "/..", 3) == 0 || strncmp(path, "/..", 3) == 0) return NULL;
    if (strncmp(path, root, n) != 0 || (path[n] != '/' && path[n] != 0)) return NULL;
    return strcmp(path + n, "/") == 0 ? "" : path + n;
}

/* "36 35 98:0 /root /mount/point options - type source superoptions" */
static bool one_mount(void *arg, char *line) {
    struct search *s = arg;
    const char *dash = strstr(line, " - cgroup"), *at = line;
    if (!dash || (dash[9] == ' ') != s->v1) return true;
    const char *super = strrchr(dash, ' ');
    if (s->v1 && !(super && has_word(super + 1, s->controller))) return true;
    for (int skip = 0; skip < 3; skip++) at += strcspn(at, " "), at += *at == ' ';
    at = copy_word(at, s->root, sizeof s->root);
    (void)copy_word(at, s->mount, sizeof s->mount);
    const char *rest = below(s->root, s->path);
    if (rest && snprintf(s->folder, sizeof s->folder, "%s%s", s->mount, rest) < (int)sizeof s->folder &&
        os_exists(s->folder)) {
        memcpy(s->top, s->mount, sizeof s->top);
        s->found = true;
    } else if (!s->top[0]) {
        memcpy(s->top, s->mount, sizeof s->top);
        memcpy(s->top_root, s->root, sizeof s->top_root);
    }
    return !s->found;
}

/* --- the folder that has this process ----------------------------------------------------------------------------- */

struct procs {
    int pid;
    bool there;
};

static bool one_process(void *arg, char *line) {
    struct procs *p = arg;
    p->there = atoi(line) == p->pid;
    return !p->there;
}

/* -errno only where nothing can be read any more. */
static int has_us(struct search *s, size_t length) {
    struct procs p = {.pid = os_pid()};
    if (length + sizeof "/cgroup.procs" > sizeof s->folder) return 0;
    strcpy(s->folder + length, "/cgroup.procs");
    int rc = os_each_line(s->folder, one_process, &p);
    s->folder[length] = 0;
    s->found = p.there;
    return rc == -EMFILE || rc == -ENFILE || rc == -ENOMEM ? rc : 0;
}

struct children {
    char *names; /* each with its NUL, and an empty one at the end */
    size_t used, size;
};

static bool one_child(void *arg, const char *name) {
    struct children *c = arg;
    size_t n = strlen(name) + 1;
    if (c->used + n + 1 > c->size) {
        size_t size = 2 * c->size + n + 1024;
        char *more = realloc(c->names, size);
        if (!more) return false;
        c->names = more;
        c->size = size;
    }
    memcpy(c->names + c->used, name, n);
    c->used += n;
    c->names[c->used] = 0;
    return true;
}

/* Depth first, with the names of one folder at a time on the heap. */
static int search_below(struct search *s, size_t length, unsigned depth) {
    if (s->searched++ > SEARCHED_MAX || depth > DEPTH_MAX) return 0;
    int rc = has_us(s, length);
    if (rc || s->found) return rc;
    struct children c = {0};
    rc = os_each_folder(s->folder, one_child, &c);
    rc = rc == -EMFILE || rc == -ENFILE || rc == -ENOMEM ? rc : 0;
    for (const char *name = c.names; rc == 0 && name && *name && !s->found; name += strlen(name) + 1) {
        int n = snprintf(s->folder + length, sizeof s->folder - length, "/%s", name);
        if (n > 0 && (size_t)n < sizeof s->folder - length) rc = search_below(s, length + (size_t)n, depth + 1);
        if (!s->found) s->folder[length] = 0;
    }
    free(c.names);
    return rc;
}

/* --- all of it ---------------------------------------------------------------------------------------------------- */

static int find(struct search *s) {
    int rc = os_read("/proc/self/cgroup", s->own, sizeof s->own);
    if (rc == -ENOENT) return 0; /* a kernel without cgroups */
    if (rc < 0) return rc == -EACCES || rc == -EPERM ? 1 : rc;
    if (!own_path(s, true) && !own_path(s, false)) return 0;
    rc = os_each_line("/proc/self/mountinfo", one_mount, s);
    if (rc < 0) return rc == -EACCES || rc == -EPERM || rc == -ENOENT ? 1 : rc;
    if (s->found) return 0;
    /* In the root of all there are no limits. */
    if (!s->top[0]) return strcmp(s->path, "/") == 0 && os_first_cgroup_namespace() ? 0 : 1;
    memcpy(s->folder, s->top, sizeof s->folder);
    rc = search_below(s, strlen(s->folder), 0);
    if (rc < 0) return rc;
    if (!s->found) memcpy(s->folder, s->top, sizeof s->folder);
    return s->found ? 0 : 1;
}

int cgroups_walk(const char *controller, bool (*folder)(void *arg, const char *path, bool v1), void *arg) {
    struct search *s = calloc(1, sizeof *s);
    if (!s) return -ENOMEM;
    s->controller = controller;
    int rc = find(s);
    size_t top = strlen(s->top);
    while (rc >= 0 && s->folder[0]) {
        size_t length = strlen(s->folder);
        while (length > top && s->folder[length - 1] == '/') s->folder[--length] = 0;
        if (!folder(arg, s->folder, s->v1) || length <= top) break;
        *strrchr(s->folder, '/') = 0;
    }
    free(s);
    return rc;
}
