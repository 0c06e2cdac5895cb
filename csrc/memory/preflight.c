#define _GNU_SOURCE
#include "memory/preflight.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "sys/thread.h"

#define GOOD_FOR_NS 100000000u    /* neighbours move: what was seen 0.1 s ago is not believed */
#define SHARE 64                  /* of what is left is given out without another look */
#define NEAR ((uint64_t)16 << 20) /* and so many steps: then nothing is given out unseen */
#define NEAR_STEPS 32u
#define ONE_STEP ((uint64_t)2 << 20)
#define SLACK ((uint64_t)1 << 20) /* the kernel's own per-CPU charges come on top */
#define TABLES 128u               /* for so many bytes one of page tables and of a file's index, and some to spare */
#define HEADROOM ((uint64_t)16 << 20) /* by default: what a traceback, an import and a log line take */
#define HEADROOM_THREAD ((uint64_t)256 << 10)
#define HEADROOM_GROWTH \
    ((uint64_t)64 << 20) /* no more for what others take: who has just loaded gigabytes may be done */
#define ASK_NS 10000000u
#define POLL_US 200u
#define LOCK_WAIT_NS 2000000000u     /* for another process that holds the lock, and has stopped perhaps */
#define UNLOCKED_NS 10000000000u     /* then for so long nobody waits for it again */
#define TURN_WAIT_NS 10000000000u
#define IN_FLIGHT_WAIT_NS 1000000000u
#define POLITE_NS 1000000000u
#define GROWTH_NS 1000000000u
#define NODES 64
#define NOTHING INT64_MIN

/* What may be given out without a look: what is left, down to `floor`. */
struct account {
    int64_t left, floor; /* atomic */
    uint64_t good_for;   /* atomic: until this time (ns) */
    uint64_t keep;       /* atomic: the default headroom, with slack */
};

static struct {
    struct account account[1 + NODES]; /* [0] memory of any node */
    uint32_t used;                     /* atomic: accounts beyond the first that were ever used */
    uint64_t in_flight, promised;      /* atomic */
    uint64_t granted;                  /* atomic: in all */
    uint32_t turn;                     /* atomic: 1: some thread has it */
    uint64_t unlocked_until, polite_until; /* atomic: see above; others wait for the lock */
    bool oom_killer_off;               /* atomic */
    bool ready;                        /* atomic: the files of the limits are open */
} state = {.account = {{.left = NOTHING}}};
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* What others take, this program's own next steps among them: what was available fell by more than was granted here. It is
 * measured from look to look, under the gate. */
static struct {
    uint64_t at, available, granted, in_flight; /* as the last look had it; at: 0, none */
    uint64_t growth; /* atomic: bytes in the last second or so */
} others;

/* Threads that had something in flight, or the turn, are not in the child of a fork. */
static void child(void) {
    for (int i = 0; i <= NODES; i++) state.account[i].left = NOTHING;
    state.in_flight = state.promised = 0;
    state.turn = 0;
    state.ready = false;
    others.at = others.growth = 0;
}

static void install(void) {
    for (int i = 0; i <= NODES; i++) state.account[i].left = NOTHING;
    (void)pthread_atfork(NULL, NULL, child);
}

static uint64_t load(const uint64_t *at) { return __atomic_load_n(at, __ATOMIC_SEQ_CST); }
static void store(uint64_t *at, uint64_t value) { __atomic_store_n(at, value, __ATOMIC_SEQ_CST); }
static uint64_t less(uint64_t a, uint64_t b) { return a > b ? a - b : 0; }
static uint64_t with_tables(uint64_t bytes) {
    return bytes > UINT64_MAX - bytes / TABLES ? UINT64_MAX : bytes + bytes / TABLES;
}

/* To be granted now, or not: then it is taken back. */
static void grant(uint64_t bytes) {
    (void)__atomic_add_fetch(&state.granted, bytes, __ATOMIC_SEQ_CST);
    (void)__atomic_add_fetch(&state.in_flight, bytes, __ATOMIC_SEQ_CST);
}

/* Not below 0: in the child of a fork that was made in a progress call the account began anew. */
static void take_off(uint64_t *at, uint64_t bytes) {
    uint64_t had = load(at);
    while (!__atomic_compare_exchange_n(at, &had, less(had, bytes), true, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
    }
}

static struct account *account_of(const struct preflight *p) {
    if (p->node < 0) return &state.account[0];
    __atomic_store_n(&state.used, NODES, __ATOMIC_RELAXED);
    return &state.account[1 + p->node % NODES]; /* the 65th shares the first's, which is only careful */
}

/* What is to be left by this reservation. */
static uint64_t keep_of(const struct preflight *p, uint64_t by_default) {
    if (p->by_default) return by_default;
    return p->headroom < UINT64_MAX - SLACK ? p->headroom + SLACK : UINT64_MAX;
}

static uint64_t default_keep(uint64_t limit) {
    uint64_t growth = load(&others.growth);
    uint64_t bytes = HEADROOM + HEADROOM_THREAD * os_threads() + (growth < HEADROOM_GROWTH ? growth : HEADROOM_GROWTH);
    return SLACK + (bytes < limit / 8 ? bytes : limit / 8);
}

/* --- looking ------------------------------------------------------------------------------------------------------ */

/* Under the gate. The bytes of a second count whole, and those before it for half of that each second. */
static void measure_others(uint64_t available, uint64_t in_flight, uint64_t granted) {
    uint64_t now = os_now_ns(), ns = now - others.at, growth = load(&others.growth);
    /* What was to be granted then, and was not, may have been taken back. */
    uint64_t ours = less(granted + others.in_flight, others.granted);
    uint64_t taken = available == UINT64_MAX ? 0 : less(less(others.available, available), ours);
    if (others.at == 0)
        growth = 0;
    else if (ns > GROWTH_NS)
        growth = (uint64_t)((double)taken * GROWTH_NS / (double)ns);
    else
        growth = growth - (uint64_t)((double)growth / 2 * (double)ns / GROWTH_NS) + taken;
    store(&others.growth, growth);
    others.at = now;
    others.available = available;
    others.granted = granted;
    others.in_flight = in_flight;
}

/* Under the gate (machine_enter): from now on nothing is granted without a look, so what is in flight is known; *in_flight.
 * That is read before the kernel's figures: what ends in between is counted twice, and never not at all. */
static int look(const struct preflight *p, uint64_t near, struct machine_look *seen, uint64_t *in_flight) {
    for (uint32_t i = 0; i <= __atomic_load_n(&state.used, __ATOMIC_RELAXED); i++)
        (void)__atomic_exchange_n(&state.account[i].left, NOTHING, __ATOMIC_SEQ_CST);
    uint64_t granted = load(&state.granted);
    *in_flight = load(&state.in_flight);
    int rc = machine_look(p->node, near, seen);
    if (rc) return rc;
    __atomic_store_n(&state.oom_killer_off, seen->oom_killer_off, __ATOMIC_RELAXED);
    if (p->node < 0) measure_others(seen->available, *in_flight, granted);
    return 0;
}

static void report(struct preflight_report *out, const struct machine_look *seen, uint64_t keep) {
    out->available = seen->available == UINT64_MAX ? UINT64_MAX : less(seen->available, keep);
    memcpy(out->where, seen->where, sizeof out->where);
}

/* `granted`: of what was seen, to somebody. */
static void open_account(struct account *a, const struct machine_look *seen, uint64_t taken, uint64_t keep) {
    uint64_t left = less(seen->available, taken);
    if (left > (uint64_t)1 << 50) left = (uint64_t)1 << 50;
    store(&a->keep, keep);
    store(&a->good_for, os_now_ns() + GOOD_FOR_NS);
    __atomic_store_n(&a->floor, (int64_t)(left - left / SHARE), __ATOMIC_SEQ_CST);
    __atomic_store_n(&a->left, (int64_t)left, __ATOMIC_SEQ_CST);
}

static bool take(struct account *a, const struct preflight *p, uint64_t bytes) {
    if (bytes > INT64_MAX) return false;
    int64_t left = __atomic_load_n(&a->left, __ATOMIC_SEQ_CST), want = (int64_t)bytes;
    do {
        if (left < want || left - want < __atomic_load_n(&a->floor, __ATOMIC_SEQ_CST)) return false;
        if ((uint64_t)(left - want) < keep_of(p, load(&a->keep)) || os_now_ns() >= load(&a->good_for)) return false;
    } while (!__atomic_compare_exchange_n(&a->left, &left, left - want, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
    return true;
}

int preflight_read(const struct preflight *p, struct preflight_report *out) {
    struct machine_look seen;
    machine_enter();
    int rc = machine_look(p->node, 0, &seen);
    machine_leave();
    report(out, &seen, keep_of(p, default_keep(seen.limit)));
    return rc;
}

int preflight_init(struct preflight *p, uint64_t headroom, bool by_default, int node, struct preflight_report *out) {
    *p = (struct preflight){.headroom = headroom, .by_default = by_default, .node = node};
    pthread_once(&once, install);
    if (__atomic_load_n(&state.ready, __ATOMIC_RELAXED) && node < 0) return 0;
    int rc = preflight_read(p, out);
    if (rc == 0) __atomic_store_n(&state.ready, true, __ATOMIC_RELAXED);
    return rc;
}

/* --- a commit as a whole ------------------------------------------------------------------------------------------ */

static bool promise(uint64_t need, uint64_t room, uint64_t keep) {
    /* Added first, so that of two who ask at once not both are promised the same bytes. */
    uint64_t all = __atomic_add_fetch(&state.promised, need, __ATOMIC_SEQ_CST);
    if (all >= need && less(room, keep) >= all) return true;
    take_off(&state.promised, need);
    return false;
}

int preflight_whole(const struct preflight *p, uint64_t bytes, uint64_t *promised, struct preflight_report *out) {
    struct account *a = account_of(p);
    uint64_t need = with_tables(bytes);
    int64_t left = __atomic_load_n(&a->left, __ATOMIC_SEQ_CST);
    *promised = 0;
    /* The step asks for it at once, and whether what was seen is too old. */
    if (bytes <= ONE_STEP && left > 0 && need < (uint64_t)left && (uint64_t)left - need > keep_of(p, load(&a->keep)))
        return 0;
    *promised = bytes;
    if (left > 0 && os_now_ns() < load(&a->good_for) && need < (uint64_t)left / 2 &&
        promise(need, (uint64_t)left, keep_of(p, load(&a->keep))))
        return 0;
    struct machine_look seen;
    uint64_t in_flight;
    machine_enter();
    int rc = look(p, 0, &seen, &in_flight);
    uint64_t usual = default_keep(seen.limit), keep = keep_of(p, usual);
    report(out, &seen, keep);
    if (rc == 0 && seen.available != UINT64_MAX) {
        if (!promise(need, seen.available, keep)) {
            rc = -ENOMEM;
            out->available = less(out->available, load(&state.promised));
        }
        uint64_t room = less(seen.available, in_flight);
        if (room > NEAR) open_account(a, &seen, in_flight, usual);
    } else if (rc == 0) {
        (void)__atomic_add_fetch(&state.promised, need, __ATOMIC_SEQ_CST);
        open_account(a, &seen, 0, usual);
    }
    machine_leave();
    if (rc) *promised = 0;
    return rc;
}

void preflight_keep_promise(uint64_t bytes) { take_off(&state.promised, with_tables(bytes)); }

/* --- a step ------------------------------------------------------------------------------------------------------- */

/* What a look has come to. */
enum verdict { GRANTED, REFUSED, TAKE_TURNS, WAIT };

static enum verdict judge(const struct preflight *p, struct preflight_grant *g, bool alone, int *rc) {
    struct machine_look seen;
    uint64_t in_flight, near = NEAR + NEAR_STEPS * g->bytes, guess = load(&state.in_flight);
    *rc = look(p, near + g->bytes + guess, &seen, &in_flight);
    uint64_t usual = default_keep(seen.limit), keep = keep_of(p, usual), room = less(seen.available, in_flight);
    report(&g->seen, &seen, keep);
    g->seen.available = *rc ? UINT64_MAX : less(g->seen.available, in_flight);
    if (*rc) return REFUSED;
    bool is_near = room < near + g->bytes, enough = less(room, keep) >= g->bytes;
    *rc = -ENOMEM;
    if (less(seen.available, keep) < g->bytes || (!enough && in_flight == 0)) return REFUSED;
    if (is_near && !alone && !g->turn) {
        g->lockable = seen.lockable;
        return TAKE_TURNS;
    }
    if (!enough) return WAIT;
    *rc = 0;
    grant(g->bytes);
    if (!is_near) open_account(account_of(p), &seen, in_flight + g->bytes, usual);
    return GRANTED;
}

static void drop_turn(struct preflight_grant *g) {
    if (g->locked) machine_unlock(g->lockable);
    if (g->turn) {
        __atomic_store_n(&state.turn, 0, __ATOMIC_SEQ_CST);
        os_wake_all(&state.turn);
    }
    g->turn = g->locked = false;
}

struct waiting {
    preflight_ask ask;
    void *arg;
    uint64_t began, asked;
};

/* Without the turn: what is asked may be a program's own code, which may commit, or fork. */
static int wait_a_little(struct waiting *w) {
    if (__atomic_load_n(&state.turn, __ATOMIC_SEQ_CST))
        os_wait(&state.turn, 1, 1000000);
    else
        os_sleep_us(POLL_US);
    uint64_t now = os_now_ns();
    if (!w->ask || now - w->asked < ASK_NS) return 0;
    w->asked = now;
    return w->ask(w->arg);
}

/* 0, with the turn or (*alone) without it. */
static int take_turn(struct preflight_grant *g, struct waiting *w, bool *alone) {
    for (;;) {
        uint64_t now = os_now_ns();
        if (__atomic_exchange_n(&state.turn, 1, __ATOMIC_SEQ_CST) == 0) {
            g->turn = true;
            int rc = now < load(&state.unlocked_until) ? -EBADF : machine_lock(g->lockable);
            g->locked = rc == 0;
            if (rc != -EWOULDBLOCK) return 0;
            store(&state.polite_until, now + POLITE_NS);
            if (now - w->began > LOCK_WAIT_NS) {
                store(&state.unlocked_until, now + UNLOCKED_NS);
                return 0;
            }
            drop_turn(g);
            os_sleep_us(POLL_US);
        } else if (now - w->began > TURN_WAIT_NS) {
            *alone = true;
            return 0;
        }
        int rc = wait_a_little(w);
        if (rc) return rc;
    }
}

int preflight_begin(const struct preflight *p, uint64_t bytes, preflight_ask ask, void *arg,
                    struct preflight_grant *g) {
    *g = (struct preflight_grant){.bytes = with_tables(bytes), .lockable = -1};
    grant(g->bytes);
    if (take(account_of(p), p, g->bytes)) return 0;
    take_off(&state.in_flight, g->bytes);
    (void)__atomic_sub_fetch(&state.granted, g->bytes, __ATOMIC_SEQ_CST);

    uint64_t now = os_now_ns();
    struct waiting w = {.ask = ask, .arg = arg, .began = now, .asked = now};
    bool alone = false;
    for (;;) {
        int rc;
        machine_enter();
        enum verdict verdict = judge(p, g, alone, &rc);
        machine_leave();
        if (verdict == GRANTED) return 0;
        if (verdict == TAKE_TURNS && (rc = take_turn(g, &w, &alone)) == 0) continue;
        drop_turn(g);
        if (verdict != WAIT) return rc;
        rc = os_now_ns() - w.began < IN_FLIGHT_WAIT_NS ? wait_a_little(&w) : -ENOMEM;
        if (rc) return rc;
    }
}

void preflight_end(struct preflight_grant *g) {
    bool turn = g->turn, locked = g->locked;
    take_off(&state.in_flight, g->bytes);
    drop_turn(g);
    /* flock is not fair: whoever takes it again at once keeps the others waiting. */
    if (turn && locked && os_now_ns() < load(&state.polite_until)) os_sleep_us(2 * POLL_US);
}

bool preflight_oom_killer_off(void) { return __atomic_load_n(&state.oom_killer_off, __ATOMIC_RELAXED); }
