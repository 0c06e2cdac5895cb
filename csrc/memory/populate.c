#include "memory/populate.h"

#include <errno.h>

#include "sys/fault_in.h"
#include "sys/residency.h"
#include "sys/thread.h"

#define PROGRESS_NS 10000000u       /* how often the caller is asked whether to go on */
#define NEIGHBOURS_NS 50000000u /* how often the process is looked at for other threads */
#define BREATH_WORK 8u          /* units of work for one of sleep */
#define BREATH_US 1u            /* asked for; the timer makes it ~60 µs, which is what counts */
#define THREAD_WORTH ((uint64_t)64 << 20)
#define THREADS_MAX 16u
#define PREPARE_STEP ((uint64_t)8 << 20) /* for one call of fallocate, which has more to do than its blocks */
#define CALIBRATE 3u /* huge pages of each kind */

/* Tail first or whole: found out once for the process. The only state of this file besides the helpers' count; racing
 * threads write the same kind of answer. */
static struct {
    struct trial {
        uint32_t next;    /* atomic: which huge page of the calibration comes next */
        uint64_t best[2]; /* atomic: the shortest time for a huge page, [0] whole [1] tail first */
    } trial[2];           /* [0] by populate calls [1] by touches */
    uint32_t helpers;     /* atomic: threads of ours that run now */
    uint32_t forks;       /* atomic: the forks this process is the child of, when `helpers` was last known */
} shared = {.trial = {{.best = {UINT64_MAX, UINT64_MAX}}, {.best = {UINT64_MAX, UINT64_MAX}}}};

struct work {
    struct populate *plan;
    char *base;
    uint64_t bytes;
    uint64_t step;
    uint64_t next;  /* atomic: the offset of the next piece */
    uint64_t done;  /* atomic */
    int32_t failed; /* atomic: the first -errno, which stops everybody */
    uint32_t forks; /* those this process was the child of when it began */
    unsigned helpers, counted; /* that run; that are in shared.helpers */
    pthread_t helper[THREADS_MAX];
};

/* A thread at work. */
struct worker {
    struct work *work;
    bool helps;
    uint64_t asked; /* the caller: when `progress` was last called */
    struct backoff {
        uint64_t worked, sleep_ns, looked;
        bool neighbours;
    } backoff;
};

static void yield_mmap_lock(struct backoff *b, uint64_t now, uint64_t spent) {
    b->worked += spent;
    if (b->worked < BREATH_WORK * b->sleep_ns) return;
    /* Only now: to look is a system call, and a commit of a page has but one. */
    if (b->looked == 0 || now - b->looked > NEIGHBOURS_NS) {
        b->looked = now;
        b->neighbours = os_threads() > 1 + __atomic_load_n(&shared.helpers, __ATOMIC_RELAXED);
    }
    if (!b->neighbours) {
        b->worked = 0;
        return;
    }
    os_sleep_us(BREATH_US);
    uint64_t slept = os_now_ns() - now;
    /* A sleep that was long because the CPU was busy elsewhere must not make the next one rare. */
    b->sleep_ns = slept < 100000 ? slept : 100000;
    b->worked = 0;
}

/* What the kernel cannot be asked for is faulted in by hand. */
int populate_at_once(const struct os_features *f, void *at, size_t bytes, bool write, bool touchable) {
    if (f->populate) return os_populate(at, bytes, write);
    if (!touchable) return os_touch_carefully(at, bytes, OS_PAGE, write);
    os_touch(at, bytes, OS_PAGE, write);
    return 0;
}

static int tail_first(const struct populate *p, char *at, uint64_t n, bool touch) {
    if (touch) os_touch(at, n, p->page, true);
    int rc = 0;
    for (uint64_t end = p->page; rc == 0 && !touch && end <= n; end += p->page)
        rc = os_populate(at + end - OS_PAGE, OS_PAGE, p->write);
    return rc;
}

/* Is this piece to be populated tail first? *trial: the calibration that it is part of, or NULL. */
static bool choose(const struct populate *p, uint64_t n, bool touch, struct trial **trial) {
    struct trial *t = &shared.trial[touch];
    *trial = NULL;
    if (!p->features->populate) return touch;
    uint32_t turn = __atomic_load_n(&t->next, __ATOMIC_RELAXED);
    if (turn >= 2 * CALIBRATE) {
        /* In the favour of the tail: as a touch it also leaves the mmap_lock alone. */
        uint64_t whole = __atomic_load_n(&t->best[0], __ATOMIC_RELAXED);
        uint64_t first = __atomic_load_n(&t->best[1], __ATOMIC_RELAXED);
        return first == UINT64_MAX || whole == UINT64_MAX || first <= whole + whole / 20;
    }
    turn = __atomic_fetch_add(&t->next, 1, __ATOMIC_RELAXED);
    if (turn >= 2 * CALIBRATE || n != OS_HUGE || p->page != OS_HUGE) return true;
    *trial = t;
    return turn & 1;
}

static int one_step(struct populate *p, char *at, uint64_t n, struct backoff *b) {
    int rc = 0;
    bool touch = p->touch && !preflight_oom_killer_off();
    /* A page of 1 GiB is cleared forward as it is, and for a small one a call costs more than it saves. */
    bool tail = p->page > OS_PAGE && (touch || (p->page == OS_HUGE && (p->write || !p->touchable)));
    struct trial *trial = NULL;
    if (tail) tail = choose(p, n, touch, &trial);
    uint64_t start = os_now_ns();
    if (tail) rc = tail_first(p, at, n, touch);
    uint64_t touched = os_now_ns();
    if (rc == 0) rc = populate_at_once(p->features, at, n, p->write, p->touchable);
    uint64_t end = os_now_ns();
    if (trial) {
        uint64_t *best = &trial->best[tail], old = __atomic_load_n(best, __ATOMIC_RELAXED);
        while (end - start < old &&
               !__atomic_compare_exchange_n(best, &old, end - start, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
        }
    }
    /* Only the populate call keeps others from the mmap_lock. */
    if (rc == 0 && p->features->populate) yield_mmap_lock(b, end, end - (touch ? touched : start));
    return rc;
}

static void fail(struct work *w, int rc) {
    int32_t none = 0;
    __atomic_compare_exchange_n(&w->failed, &none, rc, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}

static uint64_t step_of(const struct populate *p) { return p->page > POPULATE_STEP ? p->page : POPULATE_STEP; }

/* Whether to go on: what a helper finds, and what the program says. */
static int ask(void *arg) {
    struct worker *self = arg;
    struct work *w = self->work;
    const struct populate *p = w->plan;
    int rc = __atomic_load_n(&w->failed, __ATOMIC_RELAXED);
    if (rc || self->helps || !p->progress) return rc;
    rc = p->progress(p->progress_arg, p->done + __atomic_load_n(&w->done, __ATOMIC_RELAXED), p->total);
    bool forked = __atomic_load_n(p->fork_generation, __ATOMIC_RELAXED) != w->forks;
    if (forked && w->helpers && rc == 0) rc = -EINTR; /* their pieces were left half-done in the parent */
    self->asked = os_now_ns();
    return rc;
}

static int begin_step(struct worker *self, uint64_t bytes, struct preflight_grant *grant) {
    struct populate *p = self->work->plan;
    if (!p->costs) return 0;
    int rc = preflight_begin(p->preflight, bytes * p->costs, ask, self, grant);
    bool refused = rc == -ENOMEM || rc == -EMFILE || rc == -ENFILE;
    if (refused && !__atomic_exchange_n(&p->refused, true, __ATOMIC_RELAXED)) p->report = grant->seen;
    return rc;
}

static void end_step(struct populate *p, uint64_t bytes, struct preflight_grant *grant) {
    if (!p->costs) return;
    preflight_end(grant);
    uint64_t promised = __atomic_load_n(&p->promised, __ATOMIC_RELAXED), kept;
    if (promised == 0) return;
    do {
        kept = promised < bytes * p->costs ? promised : bytes * p->costs;
    } while (!__atomic_compare_exchange_n(&p->promised, &promised, promised - kept, true, __ATOMIC_RELAXED,
                                          __ATOMIC_RELAXED));
    if (kept) preflight_keep_promise(kept);
}

/* To prepare a piece is to allocate all of it. */
static int one_prepared_piece(struct worker *self, char *at, uint64_t n) {
    struct work *w = self->work;
    struct populate *p = w->plan;
    struct preflight_grant grant;
    uint64_t step = step_of(p), part;
    int rc = begin_step(self, n, &grant);
    if (rc) return rc;
    rc = prepare_piece(p->preparation, at, n);
    for (uint64_t done = 0; rc == 0 && done < n; done += part) {
        if (done && (rc = __atomic_load_n(&w->failed, __ATOMIC_RELAXED)) != 0) break;
        part = n - done < step ? n - done : step;
        rc = one_step(p, at + done, part, &self->backoff);
    }
    end_step(p, n, &grant);
    return rc;
}

static int one_piece(struct worker *self, char *at, uint64_t n) {
    struct populate *p = self->work->plan;
    struct preflight_grant grant;
    if (p->preparation) return one_prepared_piece(self, at, n);
    int rc = begin_step(self, n, &grant);
    if (rc) return rc;
    rc = one_step(p, at, n, &self->backoff);
    end_step(p, n, &grant);
    return rc;
}

/* false: nothing is left, or something failed. */
static bool claim_piece(struct worker *self) {
    struct work *w = self->work;
    if (__atomic_load_n(&w->failed, __ATOMIC_RELAXED)) return false;
    uint64_t at = __atomic_fetch_add(&w->next, w->step, __ATOMIC_RELAXED);
    if (at >= w->bytes) return false;
    uint64_t n = w->bytes - at < w->step ? w->bytes - at : w->step;
    int rc = one_piece(self, w->base + at, n);
    if (rc)
        fail(w, rc);
    else
        __atomic_fetch_add(&w->done, n, __ATOMIC_RELAXED);
    return rc == 0;
}

static void *help(void *arg) {
    struct worker self = {.work = arg, .helps = true, .backoff = {.sleep_ns = 60000}};
    while (claim_piece(&self)) {
    }
    return NULL;
}

static unsigned threads_for(const struct populate *p, uint64_t bytes) {
    uint64_t n = p->threads;
    if (n == 0) {
        n = bytes / THREAD_WORTH;
        if (n > 1 && n > os_cpus()) n = os_cpus();
    }
    if (n > THREADS_MAX) n = THREADS_MAX;
    if (n > bytes / POPULATE_STEP) n = bytes / POPULATE_STEP;
    return n ? (unsigned)n : 1;
}

/* May huge pages be touched first, and is there anybody whom that helps? */
static bool may_touch(const struct populate *p, const char *base, uint64_t bytes) {
    struct os_residency there;
    if (!p->touchable || !p->fresh || !p->write || p->page == OS_PAGE) return false;
    if (!p->features->populate) return true;
    if (os_threads() <= 1 + __atomic_load_n(&shared.helpers, __ATOMIC_RELAXED)) return false;
    /* UFFDIO_POISON's marks are entries in the page table that look like swap. */
    return os_residency(p->features, base, bytes, &there) == 0 && there.swapped == 0;
}

static void call_helpers(struct work *w) {
    unsigned want = threads_for(w->plan, w->bytes) - 1;
    /* The helpers of a parent stayed with it. */
    if (__atomic_exchange_n(&shared.forks, w->forks, __ATOMIC_RELAXED) != w->forks)
        __atomic_store_n(&shared.helpers, 0, __ATOMIC_RELAXED);
    /* Counted first, so that none of the helpers is taken for somebody else's thread. */
    __atomic_fetch_add(&shared.helpers, want, __ATOMIC_RELAXED);
    w->counted = want;
    while (w->helpers < want && os_thread(&w->helper[w->helpers], help, w) == 0) w->helpers++; /* fewer are fine */
}

/* Also when the caller's thread is ended in `progress`, before its stack goes. */
static void dismiss_helpers(void *arg) {
    struct work *w = arg;
    if (__atomic_load_n(w->plan->fork_generation, __ATOMIC_RELAXED) != w->forks) return; /* they are not here */
    /* While a piece is left nobody has come to the end: the caller's thread is being ended. */
    if (__atomic_load_n(&w->next, __ATOMIC_RELAXED) < w->bytes) fail(w, -EINTR);
    /* A step is short, so this waits for milliseconds; the helpers never wait for the GIL or a lock. */
    for (unsigned i = 0; i < w->helpers; i++) pthread_join(w->helper[i], NULL);
    __atomic_fetch_sub(&shared.helpers, w->counted, __ATOMIC_RELAXED);
}

static void do_own_part(struct work *w) {
    struct worker self = {.work = w, .asked = os_now_ns(), .backoff = {.sleep_ns = 60000}};
    while (claim_piece(&self)) {
        int rc = w->plan->progress && os_now_ns() - self.asked >= PROGRESS_NS ? ask(&self) : 0;
        if (rc) fail(w, rc);
    }
}

int populate_range(struct populate *p, char *base, uint64_t bytes) {
    p->touch = may_touch(p, base, bytes);
    struct work w = {.plan = p,
                     .base = base,
                     .bytes = bytes,
                     .step = step_of(p),
                     .forks = __atomic_load_n(p->fork_generation, __ATOMIC_RELAXED)};
    if (p->preparation && w.step < PREPARE_STEP) w.step = PREPARE_STEP;
    call_helpers(&w);
    pthread_cleanup_push(dismiss_helpers, &w);
    do_own_part(&w);
    pthread_cleanup_pop(1);
    p->done += __atomic_load_n(&w.done, __ATOMIC_RELAXED);
    return w.failed;
}
