/* held.h: system calls on small files of /proc and /sys that are held open and read again and again: so they can be
 * read when no more descriptors are to be had, and cost a tenth of opening them.
 *
 * A program may close descriptors that it knows nothing of (closefrom, a daemon's start), and their numbers then become
 * other files. So before each use the descriptor is compared with the file that was opened, and one that is not ours any
 * more is left alone and opened anew. */
#ifndef ARENA_HELD_H
#define ARENA_HELD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct os_held {
    int fd; /* -1: not open */
    uint64_t device, inode;
};
#define OS_HELD_NONE ((struct os_held){.fd = -1})

/* Opens it unless it is open. -ENOENT, -EACCES, -EMFILE, … as open(2). */
int os_held_open(struct os_held *h, const char *path, bool folder);
/* Reads it from its beginning, and opens it first (again) where that is needed. The length, NUL-terminated, at most
 * size - 1; or -errno. */
int os_held_read(struct os_held *h, const char *path, char *buf, size_t size);
/* Closes it, if it is still ours. Async-signal-safe. */
void os_held_close(struct os_held *h);
/* flock(2), exclusive, without waiting. -EWOULDBLOCK: another process has it. -EBADF: it is not open. */
int os_held_lock(struct os_held *h);
void os_held_unlock(struct os_held *h);

#endif
