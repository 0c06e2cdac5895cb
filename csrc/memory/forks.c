#include "memory/forks.h"

#include <pthread.h>

#include "sys/list.h"
#include "sys/mutex.h"

uint32_t forks_count;

static struct mutex list_lock;
static struct fork_watch *list;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void before(void) {
    mutex_lock(&list_lock);
    mutex_check_fork(true);
    for (struct fork_watch *w = list; w; w = w->next) w->before(w->self);
}

static void parent(void) {
    for (struct fork_watch *w = list; w; w = w->next) w->parent(w->self);
    mutex_check_fork(false);
    mutex_check_lock(&list_lock);
    mutex_unlock(&list_lock);
}

static void child(void) {
    mutex_tid = 0; /* the child's thread has another id */
    mutex_check_fork(false);
    mutex_reset(&list_lock);
    __atomic_fetch_add(&forks_count, 1, __ATOMIC_RELAXED);
    for (struct fork_watch *w = list, *next; w; w = next) {
        next = w->next; /* what was in the middle of its end, ends */
        w->child(w->self);
    }
}

static void install(void) { (void)pthread_atfork(before, parent, child); }

void forks_hold(void) {
    pthread_once(&once, install);
    mutex_lock(&list_lock);
}

void forks_let_go(void) { mutex_unlock(&list_lock); }

void forks_watch(struct fork_watch *w) { LIST_PUSH(list, w); }
void forks_forget(struct fork_watch *w) { LIST_REMOVE(list, w); }
const struct fork_watch *forks_first(void) { return list; }
