/* thread.h: threads, the time, and waiting. */
#ifndef ARENA_THREAD_H
#define ARENA_THREAD_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

/* Monotonic, and no system call: the kernel maps the clock into the process. */
uint64_t os_now_ns(void);
void os_sleep_us(unsigned us);
/* Sleeps while *word is `value`, at most this long; spurious returns are allowed. */
void os_wait(const uint32_t *word, uint32_t value, uint64_t timeout_ns);
void os_wake_all(const uint32_t *word);

unsigned os_cpus(void);
/* The id of this process, as /proc and cgroup.procs show it. */
int os_pid(void);
/* The thread that the process began with: in most programs the only one whose waiting a signal handler can end. */
bool os_is_main_thread(void);
/* Threads of this process (1 when it cannot be told). */
unsigned os_threads(void);
/* A thread with a small stack (128 KiB, and what libc needs for itself) and every signal blocked: under MCL_FUTURE a default
 * stack is 2,048 faults. */
int os_thread(pthread_t *out, void *(*run)(void *), void *arg);

#endif
