/* A library to preload, in which the n-th call that the package makes fails. What is to fail is said in a `struct control`,
 * which the driver writes (library.py has the same struct): it is shared memory, so that a driver sees what a forked
 * child of its own came to, even when that child was killed. */
#pragma once

enum { TRACE_MAX = 200000, STANDING_MAX = 4, EVERY_VARIANT = -1 };

/* What a call does instead of failing with an errno: a file of /proc or /sys has something else in it, and a read or write
 * moves less than it was asked for. The numbers are above every errno. */
enum instead {
    INSTEAD_NOTHING = 1001, /* an empty file; a read of 0 bytes */
    INSTEAD_BINARY,
    INSTEAD_ZERO_BYTES,
    INSTEAD_MINUS_ONE,
    INSTEAD_HALF, /* the file, cut in the middle */
    INSTEAD_NINES, /* the file, but each digit is a 9 */
    INSTEAD_ENDLESS, /* one line without an end */
    INSTEAD_FEW, /* a few bytes of what was asked for */
    INSTEAD_END
};

/* The variant of a call is what tells it from others of the same name: an advice, a command, a flag. */
struct call {
    const char *name;
    long variant;
};

/* A call that always fails: a kernel that lacks something. It is not counted. */
struct standing {
    char name[24]; /* empty: no fault */
    long variant; /* or EVERY_VARIANT */
    int error;
};

struct control {
    int armed;
    long index; /* the call to fail, counted from 1; 0: none does */
    int error; /* an errno, or an enum instead */
    long repeat; /* so many calls with its name and variant fail, from that one on */

    long calls; /* counted until now */
    long hits; /* those that failed */
    struct call hit;
    char hit_path[256]; /* what an open that failed was to open */

    struct standing standing[STANDING_MAX];
    char played_path[64]; /* this file has other words in it */
    char played_text[16];

    struct call trace[TRACE_MAX];
};

extern struct control *control;

/* 0: the call goes on; else what it fails with. */
int inject(const char *name, long variant, const void *caller, const char *path);

/* A descriptor of what the file holds instead. */
int open_instead(enum instead what, const char *path);
int open_text(const char *text, unsigned long nbytes);
