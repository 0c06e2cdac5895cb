#define _GNU_SOURCE
#include "sys/thread.h"

#include <dlfcn.h>
#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "sys/mutex.h"
#include "sys/page.h"

uint64_t os_now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void os_sleep_us(unsigned us) {
    mutex_check_none();
    struct timespec t = {.tv_sec = us / 1000000, .tv_nsec = (long)(us % 1000000) * 1000};
    nanosleep(&t, NULL);
}

unsigned os_cpus(void) {
    mutex_check_none();
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return (unsigned)CPU_COUNT(&set);
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (unsigned)n : 1;
}

int os_pid(void) {
    mutex_check_none();
    return (int)getpid();
}

bool os_is_main_thread(void) {
    mutex_check_none();
    return syscall(SYS_gettid) == getpid();
}

unsigned os_threads(void) {
    mutex_check_none();
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
    mutex_check_none();
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
    mutex_check_none();
    struct timespec t = {.tv_sec = (time_t)(timeout_ns / 1000000000u), .tv_nsec = (long)(timeout_ns % 1000000000u)};
    if (syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, &t, NULL, 0) < 0 && errno == ENOSYS) os_sleep_us(1000);
}

void os_wake_all(const uint32_t *word) {
    mutex_check_none();
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 0x7fffffff, NULL, NULL, 0);
}
