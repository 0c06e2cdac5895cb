/* file_lock.h: locks on ranges of a file, against other open file descriptions (fcntl(2), F_OFD_SETLK). */
#ifndef ARENA_FILE_LOCK_H
#define ARENA_FILE_LOCK_H

#include <stdint.h>

/* Never waits. -EBUSY: another description has it. -ENOLCK: there are no such locks in this file system, or a process has the
 * range by the older kind of lock (lockf), which is not ours to wait for. -EAGAIN: it cannot be said, to be tried again. Any
 * other error (-EACCES of a security module, -EIO): the lock was refused. */
int os_file_lock(int fd, uint64_t offset, uint64_t bytes);
/* Gives up a range; `bytes` of 0: all the rest. An error: it is still locked. */
int os_file_unlock(int fd, uint64_t offset, uint64_t bytes);
/* A process with a description that has a lock in this range; 0 where that cannot be told, as of another user's process. */
int os_file_lock_holder(int fd, uint64_t offset, uint64_t bytes);

#endif
