#define _GNU_SOURCE
#include "sys/proc.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "sys/mutex.h"

#define FIRST_CGROUP_NAMESPACE "cgroup:[4026531835]" /* PROC_CGROUP_INIT_INO of the kernel's proc_ns.h */

int os_read(const char *path, char *buf, size_t size) {
    mutex_check_none();
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -errno;
    size_t got = 0;
    while (got < size - 1) {
        ssize_t n = read(fd, buf + got, size - 1 - got);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            int err = errno;
            close(fd);
            return -err;
        }
        if (n == 0) break;
        got += (size_t)n;
    }
    close(fd);
    buf[got] = 0;
    return (int)got;
}

int os_each_line(const char *path, bool (*line)(void *arg, char *text), void *arg) {
    mutex_check_none();
    char buf[4096], text[4096];
    size_t length = 0;
    bool more = true;
    ssize_t n;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -errno;
    while (more && ((n = read(fd, buf, sizeof buf)) > 0 || (n < 0 && errno == EINTR))) {
        for (ssize_t i = 0; more && i < n; i++) {
            if (buf[i] != '\n') {
                if (length < sizeof text - 1) text[length++] = buf[i];
                continue;
            }
            text[length] = 0;
            length = 0;
            more = line(arg, text);
        }
    }
    int rc = more && n < 0 ? -errno : 0;
    close(fd);
    return rc;
}

int os_each_folder(const char *path, bool (*each)(void *arg, const char *name), void *arg) {
    mutex_check_none();
    DIR *dir = opendir(path);
    if (!dir) return -errno;
    bool more = true;
    for (struct dirent *entry; more && (entry = readdir(dir)) != NULL;) {
        if (entry->d_type == DT_DIR && strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            more = each(arg, entry->d_name);
    }
    closedir(dir);
    return 0;
}

bool os_exists(const char *path) {
    mutex_check_none();
    return access(path, F_OK) == 0;
}

bool os_first_cgroup_namespace(void) {
    mutex_check_none();
    char text[64];
    ssize_t n = readlink("/proc/self/ns/cgroup", text, sizeof text - 1);
    if (n < 0) return errno == ENOENT;
    text[n] = 0;
    return strcmp(text, FIRST_CGROUP_NAMESPACE) == 0;
}

int os_overcommit_mode(void) {
    char text[16];
    return os_read("/proc/sys/vm/overcommit_memory", text, sizeof text) > 0 ? atoi(text) : 0;
}
