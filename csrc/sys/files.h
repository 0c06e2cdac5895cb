/* files.h: files are opened, made, allocated, read and written.
 *
 * Descriptors are close-on-exec. No function here raises SIGXFSZ: what RLIMIT_FSIZE forbids is -EFBIG. */
#ifndef ARENA_FILES_H
#define ARENA_FILES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum os_file_type { OS_FILE_REGULAR, OS_FILE_TMPFS, OS_FILE_HUGETLBFS, OS_FILE_OTHER };

struct os_file {
    enum os_file_type type;
    uint64_t size;
    uint64_t allocated; /* bytes of blocks */
    uint64_t page;      /* the size of a page of it: of hugetlbfs, else OS_PAGE */
    uint64_t device;    /* which file system */
};
int os_file_look(int fd, struct os_file *out);
/* Bytes free in its file system; UINT64_MAX where that has no limit of its own (memfd, a tmpfs without size=). */
uint64_t os_file_room(int fd);

/* An anonymous file in memory, on pages of `huge` bytes (0: ordinary ones). -ENOSYS, -EINVAL: not in this kernel. */
int os_memfd(const char *name, uint64_t huge, int *fd);
/* Seals a memfd: it can neither shrink nor grow from now on. -EPERM, -EINVAL: this file cannot be sealed. */
int os_seal_size(int fd);
/* Makes a file without a name in this directory, 0600, for reading and writing. `temporary` (n bytes, or NULL) gets the name
 * that the file has nevertheless, until os_link or os_unlink, where the file system has no files without a name; else it is
 * empty, and where it is NULL such a name is removed at once. */
int os_open_unnamed(const char *dir, int *fd, char *temporary, size_t n);
/* The directory of a path. */
int os_directory_of(const char *path, char *out, size_t n);
/* Gives such a file this name, in one step for whoever looks for it. -EEXIST: there is another file of that name. Other
 * errors: this cannot be done on this file system, or not without /proc. */
int os_link(int fd, const char *temporary, const char *path);
/* Opens a file, and never waits for the other end of a FIFO. With `create` the file must not exist: -EEXIST. -EISDIR: it is a
 * directory, and `write` is asked for; *directory tells whether it is one in any case. */
int os_open_file(const char *path, bool write, bool create, int *fd, bool *directory);
int os_dup(int fd, int *out);
/* Opens a second open file description of the same file, for locks of its own. Without /proc: -ENOENT. -ESTALE: what can be
 * opened is not the same file. */
int os_reopen(int fd, int *out);
/* Puts such a description in the place of another, under the number of that: with the other its locks go, whatever the kernel
 * lacks. */
int os_reopen_over(int fd, int other);
void os_close_file(int fd);
/* Removes a name, only if it is still the name of this file. */
void os_unlink(const char *path, int fd);
int os_file_set_size(int fd, uint64_t bytes);

/* The size of a file, where nothing else of it matters. */
int os_file_size(int fd, uint64_t *bytes);

/* Allocates blocks; the file's size stays. -EOPNOTSUPP: this file system cannot. The call ends however many signals come, and
 * lets them come in between. */
int os_allocate(int fd, uint64_t offset, uint64_t bytes);
/* Gives blocks back: the range reads as zeros, for everybody who maps the file. */
int os_punch(int fd, uint64_t offset, uint64_t bytes);
/* *at: the next byte from offset on that is data (or hole); the end of the file is a hole, and where no data follows *at is
 * UINT64_MAX. -EINVAL, -EOPNOTSUPP and others: the file system cannot or does not want to tell. */
int os_next_data(int fd, uint64_t offset, bool data, uint64_t *at);
/* These read or write all of it, or answer an error. -EFAULT: the file ends before. */
int os_read_at(int fd, uint64_t offset, void *buffer, size_t bytes);
int os_write_at(int fd, uint64_t offset, const void *buffer, size_t bytes);
int os_write_zeros(int fd, uint64_t offset, uint64_t bytes);

/* Does every write go to the file's end, wherever it is to go (O_APPEND)? */
bool os_appends(int fd);

#endif
