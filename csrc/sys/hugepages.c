#define _GNU_SOURCE
#include "sys/hugepages.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sys/proc.h"

#define THP "/sys/kernel/mm/transparent_hugepage/"

/* No descriptor is left: what a file says is not known, and that is not the same as that there is no such file. */
static bool no_descriptor(int rc) { return rc == -EMFILE || rc == -ENFILE; }

/* Of "always [madvise] never": the word in brackets. */
static enum os_thp chosen(const char *text) {
    static const struct {
        const char *word;
        enum os_thp is;
    } words[] = {{"[never]", OS_THP_NEVER},     {"[always]", OS_THP_ALWAYS}, {"[madvise]", OS_THP_MADVISE},
                 {"[inherit]", OS_THP_INHERIT}, {"[advise]", OS_THP_ADVISE}, {"[within_size]", OS_THP_WITHIN_SIZE},
                 {"[deny]", OS_THP_DENY},       {"[force]", OS_THP_FORCE}};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (strstr(text, words[i].word)) return words[i].is;
    return OS_THP_OTHER;
}

int os_thp_switch(uint64_t bytes, bool shared) {
    char path[128], text[128], of[48] = "";
    if (bytes) snprintf(of, sizeof of, "hugepages-%llukB/", (unsigned long long)(bytes >> 10));
    snprintf(path, sizeof path, THP "%s%s", of, shared ? "shmem_enabled" : "enabled");
    int rc = os_read(path, text, sizeof text);
    if (rc < 0) return no_descriptor(rc) ? rc : OS_THP_ABSENT;
    return (int)chosen(text);
}

static uint64_t number(const char *dir, const char *file, int *rc) {
    char path[160], text[32];
    snprintf(path, sizeof path, "%s/%s", dir, file);
    int got = os_read(path, text, sizeof text);
    if (no_descriptor(got)) *rc = got;
    return got > 0 ? strtoull(text, NULL, 10) : 0;
}

int os_hugetlb(uint64_t page, int node, struct os_hugetlb *out) {
    char all[96], of_node[128];
    snprintf(all, sizeof all, "/sys/kernel/mm/hugepages/hugepages-%llukB", (unsigned long long)(page >> 10));
    snprintf(of_node, sizeof of_node, "/sys/devices/system/node/node%d/hugepages/hugepages-%llukB", node,
             (unsigned long long)(page >> 10));
    const char *at = node < 0 ? all : of_node;
    int rc = 0;
    *out = (struct os_hugetlb){.pages = number(at, "nr_hugepages", &rc),
                               .free = number(at, "free_hugepages", &rc),
                               .reserved = number(all, "resv_hugepages", &rc),
                               .surplus = number(all, "surplus_hugepages", &rc),
                               .surplus_max = number(all, "nr_overcommit_hugepages", &rc)};
    snprintf(out->where, sizeof out->where, "%.70s/free_hugepages", at);
    return rc;
}
