/* fault_watch.h: a software perf event of the calling thread, which notes the address of each page fault.
 *
 * The kernel writes the notes to a ring buffer that is mapped, present and never pageable, so that to note a fault causes
 * none. After FAULT_WATCH_RECORDS of them it disarms itself: a thread that faults on elsewhere pays for no more. */
#ifndef ARENA_FAULT_WATCH_H
#define ARENA_FAULT_WATCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FAULT_WATCH_RECORDS 64

struct fault_watch;

struct fault_record {
    uint64_t address;
    uint64_t instruction; /* in user space, for a fault inside a system call the one after it; else the kernel's */
};

/* signal: sent to this thread after each fault, before the instruction goes on; 0: none. -errno of perf_event_open(2),
 * -EPERM also where the memory for the buffer may not be locked. */
int fault_watch_open(int signal, struct fault_watch **out);
/* By any thread. */
void fault_watch_close(struct fault_watch *watch);

/* Makes room for, and arms the event to note, at least half as many as fit. What was noted before is lost. */
void fault_watch_arm(struct fault_watch *watch);
void fault_watch_disarm(struct fault_watch *watch);
/* Is this a fork's child, and the event its parent's? */
bool fault_watch_orphan(const struct fault_watch *watch);

/* Where the next note will be; and those between two such places, how many. */
uint64_t fault_watch_position(const struct fault_watch *watch);
size_t fault_watch_read(const struct fault_watch *watch, uint64_t from, uint64_t to, struct fault_record *out,
                        size_t n);

#endif
