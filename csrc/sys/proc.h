/* proc.h: small files and folders of /proc and /sys. */
#ifndef ARENA_PROC_H
#define ARENA_PROC_H

#include <stdbool.h>
#include <stddef.h>

/* Reads a small file. The length, NUL-terminated, at most size - 1; or -errno. */
int os_read(const char *path, char *buf, size_t size);
/* Each line of a file, as long as `line` answers true; of a line longer than 4,095 bytes the rest is left out. */
int os_each_line(const char *path, bool (*line)(void *arg, char *text), void *arg);
/* The folders in a folder, as long as `each` answers true. */
int os_each_folder(const char *path, bool (*each)(void *arg, const char *name), void *arg);
/* Is the path there? */
bool os_exists(const char *path);
/* Is this process in the machine's first cgroup namespace? Also true where the kernel has no such namespaces. */
bool os_first_cgroup_namespace(void);
/* vm.overcommit_memory: 0, 1 or 2; 0 where it cannot be read. */
int os_overcommit_mode(void);

#endif
