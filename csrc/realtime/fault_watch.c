#define _GNU_SOURCE
#include "realtime/fault_watch.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/perf_event.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

struct fault_watch {
    struct fault_watch *next;
    int fd; /* -1 in a fork's child */
    struct perf_event_mmap_page *meta;
    const char *notes;
    uint64_t room;  /* bytes, a power of two */
    uint64_t seen; /* the position when it was last armed */
    int left;      /* of the notes until it disarms itself */
};

/* All of this process: a fork's child closes their descriptors, and has none of their buffers (VM_DONTCOPY). */
static struct fault_watch *all;
static pthread_mutex_t all_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void before_fork(void) { pthread_mutex_lock(&all_lock); }
static void after_fork(void) { pthread_mutex_unlock(&all_lock); }

static void in_child(void) {
    for (struct fault_watch *w = all; w; w = w->next) {
        close(w->fd);
        w->fd = -1;
        w->meta = NULL;
    }
    all = NULL;
    pthread_mutex_unlock(&all_lock);
}

static void first_time(void) { pthread_atfork(before_fork, after_fork, in_child); }

static int open_event(bool signal) {
    struct perf_event_attr a = {
        .type = PERF_TYPE_SOFTWARE,
        .size = sizeof a,
        .config = PERF_COUNT_SW_PAGE_FAULTS,
        .sample_period = 1,
        .sample_type = PERF_SAMPLE_IP | PERF_SAMPLE_ADDR | PERF_SAMPLE_CALLCHAIN,
        /* The innermost frame of user space alone: for a fault inside a system call that is who made the call. */
        .exclude_callchain_kernel = 1,
        .sample_max_stack = 1,
        .wakeup_events = signal,
        .exclude_hv = 1,
        .disabled = 1,
    };
    int fd = (int)syscall(SYS_perf_event_open, &a, 0, -1, -1, PERF_FLAG_FD_CLOEXEC);
    if (fd < 0 && (errno == EACCES || errno == EPERM)) {
        a.exclude_kernel = 1; /* kernel.perf_event_paranoid of 2 */
        fd = (int)syscall(SYS_perf_event_open, &a, 0, -1, -1, PERF_FLAG_FD_CLOEXEC);
    }
    return fd < 0 ? -errno : fd;
}

static int send_signal(int fd, int signal) {
    struct f_owner_ex me = {F_OWNER_TID, (pid_t)syscall(SYS_gettid)};
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETSIG, signal) || fcntl(fd, F_SETOWN_EX, &me) || fcntl(fd, F_SETFL, flags | O_ASYNC))
        return -errno;
    return 0;
}

int fault_watch_open(int signal, struct fault_watch **out) {
    pthread_once(&once, first_time);
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    struct fault_watch *w = malloc(sizeof *w);
    if (!w) return -ENOMEM;
    /* Under the lock, so that no fork's child has the descriptor and not the way to close it. */
    pthread_mutex_lock(&all_lock);
    int rc = open_event(signal != 0);
    if (rc < 0) goto failed;
    *w = (struct fault_watch){.fd = rc, .room = page};
    if (signal && (rc = send_signal(w->fd, signal))) goto close;
    void *at = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, w->fd, 0);
    if (at == MAP_FAILED) {
        rc = -errno;
        goto close;
    }
    w->meta = at;
    w->notes = (const char *)at + page;
    (void)*(const volatile char *)w->notes; /* where MAP_POPULATE leaves such mappings out */
    w->next = all;
    all = w;
    pthread_mutex_unlock(&all_lock);
    *out = w;
    return 0;

close:
    close(w->fd);
failed:
    pthread_mutex_unlock(&all_lock);
    free(w);
    return rc;
}

void fault_watch_close(struct fault_watch *w) {
    if (!w) return;
    pthread_mutex_lock(&all_lock);
    for (struct fault_watch **at = &all; *at; at = &(*at)->next)
        if (*at == w) {
            *at = w->next;
            break;
        }
    /* Again: the kernel may have lacked memory for a moment only. */
    if (w->meta && munmap(w->meta, 2 * w->room) < 0) (void)munmap(w->meta, 2 * w->room);
    if (w->fd >= 0) close(w->fd);
    pthread_mutex_unlock(&all_lock);
    free(w);
}

bool fault_watch_orphan(const struct fault_watch *w) { return !w->meta; }

uint64_t fault_watch_position(const struct fault_watch *w) {
    return w->meta ? __atomic_load_n(&w->meta->data_head, __ATOMIC_ACQUIRE) : 0;
}

void fault_watch_disarm(struct fault_watch *w) {
    if (w->meta) ioctl(w->fd, PERF_EVENT_IOC_DISABLE, 0);
}

static uint64_t word(const struct fault_watch *w, uint64_t at) {
    /* Notes are of whole words, and so is the room: none is torn. */
    return *(const uint64_t *)(w->notes + (at & (w->room - 1)));
}

size_t fault_watch_read(const struct fault_watch *w, uint64_t from, uint64_t to, struct fault_record *out, size_t n) {
    size_t found = 0;
    while (w->meta && from < to && found < n) {
        union {
            uint64_t word;
            struct perf_event_header header;
        } u = {word(w, from)};
        if (u.header.size == 0) break;
        if (u.header.type == PERF_RECORD_SAMPLE) {
            struct fault_record *r = &out[found++];
            *r = (struct fault_record){.address = word(w, from + 16), .instruction = word(w, from + 8)};
            bool kernel = (u.header.misc & PERF_RECORD_MISC_CPUMODE_MASK) != PERF_RECORD_MISC_USER;
            uint64_t calls = word(w, from + 24);
            for (uint64_t i = 0; kernel && i + 1 < calls; i++)
                if (word(w, from + 32 + 8 * i) == (uint64_t)PERF_CONTEXT_USER)
                    r->instruction = word(w, from + 40 + 8 * i);
        }
        from += u.header.size;
    }
    return found;
}

void fault_watch_arm(struct fault_watch *w) {
    if (!w->meta) return;
    uint64_t at = fault_watch_position(w);
    struct fault_record unused[FAULT_WATCH_RECORDS];
    if (at != w->seen) w->left -= (int)fault_watch_read(w, w->seen, at, unused, FAULT_WATCH_RECORDS);
    __atomic_store_n(&w->meta->data_tail, at, __ATOMIC_RELEASE);
    w->seen = at;
    /* No system call in a thread that does not fault. */
    if (w->left > FAULT_WATCH_RECORDS / 2) return;
    int more = FAULT_WATCH_RECORDS - (w->left > 0 ? w->left : 0);
    if (ioctl(w->fd, PERF_EVENT_IOC_REFRESH, more) == 0) w->left = FAULT_WATCH_RECORDS;
}
