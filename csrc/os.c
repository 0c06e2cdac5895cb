#define _GNU_SOURCE
#include "os.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* Values of the kernel's ABI that older libc headers lack. */
#define ADVICE_POPULATE_READ 22
#define ADVICE_POPULATE_WRITE 23
#define ADVICE_DONTNEED_LOCKED 24
#ifndef PR_SET_VMA
#define PR_SET_VMA 0x53564d41
#define PR_SET_VMA_ANON_NAME 0
#endif
#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

static void *map_none(size_t bytes) {
    return mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

/* --- features --------------------------------------------------------------------------------------------------- */

static struct os_features features;
static pthread_once_t features_once = PTHREAD_ONCE_INIT;

static void probe(void) {
    void *page = mmap(NULL, OS_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) return;
    /* Some vendor kernels before 5.14 give advice 23 another meaning and succeed; others (gVisor) report every page as
     * resident, and there only the return code is left to believe. */
    unsigned char before = 0, after = 1;
    (void)mincore(page, OS_PAGE, &before);
    int rc = madvise(page, OS_PAGE, ADVICE_POPULATE_WRITE);
    (void)mincore(page, OS_PAGE, &after);
    features.populate = rc == 0 && ((after & 1) || (before & 1));
    features.dontneed_locked = madvise(page, OS_PAGE, ADVICE_DONTNEED_LOCKED) == 0;
    features.vma_names = prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, (unsigned long)page, OS_PAGE, "arena") == 0;
    munmap(page, OS_PAGE);
    struct os_residency unused;
    features.pagemap_scan = true;
    features.pagemap_scan = os_residency(&features, 0, &unused) == 0;
}

const struct os_features *os_features(void) {
    pthread_once(&features_once, probe);
    return &features;
}

int os_read(const char *path, char *buf, size_t size) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -errno;
    size_t got = 0;
    while (got < size - 1) {
        ssize_t n = read(fd, buf + got, size - 1 - got);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            int err = errno;
            close(fd);
            return -err;
        }
        if (n == 0) break;
        got += (size_t)n;
    }
    close(fd);
    buf[got] = 0;
    return (int)got;
}

bool os_thp_allowed(void) {
    char text[128];
    if (os_read("/sys/kernel/mm/transparent_hugepage/enabled", text, sizeof text) < 0) return false;
    if (strstr(text, "[always]") || strstr(text, "[madvise]")) {
        /* The per-size switch overrides the global one (Linux 6.8). */
        if (os_read("/sys/kernel/mm/transparent_hugepage/hugepages-2048kB/enabled", text, sizeof text) < 0) return true;
        return !strstr(text, "[never]");
    }
    return os_read("/sys/kernel/mm/transparent_hugepage/hugepages-2048kB/enabled", text, sizeof text) > 0 &&
           (strstr(text, "[always]") || strstr(text, "[madvise]"));
}

int os_overcommit_mode(void) {
    char text[16];
    return os_read("/proc/sys/vm/overcommit_memory", text, sizeof text) > 0 ? atoi(text) : 0;
}

/* --- mappings --------------------------------------------------------------------------------------------------- */

int os_reserve(size_t bytes, size_t align, void **out, bool *lazy) {
    size_t span = bytes + (align > OS_PAGE ? align : 0);
    if (span < bytes) return -ENOMEM;
    char *raw = map_none(span);
    if (raw == MAP_FAILED) return -errno;
    char *base = (char *)(((uintptr_t)raw + align - 1) & ~(uintptr_t)(align - 1));
    if (base > raw) munmap(raw, (size_t)(base - raw));
    if (raw + span > base + bytes) munmap(base + bytes, (size_t)(raw + span - (base + bytes)));
    /* Under mlockall(MCL_FUTURE) a range made writable is populated whole at once, unless it was unlocked before. */
    (void)munlock(base, bytes);
    *lazy = os_overcommit_mode() == 2;
    if (!*lazy && mprotect(base, bytes, PROT_READ | PROT_WRITE) < 0) {
        if (errno != ENOMEM) {
            int err = errno;
            munmap(base, bytes);
            return -err;
        }
        *lazy = true;
    }
    *out = base;
    return 0;
}

int os_unmap(void *addr, size_t bytes) { return munmap(addr, bytes) < 0 ? -errno : 0; }

int os_open(void *addr, size_t bytes) { return mprotect(addr, bytes, PROT_READ | PROT_WRITE) < 0 ? -errno : 0; }

int os_close(void *addr, size_t bytes) {
    void *at = mmap(addr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    return at == MAP_FAILED ? -errno : 0;
}

int os_map_at(void *addr, size_t bytes) {
    void *at = mmap(addr, bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
    if (at == MAP_FAILED) return -errno;
    if (at == addr) return 0;
    munmap(at, bytes); /* kernels before 4.17 take the address as a hint */
    return -EEXIST;
}

int os_populate(void *addr, size_t bytes, bool write) {
    int advice = write ? ADVICE_POPULATE_WRITE : ADVICE_POPULATE_READ;
    while (madvise(addr, bytes, advice) < 0) {
        if (errno != EAGAIN && errno != EINTR) return -errno;
    }
    return 0;
}

__attribute__((no_sanitize("thread"))) /* it changes nothing, whoever writes there meanwhile */
void os_touch(void *addr, size_t bytes, size_t page, bool write) {
    for (char *at = (char *)addr + page - 1, *end = (char *)addr + bytes; at < end; at += page) {
        if (write)
            __atomic_fetch_or(at, 0, __ATOMIC_RELAXED);
        else
            (void)__atomic_load_n(at, __ATOMIC_RELAXED);
    }
}

static int advise(void *addr, size_t bytes, int advice) {
    while (madvise(addr, bytes, advice) < 0) {
        if (errno != EAGAIN && errno != EINTR) return -errno;
    }
    return 0;
}

int os_release(void *addr, size_t bytes) {
    int rc = advise(addr, bytes, MADV_DONTNEED);
    if (rc == -EINVAL && os_features()->dontneed_locked) rc = advise(addr, bytes, ADVICE_DONTNEED_LOCKED);
    return rc;
}

int os_advise_huge(void *addr, size_t bytes, bool huge) {
    return advise(addr, bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
}

int os_advise_dump(void *addr, size_t bytes, bool dump) {
    return advise(addr, bytes, dump ? MADV_DODUMP : MADV_DONTDUMP);
}

int os_advise_fork(void *addr, size_t bytes, enum os_fork fork) {
    if (fork == OS_FORK_COPY) return 0;
    return advise(addr, bytes, fork == OS_FORK_DROP ? MADV_DONTFORK : MADV_WIPEONFORK);
}

void os_name(void *addr, size_t bytes, const char *name) {
    if (os_features()->vma_names) (void)prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, (unsigned long)addr, bytes, name);
}

/* --- residency -------------------------------------------------------------------------------------------------- */

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

/* Older kernels: present and swapped from pagemap; huge and zero pages cannot be told apart there. */
static int residency_pagemap(int fd, uint64_t start, uint64_t end, struct os_residency *out) {
    uint64_t entry[512];
    for (uint64_t at = start; at < end;) {
        size_t want = (end - at) / OS_PAGE;
        if (want > sizeof entry / sizeof *entry) want = sizeof entry / sizeof *entry;
        ssize_t got = pread(fd, entry, want * sizeof *entry, (off_t)(at / OS_PAGE * sizeof *entry));
        if (got <= 0) return got < 0 ? -errno : -EIO;
        for (size_t i = 0; i < (size_t)got / sizeof *entry; i++) {
            if (entry[i] >> 63)
                out->present += OS_PAGE;
            else if (entry[i] >> 62 & 1)
                out->swapped += OS_PAGE;
        }
        at += (size_t)got / sizeof *entry * OS_PAGE;
    }
    return 0;
}

int os_residency(const void *addr, size_t bytes, struct os_residency *out) {
    memset(out, 0, sizeof *out);
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -errno;
    uint64_t start = (uintptr_t)addr & ~(uint64_t)(OS_PAGE - 1), end = start + bytes;
    int rc = features.pagemap_scan ? residency_scan(fd, start, end, out) : residency_pagemap(fd, start, end, out);
    close(fd);
    return rc;
}

int os_copy(void *memory, void *buffer, size_t bytes, bool into_memory) {
    char *at = memory, *local = buffer;
    while (bytes) {
        struct iovec here = {.iov_base = local, .iov_len = bytes}, there = {.iov_base = at, .iov_len = bytes};
        ssize_t n = into_memory ? process_vm_writev(getpid(), &here, 1, &there, 1, 0)
                                : process_vm_readv(getpid(), &here, 1, &there, 1, 0);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return n < 0 ? -errno : -EFAULT;
        at += n;
        local += n;
        bytes -= (size_t)n;
    }
    return 0;
}

/* --- time and threads ------------------------------------------------------------------------------------------- */

uint64_t os_now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void os_sleep_us(unsigned us) {
    struct timespec t = {.tv_sec = us / 1000000, .tv_nsec = (long)(us % 1000000) * 1000};
    nanosleep(&t, NULL);
}

unsigned os_cpus(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return (unsigned)CPU_COUNT(&set);
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (unsigned)n : 1;
}

unsigned os_threads(void) {
    struct stat st;
    return stat("/proc/self/task", &st) == 0 && st.st_nlink > 2 ? (unsigned)st.st_nlink - 2 : 1;
}

int os_thread(pthread_t *out, void *(*run)(void *), void *arg) {
    pthread_attr_t attr;
    sigset_t all, old;
    int rc = pthread_attr_init(&attr);
    if (rc) return -rc;
    (void)pthread_attr_setstacksize(&attr, 128 << 10);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    rc = pthread_create(out, &attr, run, arg);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
    return -rc;
}

void os_wait(const uint32_t *word, uint32_t value, uint64_t timeout_ns) {
    struct timespec t = {.tv_sec = (time_t)(timeout_ns / 1000000000u), .tv_nsec = (long)(timeout_ns % 1000000000u)};
    if (syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, &t, NULL, 0) < 0 && errno == ENOSYS) os_sleep_us(1000);
}

void os_wake_all(const uint32_t *word) { syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 0x7fffffff, NULL, NULL, 0); }
