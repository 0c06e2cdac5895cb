#include "memory/registry.h"

#include <pthread.h>

#include "sys/list.h"
#include "sys/mutex.h"

uint32_t fork_generation;

static struct mutex list_lock;
static struct registry_entry *list;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void before(void) {
    mutex_lock(&list_lock);
    mutex_check_fork(true);
    for (struct registry_entry *e = list; e; e = e->next) e->before(e->self);
}

static void parent(void) {
    for (struct registry_entry *e = list; e; e = e->next) e->parent(e->self);
    mutex_check_fork(false);
    mutex_check_lock(&list_lock);
    mutex_unlock(&list_lock);
}

static void child(void) {
    mutex_tid = 0; /* the child's thread has another id */
    mutex_check_fork(false);
    mutex_reset(&list_lock);
    __atomic_fetch_add(&fork_generation, 1, __ATOMIC_RELAXED);
    for (struct registry_entry *e = list, *next; e; e = next) {
        next = e->next; /* what was in the middle of its end, ends */
        e->child(e->self);
    }
}

static void install(void) { (void)pthread_atfork(before, parent, child); }

void registry_lock(void) {
    pthread_once(&once, install);
    mutex_lock(&list_lock);
}

void registry_unlock(void) { mutex_unlock(&list_lock); }

void registry_add(struct registry_entry *e) { LIST_PUSH(list, e); }
void registry_remove(struct registry_entry *e) { LIST_REMOVE(list, e); }
const struct registry_entry *registry_first(void) { return list; }
