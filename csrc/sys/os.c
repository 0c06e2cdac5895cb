#define _GNU_SOURCE
#include "sys/os.h"

#include <dlfcn.h>
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
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "sys/os_file.h"

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

static int flags_of(const struct os_mapping *what) {
    int flags = MAP_NORESERVE | (what->shared ? MAP_SHARED : MAP_PRIVATE) | (what->fd < 0 ? MAP_ANONYMOUS : 0);
    if (what->hugetlb) flags |= MAP_HUGETLB | (int)((unsigned)__builtin_ctzll(what->hugetlb) << 26);
    return flags;
}

/* --- features --------------------------------------------------------------------------------------------------- */

static struct os_features features;
static pthread_once_t features_once = PTHREAD_ONCE_INIT;

/* The kernel refuses MADV_DONTNEED by the kind of the mapping, whether it has a page or not. So a mapping without any
 * tells, and such a one takes nothing from the pool. */
static bool can_drop_hugetlb(void) {
    const struct os_mapping pool = {.fd = -1, .hugetlb = OS_HUGE};
    void *at = mmap(NULL, OS_HUGE, PROT_NONE, flags_of(&pool), -1, 0);
    if (at == MAP_FAILED) return false;
    bool can = madvise(at, OS_HUGE, MADV_DONTNEED) == 0;
    munmap(at, OS_HUGE);
    return can;
}

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
    features.dontneed_hugetlb = can_drop_hugetlb();
    struct os_residency unused;
    features.pagemap_scan = true;
    features.pagemap_scan = os_residency(&features, &features, 0, &unused) == 0;
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

int os_each_line(const char *path, bool (*line)(void *arg, char *text), void *arg) {
    char buf[4096], text[4096];
    size_t length = 0;
    bool more = true;
    ssize_t n;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -errno;
    while (more && ((n = read(fd, buf, sizeof buf)) > 0 || (n < 0 && errno == EINTR))) {
        for (ssize_t i = 0; more && i < n; i++) {
            if (buf[i] != '\n') {
                if (length < sizeof text - 1) text[length++] = buf[i];
                continue;
            }
            text[length] = 0;
            length = 0;
            more = line(arg, text);
        }
    }
    int rc = more && n < 0 ? -errno : 0;
    close(fd);
    return rc;
}

#define THP "/sys/kernel/mm/transparent_hugepage/"

static bool chosen(const char *text, const char *words) {
    const char *open = strchr(text, '['), *end = open ? strchr(open, ']') : NULL;
    if (!end) return false;
    size_t n = (size_t)(end - open - 1);
    for (const char *at = words; *at; at += strcspn(at, " "), at += strspn(at, " ")) {
        if (strcspn(at, " ") == n && strncmp(at, open + 1, n) == 0) return true;
    }
    return false;
}

/* No descriptor is left: what a file says is not known, and that is not "no". */
static bool no_descriptor(int rc) { return rc == -EMFILE || rc == -ENFILE; }

int os_thp_allowed(uint64_t bytes, bool shared) {
    const char *words = shared ? "always within_size advise force" : "always madvise";
    char path[128], all[128] = "", text[128];
    int rc = os_read(shared ? THP "shmem_enabled" : THP "enabled", all, sizeof all);
    if (rc < 0) return no_descriptor(rc) ? rc : false;
    if (shared && chosen(all, "deny")) return false;
    if (shared && chosen(all, "force")) return true;
    /* The switch of a size overrides the one for all, which it may inherit (Linux 6.8). */
    snprintf(path, sizeof path, THP "hugepages-%llukB/%s", (unsigned long long)(bytes >> 10),
             shared ? "shmem_enabled" : "enabled");
    rc = os_read(path, text, sizeof text);
    if (rc < 0) return no_descriptor(rc) ? rc : bytes == OS_HUGE && chosen(all, words);
    return chosen(text, words) || (chosen(text, "inherit") && chosen(all, words));
}

static uint64_t pool_file(const char *dir, const char *file, int *rc) {
    char path[160], text[32];
    snprintf(path, sizeof path, "%s/%s", dir, file);
    int got = os_read(path, text, sizeof text);
    if (no_descriptor(got)) *rc = got;
    return got > 0 ? strtoull(text, NULL, 10) : 0;
}

int os_hugetlb(uint64_t page, int node, struct os_pool *out) {
    char all[96], dir[128];
    snprintf(all, sizeof all, "/sys/kernel/mm/hugepages/hugepages-%llukB", (unsigned long long)(page >> 10));
    snprintf(dir, sizeof dir, "/sys/devices/system/node/node%d/hugepages/hugepages-%llukB", node,
             (unsigned long long)(page >> 10));
    const char *at = node < 0 ? all : dir;
    int rc = 0;
    uint64_t total = pool_file(at, "nr_hugepages", &rc), free = pool_file(at, "free_hugepages", &rc);
    uint64_t promised = pool_file(all, "resv_hugepages", &rc), surplus = pool_file(all, "surplus_hugepages", &rc);
    uint64_t more = pool_file(all, "nr_overcommit_hugepages", &rc);
    free = node < 0 ? (free > promised ? free - promised : 0) : free;
    more = more > surplus ? more - surplus : 0;
    *out = (struct os_pool){.total = (total + more) * page, .free = (free + more) * page};
    snprintf(out->where, sizeof out->where, "%.70s/free_hugepages", at);
    return rc;
}

int os_overcommit_mode(void) {
    char text[16];
    return os_read("/proc/sys/vm/overcommit_memory", text, sizeof text) > 0 ? atoi(text) : 0;
}

/* --- mappings --------------------------------------------------------------------------------------------------- */

const struct os_mapping os_anonymous = {.fd = -1};

static int map_fixed(const struct os_mapping *what, void *addr, size_t bytes, uint64_t offset, int prot) {
    void *at = mmap(addr, bytes, prot, flags_of(what) | MAP_FIXED, what->fd, (off_t)offset);
    return at == MAP_FAILED ? -errno : 0;
}

/* At exactly this address, where nothing may be: -EEXIST. MAP_FIXED unmaps what is there before it asks the file, whose
 * refusal leaves a gap that another thread's mmap may get meanwhile; so it is only for what is ours and no file's. */
static int map_exactly(const struct os_mapping *what, void *addr, size_t bytes, uint64_t offset, int prot) {
    void *at = mmap(addr, bytes, prot, flags_of(what) | MAP_FIXED_NOREPLACE, what->fd, (off_t)offset);
    if (at == MAP_FAILED) return -errno;
    if (at == addr) return 0;
    (void)os_unmap(at, bytes); /* kernels before 4.17 take the address as a hint */
    return -EEXIST;
}

/* Without CAP_IPC_LOCK mmap(2) counts all that it maps under mlockall(MCL_FUTURE), and says EAGAIN: but mremap(2) does not
 * count what an unlocked mapping grows by. */
static void *map_none_grown(size_t bytes) {
    void *page = map_none(OS_PAGE), *grown = MAP_FAILED;
    if (page == MAP_FAILED) return page;
    if (munlock(page, OS_PAGE) == 0) grown = mremap(page, OS_PAGE, bytes, MREMAP_MAYMOVE);
    int failed = errno;
    if (grown == MAP_FAILED) (void)os_unmap(page, OS_PAGE);
    errno = failed;
    return grown;
}

/* The same at an address where nothing may be, in place: what is in the way stays. */
static int map_exactly_grown(const struct os_mapping *what, void *addr, size_t bytes) {
    int rc = map_exactly(what, addr, OS_PAGE, 0, PROT_NONE);
    if (rc) return rc;
    if (munlock(addr, OS_PAGE) < 0 || mremap(addr, OS_PAGE, bytes, 0) == MAP_FAILED) {
        rc = errno == ENOMEM ? -EEXIST : -errno; /* one cannot be told from the other */
        (void)os_unmap(addr, OS_PAGE);
    }
    return rc;
}

/* Shared anonymous memory is a file that does not grow with its mapping: so it is one of ours, that has its size. Pages of
 * the hugetlb pool cannot be had in this way, and memfd_secret is to be counted. */
static int map_shared_grown(const struct os_mapping *what, void *addr, size_t bytes) {
    struct os_mapping file = *what;
    struct os_file found;
    if (what->device || what->hugetlb) return -EAGAIN;
    int rc = what->fd < 0 ? os_memfd("arena", 0, &file.fd) : 0;
    if (rc) return rc;
    if (what->fd < 0)
        rc = os_truncate(file.fd, bytes);
    else if ((rc = os_file_look(file.fd, &found)) == 0 &&
             (found.type == OS_FILE_HUGETLBFS || found.type == OS_FILE_OTHER))
        rc = -EAGAIN;
    if (rc == 0) rc = map_exactly_grown(&file, addr, bytes);
    if (what->fd < 0) os_close_file(file.fd);
    return rc;
}

#define PLACE_TRIES 100 /* how often another thread may map what was found free */

/* Maps at a multiple of align. An address is found by reserving more than is needed and giving all of it back: for the file,
 * which may refuse, is not mapped over anything. */
static int map_aligned(const struct os_mapping *what, size_t bytes, size_t span, size_t align, int prot, char **out) {
    int rc = -EEXIST;
    for (int tries = 0; rc == -EEXIST && tries < PLACE_TRIES; tries++) {
        char *raw = map_none(span);
        bool counted = raw == MAP_FAILED && errno == EAGAIN;
        if (counted) raw = map_none_grown(span);
        if (raw == MAP_FAILED) return -errno;
        *out = (char *)(((uintptr_t)raw + align - 1) & ~(uintptr_t)(align - 1));
        if ((rc = os_unmap(raw, span)) != 0) return rc;
        rc = map_exactly(what, *out, bytes, 0, prot);
        if (rc == -EAGAIN && counted) rc = map_shared_grown(what, *out, bytes);
    }
    return rc == -EEXIST ? -ENOMEM : rc;
}

/* The same for private anonymous memory: what was reserved is kept, but for what is too much at its ends. */
static int map_none_aligned(size_t bytes, size_t span, size_t align, char **out) {
    char *raw = map_none(span), *end;
    if (raw == MAP_FAILED && errno == EAGAIN) raw = map_none_grown(span);
    if (raw == MAP_FAILED) return -errno;
    *out = (char *)(((uintptr_t)raw + align - 1) & ~(uintptr_t)(align - 1));
    end = raw + span;
    int rc = *out > raw && munmap(raw, (size_t)(*out - raw)) < 0 ? -errno : 0;
    if (rc == 0) {
        raw = *out;
        if (end > *out + bytes && munmap(*out + bytes, (size_t)(end - (*out + bytes))) < 0) rc = -errno;
    }
    /* vm.max_map_count: an end could not be cut off. To unmap the whole takes no cut. */
    if (rc) (void)os_unmap(raw, (size_t)(end - raw));
    return rc;
}

int os_reserve(const struct os_mapping *what, size_t bytes, size_t align, void **out, bool *lazy) {
    size_t span = bytes + (align > OS_PAGE ? align : 0);
    if (span < bytes) return -ENOMEM;
    int prot = PROT_READ | (what->readonly ? 0 : PROT_WRITE);
    bool anonymous = what->fd < 0 && !what->shared && !what->hugetlb;
    char *base = NULL;
    int rc = anonymous ? map_none_aligned(bytes, span, align, &base)
                       : map_aligned(what, bytes, span, align, what->device ? prot : PROT_NONE, &base);
    if (rc) return rc;
    /* Under mlockall(MCL_FUTURE) a range made writable is populated whole at once, unless it was unlocked before. */
    (void)munlock(base, bytes);
    bool may_be_lazy = !what->shared && !what->readonly && !what->device;
    *lazy = may_be_lazy && !what->hugetlb && os_overcommit_mode() == 2;
    if (!*lazy && !what->device && mprotect(base, bytes, prot) < 0) {
        if (errno == ENOMEM && may_be_lazy)
            *lazy = true;
        else
            rc = -errno;
    }
    if (rc)
        (void)os_unmap(base, bytes);
    else
        *out = base;
    return rc;
}

/* What munmap(2) refused, to be tried again with the next: at vm.max_map_count nothing is cut out of a mapping, and the
 * kernel merges neighbours. What does not fit here stays mapped. */
static struct leftover {
    void *addr; /* atomic: NULL, or LEFTOVER_BUSY while a thread has to do with it */
    size_t bytes;
} leftovers[32];
static bool any_leftover; /* atomic */
#define LEFTOVER_BUSY ((void *)1)

static bool take_leftover(struct leftover *l, void *now) {
    return __atomic_compare_exchange_n(&l->addr, &now, LEFTOVER_BUSY, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
}

static void unmap_leftovers(void) {
    bool some = false;
    __atomic_store_n(&any_leftover, false, __ATOMIC_RELAXED);
    for (struct leftover *l = leftovers, *end = l + sizeof leftovers / sizeof *l; l < end; l++) {
        void *addr = __atomic_load_n(&l->addr, __ATOMIC_RELAXED);
        if (!addr || addr == LEFTOVER_BUSY || !take_leftover(l, addr)) continue;
        if (munmap(addr, l->bytes) == 0) addr = NULL;
        some = some || addr;
        __atomic_store_n(&l->addr, addr, __ATOMIC_RELEASE);
    }
    if (some) __atomic_store_n(&any_leftover, true, __ATOMIC_RELAXED);
}

int os_unmap(void *addr, size_t bytes) {
    int rc = munmap(addr, bytes) < 0 ? -errno : 0;
    if (rc == -ENOMEM && munmap(addr, bytes) == 0) rc = 0; /* the kernel may have lacked memory for a moment only */
    if (__atomic_load_n(&any_leftover, __ATOMIC_RELAXED)) unmap_leftovers();
    if (rc == 0) return 0;
    (void)munlock(addr, bytes); /* locked memory cannot be dropped on every kernel */
    (void)madvise(addr, bytes, MADV_DONTNEED);
    for (struct leftover *l = leftovers, *end = l + sizeof leftovers / sizeof *l; l < end; l++) {
        if (__atomic_load_n(&l->addr, __ATOMIC_RELAXED) || !take_leftover(l, NULL)) continue;
        l->bytes = bytes;
        __atomic_store_n(&l->addr, addr, __ATOMIC_RELEASE);
        __atomic_store_n(&any_leftover, true, __ATOMIC_RELAXED);
        break;
    }
    return rc;
}

int os_open(void *addr, size_t bytes) { return mprotect(addr, bytes, PROT_READ | PROT_WRITE) < 0 ? -errno : 0; }

/* A file's mapping is made elsewhere, where it may be refused without harm, and then moved. */
static int map_over(const struct os_mapping *what, void *addr, size_t bytes, uint64_t offset) {
    void *fresh = mmap(NULL, bytes, PROT_NONE, flags_of(what), what->fd, (off_t)offset);
    if (fresh == MAP_FAILED) return -errno;
    if (mremap(fresh, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, addr) == addr) return 0;
    int rc = -errno;
    (void)os_unmap(fresh, bytes);
    /* Before Linux 5.16 mappings of hugetlb pages do not move. */
    return rc == -EINVAL ? map_fixed(what, addr, bytes, offset, PROT_NONE) : rc;
}

int os_close(const struct os_mapping *what, void *addr, size_t bytes, uint64_t offset) {
    offset = what->fd < 0 ? 0 : offset;
    int rc = what->fd < 0 ? map_fixed(what, addr, bytes, 0, PROT_NONE) : map_over(what, addr, bytes, offset);
    /* It may have been unmapped before the kernel ran out of memory: then it must not become another's. */
    if (rc && map_exactly(what, addr, bytes, offset, PROT_NONE) == 0)
        rc = 0;
    else if (rc)
        (void)map_exactly(&os_anonymous, addr, bytes, 0, PROT_NONE);
    (void)munlock(addr, bytes); /* see os_reserve */
    return rc;
}

int os_map_at(void *addr, size_t bytes) {
    int rc = map_exactly(&os_anonymous, addr, bytes, 0, PROT_READ | PROT_WRITE);
    /* RLIMIT_DATA, overcommit mode 2: to be read at least. */
    return rc == -ENOMEM ? map_exactly(&os_anonymous, addr, bytes, 0, PROT_READ) : rc;
}

#define ADVISE_TRIES 1000

/* EAGAIN is lack of memory in the kernel that may pass, and also vm.max_map_count, which does not: madvise(2) says it where a
 * mapping would have to be split. */
static int advise(void *addr, size_t bytes, int advice) {
    for (int tries = 0; madvise(addr, bytes, advice) < 0;) {
        if (errno == EAGAIN && ++tries == ADVISE_TRIES) return -ENOMEM;
        if (errno != EAGAIN && errno != EINTR) return -errno;
    }
    return 0;
}

int os_populate(void *addr, size_t bytes, bool write) {
    return advise(addr, bytes, write ? ADVICE_POPULATE_WRITE : ADVICE_POPULATE_READ);
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

#define TOUCH_TRIES 10000

int os_touch_carefully(void *addr, size_t bytes, size_t page, bool write) {
    static const struct timespec at_once;
    static uint32_t nobody;
    for (char *at = addr, *end = at + bytes; at < end; at += page) {
        long rc;
        int tries = 0;
        do {
            rc = write ? syscall(SYS_futex, &nobody, FUTEX_WAKE_OP | FUTEX_PRIVATE_FLAG, 0, 0, at,
                                 FUTEX_OP(FUTEX_OP_OR, 0, FUTEX_OP_CMP_EQ, 0))
                       : syscall(SYS_futex, at, FUTEX_WAIT | FUTEX_PRIVATE_FLAG, 1, &at_once, NULL, 0);
            /* FUTEX_WAKE_OP says EAGAIN when it has not done it, FUTEX_WAIT when it has seen another value than 1. */
        } while (rc < 0 && (errno == EINTR || (write && errno == EAGAIN)) && ++tries < TOUCH_TRIES);
        if (rc < 0 && (write || (errno != EAGAIN && errno != ETIMEDOUT))) return -errno;
    }
    return 0;
}

int os_release(const struct os_features *f, void *addr, size_t bytes) {
    int rc = advise(addr, bytes, MADV_DONTNEED);
    if (rc != -EINVAL) return rc;
    if (f->dontneed_locked) return advise(addr, bytes, ADVICE_DONTNEED_LOCKED);
    /* Whoever locked it, as by an mlockall of the program's own, wants it locked afterwards. */
    if (munlock(addr, bytes) < 0) return rc;
    rc = advise(addr, bytes, MADV_DONTNEED);
    if (rc != -EINVAL) (void)os_mlock(addr, bytes);
    return rc;
}

int os_map_anew(const struct os_mapping *what, void *addr, size_t bytes, uint64_t offset) {
    int rc = os_close(what, addr, bytes, offset);
    /* When this is refused the range is given back all the same: a later os_populate answers that it has no access. */
    if (rc == 0) (void)mprotect(addr, bytes, PROT_READ | (what->readonly ? 0 : PROT_WRITE));
    return rc;
}

bool os_is_mapped(void *page) {
    unsigned char unused;
    return mincore(page, OS_PAGE, &unused) == 0 || errno != ENOMEM;
}

int os_flush(void *addr, size_t bytes) { return msync(addr, bytes, MS_SYNC) < 0 ? -errno : 0; }

int os_remove(void *addr, size_t bytes) {
    int rc = advise(addr, bytes, MADV_REMOVE);
    if (rc != -EINVAL || munlock(addr, bytes) < 0) return rc;
    rc = advise(addr, bytes, MADV_REMOVE);
    (void)os_mlock(addr, bytes);
    return rc;
}

int os_mlock(void *addr, size_t bytes) {
    const int on_fault = 1; /* MLOCK_ONFAULT, of linux/mman.h */
    return syscall(SYS_mlock2, addr, bytes, on_fault) < 0 ? -errno : 0;
}

int os_munlock(void *addr, size_t bytes) { return munlock(addr, bytes) < 0 ? -errno : 0; }

int os_mlock_present(const struct os_features *f, void *addr, size_t bytes) {
    unsigned char there[4096];
    for (char *at = addr, *end = at + bytes, *next; at < end; at = next) {
        next = (size_t)(end - at) > sizeof there * OS_PAGE ? at + sizeof there * OS_PAGE : end;
        size_t pages = (size_t)(next - at) / OS_PAGE, from = 0, to;
        if (mincore(at, (size_t)(next - at), there) < 0) return -errno;
        for (; from < pages; from = to + 1) {
            for (to = from; to < pages && there[to] & 1; to++) {
            }
            if (to == from) continue;
            char *first = at + from * OS_PAGE;
            size_t nbytes = (to - from) * OS_PAGE;
            int rc = os_mlock(first, nbytes);
            if (rc) return rc;
            /* As mlock(2) without MLOCK_ONFAULT: what a fork has made copy-on-write is our own again. */
            if (!f->populate || os_populate(first, nbytes, true)) os_touch(first, nbytes, OS_PAGE, true);
        }
    }
    return 0;
}

void os_mlock_whole(void *addr, size_t bytes) { (void)mlock(addr, bytes); }

int os_mlock_future(bool on_fault) {
    const int when_present = 4; /* MCL_ONFAULT */
    return mlockall(MCL_FUTURE | (on_fault ? when_present : 0)) < 0 ? -errno : 0;
}

int os_munlock_all(void) { return munlockall() < 0 ? -errno : 0; }

#define CAP_IPC_LOCK_BIT 14 /* CAP_IPC_LOCK, of linux/capability.h */

static bool locked_line(void *arg, char *text) {
    uint64_t *found = arg;
    if (strncmp(text, "VmLck:", 6) == 0) found[0] = strtoull(text + 6, NULL, 10) << 10;
    if (strncmp(text, "CapEff:", 7) == 0) found[1] = strtoull(text + 7, NULL, 16) >> CAP_IPC_LOCK_BIT & 1;
    return true;
}

void os_mlock_limit(uint64_t *limit, uint64_t *locked) {
    struct rlimit r;
    uint64_t found[2] = {0, 0};
    (void)os_each_line("/proc/self/status", locked_line, found);
    *locked = found[0];
    *limit = found[1] || getrlimit(RLIMIT_MEMLOCK, &r) < 0 || r.rlim_cur == RLIM_INFINITY ? UINT64_MAX : r.rlim_cur;
}

int os_bind(void *addr, size_t bytes, int node) {
    unsigned long mask[16] = {0};
    if (node < 0 || (size_t)node >= sizeof mask * 8) return -EINVAL;
    mask[(size_t)node / (8 * sizeof *mask)] = 1ul << ((size_t)node % (8 * sizeof *mask));
    const int bind = 2; /* MPOL_BIND, of linux/mempolicy.h */
    return syscall(SYS_mbind, addr, bytes, bind, mask, sizeof mask * 8, 0) < 0 ? -errno : 0;
}

int os_advise_huge(void *addr, size_t bytes, bool huge) {
    return advise(addr, bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
}

int os_advise_dump(void *addr, size_t bytes, bool dump) {
    return advise(addr, bytes, dump ? MADV_DODUMP : MADV_DONTDUMP);
}

int os_advise_fork(void *addr, size_t bytes, enum os_fork fork) {
    if (fork == OS_FORK_COPY || fork == OS_FORK_SHARE) return 0;
    return advise(addr, bytes, fork == OS_FORK_DROP ? MADV_DONTFORK : MADV_WIPEONFORK);
}

void os_name(const struct os_features *f, void *addr, size_t bytes, const char *name) {
    if (f->vma_names) (void)prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, (unsigned long)addr, bytes, name);
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
    uint64_t start = (uintptr_t)addr, before = *count;
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (fd < 0 && (errno == EMFILE || errno == ENFILE)) return -errno;
    int rc = fd < 0 ? -errno : count_pagemap(fd, start, start + bytes, MAP_PRESENT | MAP_EXCLUSIVE, MAP_PRESENT, count);
    if (fd >= 0) close(fd);
    if (rc) *count = before + bytes;
    return 0;
}

/* Older kernels: huge and zero pages cannot be told apart there. */
static int residency_pagemap(int fd, uint64_t start, uint64_t end, struct os_residency *out) {
    int rc = count_pagemap(fd, start, end, MAP_PRESENT, MAP_PRESENT, &out->present);
    return rc ? rc : count_pagemap(fd, start, end, MAP_PRESENT | MAP_SWAPPED, MAP_SWAPPED, &out->swapped);
}

int os_residency(const struct os_features *f, const void *addr, size_t bytes, struct os_residency *out) {
    memset(out, 0, sizeof *out);
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -errno;
    uint64_t start = (uintptr_t)addr & ~(uint64_t)(OS_PAGE - 1), end = start + bytes;
    int rc = f->pagemap_scan ? residency_scan(fd, start, end, out) : residency_pagemap(fd, start, end, out);
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

bool os_is_main_thread(void) { return syscall(SYS_gettid) == getpid(); }

unsigned os_threads(void) {
    struct stat st;
    return stat("/proc/self/task", &st) == 0 && st.st_nlink > 2 ? (unsigned)st.st_nlink - 2 : 1;
}

/* glibc puts the static TLS of all libraries on each thread's stack; how much that is it tells nobody but by this function,
 * which is not for linking. musl adds its own to the size that is asked for. */
static size_t stack_of_libc(const pthread_attr_t *attr) {
    size_t (*least)(const pthread_attr_t *);
    *(void **)&least = dlsym(RTLD_DEFAULT, "__pthread_get_minstack");
    return least ? (least(attr) + OS_PAGE - 1) & ~(OS_PAGE - 1) : 0;
}

int os_thread(pthread_t *out, void *(*run)(void *), void *arg) {
    pthread_attr_t attr;
    sigset_t all, old;
    int rc = pthread_attr_init(&attr);
    if (rc) return -rc;
    (void)pthread_attr_setstacksize(&attr, (128 << 10) + stack_of_libc(&attr));
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
