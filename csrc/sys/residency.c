#define _GNU_SOURCE
#include "sys/residency.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "sys/mutex.h"
#include "sys/page.h"

/* PAGEMAP_SCAN as in include/uapi/linux/fs.h (Linux 6.7), written out for older headers. */
struct scan_region {
    uint64_t start, end, categories;
};
struct scan_arg {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
    uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define SCAN_IOCTL _IOWR('f', 16, struct scan_arg)
#define SCAN_PRESENT (1u << 3)
#define SCAN_SWAPPED (1u << 4)
#define SCAN_ZERO (1u << 5)
#define SCAN_HUGE (1u << 6)

static int residency_scan(int fd, uint64_t start, uint64_t end, struct os_residency *out) {
    struct scan_region regions[64];
    struct scan_arg arg = {.size = sizeof arg,
                           .start = start,
                           .end = end,
                           .vec = (uint64_t)(uintptr_t)regions,
                           .vec_len = sizeof regions / sizeof *regions,
                           .category_anyof_mask = SCAN_PRESENT | SCAN_SWAPPED,
                           .return_mask = SCAN_PRESENT | SCAN_SWAPPED | SCAN_ZERO | SCAN_HUGE};
    for (;;) {
        int n = ioctl(fd, SCAN_IOCTL, &arg);
        if (n < 0) return -errno;
        for (int i = 0; i < n; i++) {
            uint64_t bytes = regions[i].end - regions[i].start, is = regions[i].categories;
            if (is & SCAN_SWAPPED) {
                out->swapped += bytes;
                continue;
            }
            out->present += bytes;
            if (is & SCAN_HUGE) out->huge += bytes;
            if (is & SCAN_ZERO) out->zero += bytes;
        }
        if (arg.walk_end >= end || (n == 0 && arg.walk_end == arg.start)) return 0;
        arg.start = arg.walk_end;
    }
}

/* Entries of /proc/self/pagemap, see the kernel's admin-guide/mm/pagemap.rst. */
#define MAP_PRESENT ((uint64_t)1 << 63)
#define MAP_SWAPPED ((uint64_t)1 << 62)
#define MAP_EXCLUSIVE ((uint64_t)1 << 56)

/* Bytes whose entry, of the bits in the mask, has these. */
static int count_pagemap(int fd, uint64_t start, uint64_t end, uint64_t mask, uint64_t bits, uint64_t *out) {
    uint64_t entry[512];
    for (uint64_t at = start; at < end;) {
        size_t want = (end - at) / OS_PAGE;
        if (want > sizeof entry / sizeof *entry) want = sizeof entry / sizeof *entry;
        ssize_t got = pread(fd, entry, want * sizeof *entry, (off_t)(at / OS_PAGE * sizeof *entry));
        if (got <= 0) return got < 0 ? -errno : -EIO;
        for (size_t i = 0; i < (size_t)got / sizeof *entry; i++) *out += (entry[i] & mask) == bits ? OS_PAGE : 0;
        at += (size_t)got / sizeof *entry * OS_PAGE;
    }
    return 0;
}

int os_mapped_by_others(const void *addr, size_t bytes, uint64_t *count) {
    mutex_check_none();
    uint64_t start = (uintptr_t)addr, before = *count;
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (fd < 0 && (errno == EMFILE || errno == ENFILE)) return -errno;
    int rc = fd < 0 ? -errno : count_pagemap(fd, start, start + bytes, MAP_PRESENT | MAP_EXCLUSIVE, MAP_PRESENT, count);
    if (fd >= 0) close(fd);
    if (rc) *count = before + bytes;
    return 0;
}

/* Older kernels do not tell huge and zero pages apart. */
static int residency_pagemap(int fd, uint64_t start, uint64_t end, struct os_residency *out) {
    int rc = count_pagemap(fd, start, end, MAP_PRESENT, MAP_PRESENT, &out->present);
    return rc ? rc : count_pagemap(fd, start, end, MAP_PRESENT | MAP_SWAPPED, MAP_SWAPPED, &out->swapped);
}

int os_residency(const struct os_features *f, const void *addr, size_t bytes, struct os_residency *out) {
    mutex_check_none();
    memset(out, 0, sizeof *out);
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -errno;
    uint64_t start = (uintptr_t)addr & ~(uint64_t)(OS_PAGE - 1), end = start + bytes;
    int rc = f->pagemap_scan ? residency_scan(fd, start, end, out) : residency_pagemap(fd, start, end, out);
    close(fd);
    return rc;
}

int os_mincore(void *addr, size_t bytes, unsigned char *present) {
    mutex_check_none();
    return mincore(addr, bytes, present) < 0 ? -errno : 0;
}

bool os_is_mapped(void *page) {
    unsigned char unused;
    return os_mincore(page, OS_PAGE, &unused) != -ENOMEM;
}
