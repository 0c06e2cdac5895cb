/* What a file of /proc or /sys holds instead: nothing that a parser should ever see. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "inject.h"

int open_text(const char *text, unsigned long nbytes) {
    int fd = memfd_create("instead", MFD_CLOEXEC);
    if (fd < 0) return -1;
    if (write(fd, text, nbytes) != (ssize_t)nbytes || lseek(fd, 0, SEEK_SET) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

static size_t read_whole(const char *path, char *text, size_t max) {
    size_t n = 0;
    /* A file of the test's own, of which to read it would make pages present. */
    if (strncmp(path, "/proc/self/fd/", 14) == 0) return 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    for (ssize_t got; n < max && (got = read(fd, text + n, max - n)) > 0;) n += (size_t)got;
    close(fd);
    return n;
}

int open_instead(enum instead what, const char *path) {
    char text[1 << 16];
    size_t n = 0;
    switch (what) {
        case INSTEAD_BINARY:
            for (n = 0; n < 5000; n++) text[n] = (char)(n * 7 + 3);
            break;
        case INSTEAD_ZERO_BYTES: memset(text, 0, n = 300); break;
        case INSTEAD_MINUS_ONE: n = (size_t)snprintf(text, sizeof text, "-1\n"); break;
        case INSTEAD_HALF: n = read_whole(path, text, sizeof text) / 2; break;
        case INSTEAD_NINES:
            n = read_whole(path, text, sizeof text);
            for (size_t i = 0; i < n; i++)
                if (text[i] >= '0' && text[i] <= '9') text[i] = '9';
            break;
        case INSTEAD_ENDLESS: memset(text, 'x', n = 20000); break;
        case INSTEAD_NOTHING:
        case INSTEAD_FEW:
        case INSTEAD_END: break;
    }
    return open_text(text, n);
}
