#define _GNU_SOURCE
#include "realtime/page_faults.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/resource.h>

#include "realtime/prefault.h"

struct span {
    uint64_t owner, tag;
    int64_t minor, major; /* of the thread, when it was opened */
    uint64_t from;
    bool watched;
};

struct thread {
    struct span *spans;
    size_t n, room;
    size_t watching; /* spans */
    struct fault_watch *watch;
    int unwatched; /* an errno: there is no watch, and no use in asking again */
};

static _Thread_local struct thread self;
static pthread_key_t at_end;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int no_key;
/* In this process; else the end of a block would fault where it is run for the first time. */
static bool code_is_there; /* atomic */

static void end_of_thread(void *arg) {
    struct thread *t = arg;
    fault_watch_close(t->watch);
    free(t->spans);
    *t = (struct thread){0};
}

/* In the child of a fork the counters begin at 0, and the watch is the parent's: the next span opens another. */
static void in_child(void) {
    struct thread *t = &self;
    for (size_t i = 0; i < t->n; i++) {
        t->spans[i].minor = t->spans[i].major = 0;
        t->spans[i].watched = false;
    }
    t->watching = 0;
    code_is_there = false;
}

static void first_time(void) {
    no_key = pthread_key_create(&at_end, end_of_thread);
    pthread_atfork(NULL, NULL, in_child);
}

uint64_t page_faults_owner(void) {
    static uint64_t last;
    return __atomic_add_fetch(&last, 1, __ATOMIC_RELAXED);
}

static int more_room(struct thread *t) {
    pthread_once(&once, first_time);
    if (no_key || pthread_setspecific(at_end, t)) return -ENOMEM;
    size_t room = t->room ? 2 * t->room : 16;
    struct span *spans = realloc(t->spans, room * sizeof *spans);
    if (!spans) return -ENOMEM;
    t->spans = spans;
    t->room = room;
    return 0;
}

static void start_watch(struct thread *t) {
    if (t->watch && fault_watch_orphan(t->watch)) {
        fault_watch_close(t->watch);
        t->watch = NULL;
    }
    if (!t->watch && !t->unwatched) t->unwatched = -fault_watch_open(0, &t->watch);
    /* Notes that an outer span may ask for stay. */
    if (t->watch && t->watching == 0) fault_watch_arm(t->watch);
}

static void counters(int64_t *minor, int64_t *major) {
    struct rusage usage;
    getrusage(RUSAGE_THREAD, &usage);
    *minor = usage.ru_minflt;
    *major = usage.ru_majflt;
}

int page_faults_ready(void) {
    if (!__atomic_load_n(&code_is_there, __ATOMIC_RELAXED)) {
        prefault_code();
        __atomic_store_n(&code_is_there, true, __ATOMIC_RELAXED);
    }
    return self.n == self.room ? more_room(&self) : 0;
}

int page_faults_open(uint64_t owner, bool watch, uint64_t tag) {
    struct thread *t = &self;
    if (page_faults_ready()) return -ENOMEM;
    if (watch) start_watch(t);
    struct span *s = &t->spans[t->n];
    *s = (struct span){.owner = owner, .tag = tag, .watched = watch && t->watch};
    if (s->watched) {
        t->watching++;
        s->from = fault_watch_position(t->watch);
    }
    t->n++;
    counters(&s->minor, &s->major); /* last */
    return 0;
}

static struct span *find(struct thread *t, uint64_t owner) {
    for (size_t i = t->n; i > 0; i--)
        if (t->spans[i - 1].owner == owner) return &t->spans[i - 1];
    return NULL;
}

static struct span *measure(struct thread *t, uint64_t owner, struct page_faults *out) {
    int64_t minor, major;
    counters(&minor, &major); /* first */
    struct span *s = find(t, owner);
    if (!s) return NULL;
    *out = (struct page_faults){.minor = minor - s->minor, .major = major - s->major, .tag = s->tag};
    if (s->watched) {
        out->from = s->from;
        out->to = fault_watch_position(t->watch);
    } else {
        out->unwatched = t->unwatched;
    }
    return s;
}

int page_faults_so_far(uint64_t owner, struct page_faults *out) { return measure(&self, owner, out) ? 0 : -ESRCH; }

int page_faults_close(uint64_t owner, struct page_faults *out) {
    struct thread *t = &self;
    struct span *s = measure(t, owner, out);
    if (!s) return -ESRCH;
    t->watching -= s->watched;
    for (t->n--; s < &t->spans[t->n]; s++) *s = s[1];
    return 0;
}

size_t page_faults_where(const struct page_faults *span, struct fault_record *out, size_t n) {
    struct thread *t = &self;
    return t->watch ? fault_watch_read(t->watch, span->from, span->to, out, n) : 0;
}
