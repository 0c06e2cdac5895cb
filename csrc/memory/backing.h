/* backing.h: what stands behind a reservation. One table, a row for each kind: how it is opened and mapped, what is
 * allocated before pages are populated, how memory is given back, what a page costs, and where its free space is read.
 *
 * A file is *ours* if this reservation made it: a memfd, an unnamed file in a directory, a path that was missing. Only of
 * these is anything ever given back by punching holes, unless the user says `discard`. It has *peers* where somebody else
 * may put data into it as well: it has a name, its descriptor was handed out, or a fork's child shares it. */
#ifndef ARENA_BACKING_H
#define ARENA_BACKING_H

#include <stdbool.h>
#include <stdint.h>

#include "arena.h"
#include "memory/preflight.h"
#include "sys/features.h"
#include "sys/files.h"
#include "sys/mapping.h"

struct backing;

/* When blocks are allocated ahead of populating. */
enum allocate { AS_IS, ALLOCATE, ALLOCATE_OURS };
/* How memory goes back, where the file is ours. */
enum give_back { UNMAP, PUNCH, REMOVE };

struct backing_kind {
    const char *name;
    bool shared;
    bool pool;  /* of hugetlb pages */
    bool shmem; /* huge pages there are a matter of shmem_enabled, or of the mount */
    enum allocate for_write, for_read;
    enum give_back gives;
    uint8_t write_costs, read_costs; /* bytes of the machine's memory for each byte committed */
    bool touchable;                  /* a touch can hurt no more than any store of the program does */
};

struct backing {
    const struct backing_kind *kind;
    struct os_mapping mapping;
    int other;           /* a description of the same file for our locks and seeks; -1: not (yet) there */
    uint32_t holders;    /* atomic: how many have a lock, or are about to have one */
    bool stuck;          /* atomic: a range that was given up is still locked */
    bool unlocking;      /* atomic: all of it is being unlocked */
    bool ours, created;  /* created: with a name */
    bool peers;          /* atomic */
    bool sealed;         /* the file keeps its size */
    bool allocates;      /* the kind's for_write and for_read apply */
    uint64_t page, bytes; /* of a page; of the mapping */
    bool huge;           /* MADV_HUGEPAGE */
    int node;            /* -1: any */
    int64_t budget;      /* atomic, bytes: see backing_preflight */
    uint64_t good_for;   /* atomic: until this time (ns) */
};

/* Opens, and creates where that is asked for. On failure nothing is left open, and nothing in a directory. Errors in
 * terms of `op`: "open", "memfd_create", "ftruncate", "pages", "readonly", "backing", … */
int backing_open(struct backing *b, const struct reservation_config *config, const char **op, char *where, size_t n);
/* `unlink_path`: what was created there is not wanted. NULL: a created file stays. */
void backing_close(struct backing *b, const char *unlink_path);
/* What has to be said of a range of it: once it is mapped, and again after it was mapped anew. *op: what was refused. */
int backing_advise(const struct backing *b, void *at, uint64_t bytes, const char **op);

/* Makes blocks for a range that is going to be populated. -EFAULT: beyond the end of the file. -ENOSPC; -EOPNOTSUPP: a
 * file system that cannot, and a hole in a file that is not ours. */
int backing_allocate(const struct backing *b, uint64_t offset, uint64_t bytes, bool write);
/* Nobody else can have put anything there. */
bool backing_alone(const struct backing *b);
/* Can be asked what data there is (SEEK_DATA): so a commit knows of a page, before it makes it, that it was not there. */
bool backing_shows_data(const struct backing *b);
/* Bytes from `offset` on, `bytes` at most, that read as zeros in its file. What cannot be read is not zero. */
uint64_t backing_zeros(const struct backing *b, uint64_t offset, uint64_t bytes);
/* Bytes that its file takes. */
uint64_t backing_allocated(const struct backing *b);
/* From *start on, the next range of data within the file, up to `end`; false: there is none. Where the file system does not
 * tell, all is data. */
bool backing_next_data(const struct backing *b, uint64_t *start, uint64_t *stop, uint64_t end);
bool backing_fresh_is_zero(const struct backing *b);

/* Gives back what there is behind a range, for everybody who has it mapped: where it is ours, or in any case (`discard`,
 * which needs a file). *unmapped: the kernel has taken it out of the mapping as well, but for a private mapping's copies. */
int backing_give_back(const struct backing *b, void *at, uint64_t offset, uint64_t bytes, bool discard, bool *unmapped);
/* Without `discard` what is behind the mapping stays, and only a private mapping's copies can be given back. */
bool backing_keeps(const struct backing *b);
/* Pages of this kind are not dropped by decommit_pages on such a kernel, but by os_map_anew. */
bool backing_is_mapped_anew(const struct backing *b, const struct os_features *f);

/* Of a file of hugetlb pages only their number can be had (backing_allocated); so with peers operations on it take turns. */
bool backing_one_at_a_time(const struct backing *b);
/* Others who commit or release in this range wait, as far as they use these locks. -EBUSY: so do we. -EAGAIN: to be tried
 * again. 0 without *locked: there are no peers, or no locks in this file system, or /proc is not there to open a description
 * for them; then nothing of the file is ever taken for this operation's own. Other errors: the lock was refused. */
int backing_lock(struct backing *b, uint64_t offset, uint64_t bytes, bool *locked);
/* The same where there are no peers yet, but may be at any moment. */
int backing_lock_early(struct backing *b, uint64_t offset, uint64_t bytes, bool *locked);
void backing_unlock(struct backing *b, uint64_t offset, uint64_t bytes);
/* Which process keeps others waiting in this range; 0 where that cannot be told. */
int backing_lock_holder(const struct backing *b, uint64_t offset, uint64_t bytes);
/* In the child of a fork the parent's locks are not ours. */
void backing_after_fork_child(struct backing *b);

/* Why a commit of so many bytes, up to `end`, failed: a truer errno where the kernel only says EFAULT, what was free, and
 * the file that says so. */
int backing_explain(const struct backing *b, int rc, uint64_t end, uint64_t bytes, struct arena_error *e);
/* Before anything is committed: -ENOSPC where it can be known that so much cannot be had; *out: what is left. */
int backing_preflight(struct backing *b, uint64_t bytes, struct preflight_report *out);

/* Of a file in memory: a part of the range has no page, so that a load there would need a new one, or end in a signal. Only
 * where that can be asked without moving the position of somebody's descriptor. */
bool backing_has_hole(struct backing *b, uint64_t offset, uint64_t bytes);
/* Copies through the kernel, in this file or (other kinds) in this process. */
int backing_copy(const struct backing *b, void *at, uint64_t offset, void *buffer, uint64_t bytes, bool into);

#endif
