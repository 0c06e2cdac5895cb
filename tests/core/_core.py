"""The C core for cffi, Python types around its two objects, and what its tests do to it."""

from __future__ import annotations

import errno
import functools
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cffi
import pytest
from core._build import CSRC, Failed, build, declarations, must, struct

ffi = cffi.FFI()
NULL = ffi.NULL
KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
PAGE, HUGE, CHUNK = 4 * KIB, 2 * MIB, 64 * KIB
EVER = (1 << 64) - 1
ZERO, NO_GROW = 1, 2
STOP = errno.ESTALE  # what our progress calls say: nothing else here says it
LONG = 256 * MIB  # of 4 KiB pages: populating it takes far longer than the 10 ms until the progress call is asked

EXTRA = """
#define _GNU_SOURCE
#include <errno.h>
#include <linux/seccomp.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "memory/mirror.h"
#include "alloc/arena_private.h"
#include "alloc/geometry.h"

/* A page that cannot be populated, and one that can again. */
int spoil(void *page) { return mprotect(page, 4096, PROT_NONE); }
int repair(void *page) { return mprotect(page, 4096, PROT_READ | PROT_WRITE); }
/* A hole, over which a release fails; and memory again. */
int cut(void *page) { return munmap(page, 4096); }
int mend(void *page) {
    return mmap(page, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED;
}
int drop(void *page, uint64_t bytes) { return madvise(page, bytes, MADV_DONTNEED); }
int lock_foreign(void *page, uint64_t bytes) { return mlock(page, bytes); }
/* MADV_COLD is refused where memory is locked, and does nothing else to a page. */
int is_locked(void *page) { return madvise(page, 4096, 20) != 0; }
int is_mapped(void *page) {
    unsigned char there;
    return mincore(page, 4096, &there) == 0;
}

long faults_of_writing(char *at, uint64_t bytes) {
    struct rusage before, after;
    getrusage(RUSAGE_THREAD, &before);
    for (uint64_t i = 0; i < bytes; i += 4096) ((volatile char *)at)[i] = 1;
    getrusage(RUSAGE_THREAD, &after);
    return after.ru_minflt - before.ru_minflt;
}

/* What each page is committed for: 0 nothing, 1 reading, 2 writing. */
void pages_of(reservation *r, unsigned char *out, uint64_t n) {
    for (uint64_t i = 0; i < n; i++)
        out[i] = reservation_is_committed(r, i * 4096, 4096, false) + reservation_is_committed(r, i * 4096, 4096, true);
}

/* One short operation after the other, until *over. */
int bustle(reservation *r, uint64_t offset, const int *over) {
    int rc = 0;
    while (rc == 0 && !__atomic_load_n(over, __ATOMIC_RELAXED)) {
        rc = reservation_commit(r, offset, 4096, true, 1, NULL, NULL, NULL, NULL);
        if (rc == 0) rc = reservation_release(r, offset, 4096, false, NULL, NULL, NULL, NULL);
    }
    return rc;
}

void wait_for_peers(reservation *r, uint64_t ns) { r->peer_wait_ns = ns; }

/* A lock whose holder does not exist. */
void take_from_nobody(void) {
    struct mutex l = {.word = 0x3ffffffe};
    mutex_lock(&l);
}

/* A mirror's memory is one memory, which is touched without a fault, and gone afterwards. */
int mirror_round_trip(const struct os_features *f, uint64_t bytes) {
    static struct mirror m;
    struct arena_error e;
    int rc = mirror_create(f, bytes, false, "test", NULL, NULL, &m, &e);
    if (rc) return rc;
    char *first = m.base + 4096, *base = m.base;
    long faults = faults_of_writing(first, 2 * m.bytes);
    memset(first, 1, m.bytes);
    if (faults || memcmp(first, first + m.bytes, m.bytes) != 0) rc = -EIO;
    mirror_destroy(&m);
    return rc ? rc : is_mapped(base) || is_mapped(first) ? -EBUSY : 0;
}

/* So many blocks of what is committed; *faults: of this thread meanwhile. What arena_alloc answered. */
int allocate(arena *a, uint64_t n, uint64_t bytes, long *faults) {
    struct rusage before, after;
    struct arena_block b;
    int rc = 0;
    getrusage(RUSAGE_THREAD, &before);
    while (rc == 0 && n--) rc = arena_alloc(a, bytes, 64, ARENA_NO_GROW, NULL, NULL, &b, NULL);
    getrusage(RUSAGE_THREAD, &after);
    *faults = after.ru_minflt - before.ru_minflt;
    return rc;
}

/* The same in a thread for which each system call but its end is the end. 0: it got through. */
struct silent { arena *a; uint64_t n, bytes; int rc; };
static void *allocate_silently(void *arg) {
    struct silent *s = arg;
    struct arena_block b;
    int rc = arena_alloc(s->a, s->bytes, 64, ARENA_NO_GROW, NULL, NULL, &b, NULL); /* its lock asks who it is */
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT)) return NULL;
    while (rc == 0 && --s->n) rc = arena_alloc(s->a, s->bytes, 64, ARENA_NO_GROW, NULL, NULL, &b, NULL);
    s->rc = rc;
    syscall(SYS_exit, 0);
    return NULL;
}
int allocate_without_system_calls(arena *a, uint64_t n, uint64_t bytes) {
    pthread_t thread;
    struct silent s = {a, n, bytes, 12345};
    if (pthread_create(&thread, NULL, allocate_silently, &s)) return 1;
    pthread_join(thread, NULL);
    return s.rc;
}

uint64_t free_nodes(arena *a) { return a->index.list.nodes_free; }

bool freed(struct retention *r, uint64_t free_bytes, uint64_t now, uint64_t chunk) {
    return retention_freed(r, free_bytes, now, chunk);
}
void note(struct retention *r, uint64_t free_bytes) { retention_note(r, free_bytes); }

int index_check(arena *a) { return freelist_check(&a->index.list); }
uint64_t index_committed(arena *a) { return a->index.list.committed_granules * 64; }
"""
EXTRA_DECLARED = """
int spoil(void *page);
int repair(void *page);
int cut(void *page);
int mend(void *page);
int drop(void *page, uint64_t bytes);
int lock_foreign(void *page, uint64_t bytes);
int is_locked(void *page);
int is_mapped(void *page);
long faults_of_writing(char *at, uint64_t bytes);
void pages_of(reservation *r, unsigned char *out, uint64_t n);
int bustle(reservation *r, uint64_t offset, const int *over);
void wait_for_peers(reservation *r, uint64_t ns);
void take_from_nobody(void);
int mirror_round_trip(const struct os_features *f, uint64_t bytes);
int allocate(arena *a, uint64_t n, uint64_t bytes, long *faults);
int allocate_without_system_calls(arena *a, uint64_t n, uint64_t bytes);
uint64_t free_nodes(arena *a);
int index_check(arena *a);
struct geometry choose_geometry(const struct arena_config *config, uint64_t page);
bool freed(struct retention *r, uint64_t free_bytes, uint64_t now, uint64_t chunk);
void note(struct retention *r, uint64_t free_bytes);
uint64_t retention_to_purge(struct retention *r, uint64_t free_bytes);
void retention_purged(struct retention *r, uint64_t bytes, uint64_t free_bytes);
uint64_t retention_warm(struct retention *r, uint64_t bytes);
void retention_unwarm(struct retention *r, uint64_t bytes, uint64_t before);
void retention_end(struct retention *r);
uint64_t index_committed(arena *a);
const struct os_features *os_features(void);
int os_residency(const struct os_features *f, const void *addr, size_t bytes, struct os_residency *out);
int os_reopen(int fd, int *out);
"""


@functools.cache
def library() -> Any:
    structs = struct("sys/features.h", "os_features") + struct("sys/residency.h", "os_residency")
    structs += struct("alloc/geometry.h", "geometry") + struct("alloc/retention.h", "retention")
    declared = declarations("include/arena.h") + declarations("alloc/malloc_adapter.h") + structs + EXTRA_DECLARED
    with tempfile.TemporaryDirectory() as folder:
        return build(ffi, Path(folder, "core.so"), sorted(CSRC.glob("*/*.c")), EXTRA, declared)


lost: list[BaseException] = []  # for the tests to raise, see progress_of


def progress_of(function: Callable[[], int]) -> Any:
    """A progress call for the core. What it raises stops the call, and is raised again when the test is over."""

    def remember(kind: type, error: BaseException, traceback: object) -> None:
        lost[:] = [error]

    signature = "int(void *, uint64_t, uint64_t)"
    return ffi.callback(signature, lambda arg, done, total: function(), error=-errno.EPROTO, onerror=remember)


def stop() -> int:
    return -STOP


def cannot(function: Callable[..., object], *args: Any, **options: Any) -> None:
    """There is a page in the range that cannot be populated; which error that is, is the kernel's affair."""
    with pytest.raises(Failed) as info:
        function(*args, **options)
    assert info.value.errno in (errno.EINVAL, errno.EFAULT, errno.ENOMEM), str(info.value)


def old_kernel() -> Any:
    """One before 5.14, with nothing of what is probed for."""
    return ffi.new("struct os_features *")


class Thread(threading.Thread):
    """Runs something, and knows what it returned or raised."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.work = work
        self.result: Any = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self.work()
        except BaseException as error:
            self.error = error

    def wait(self) -> Any:
        self.join(20)
        assert not self.is_alive(), "it hangs"
        if self.error:
            raise self.error
        return self.result


def blocking(entered: threading.Event, leave: threading.Event, answer: int) -> Any:
    """A progress call in which the commit stands still until it is told to go on."""

    def progress() -> int:
        entered.set()
        assert leave.wait(20)
        return answer

    return progress_of(progress)


# --- the two objects, and Python types around them --------------------------------------------------------------------


class Range:
    """A reservation."""

    def __init__(self, size: int, *, pages: str = "4K", **config: Any) -> None:
        self.lib, self.error = library(), ffi.new("struct arena_error *")
        names = {"4K": self.lib.ARENA_PAGES_4K, "auto": self.lib.ARENA_PAGES_AUTO, "2M": self.lib.ARENA_PAGES_HUGETLB}
        if pages == "2M":
            config["page_bytes"] = HUGE
        options = ffi.new("struct reservation_config *", {"size": size, "pages": names[pages], **config})
        self.features = config.get("features")  # the core keeps the pointer
        out = ffi.new("reservation **")
        must(self.lib.reservation_create(options, out, self.error))
        self.c = out[0]
        stats = self.stats()
        self.size, self.page, self.at = stats.size, stats.page_size, ffi.cast("char *", stats.address)

    def close(self) -> None:
        must(self.lib.reservation_destroy(self.c))

    def stats(self) -> Any:
        out = ffi.new("struct reservation_stats *")
        self.lib.reservation_get(self.c, out)
        return out

    @property
    def committed(self) -> int:
        committed: int = self.stats().committed
        return committed

    def commit(self, offset: int, n: int, *, write: bool = True, threads: int = 1, progress: Any = NULL) -> int:
        newly = ffi.new("uint64_t *", 12345)
        rc = self.lib.reservation_commit(self.c, offset, n, write, threads, progress, NULL, newly, self.error)
        assert rc == 0 or newly[0] == 0
        must(rc)
        value: int = newly[0]
        return value

    def release(self, offset: int, n: int, *, progress: Any = NULL) -> int:
        freed = ffi.new("uint64_t *", 12345)
        must(self.lib.reservation_release(self.c, offset, n, False, freed, progress, NULL, self.error))
        value: int = freed[0]
        return value

    def verify(self, offset: int, n: int, *, progress: Any = NULL) -> None:
        must(self.lib.reservation_verify(self.c, offset, n, progress, NULL, self.error))

    def has(self, offset: int, n: int, *, write: bool = True) -> bool:
        return bool(self.lib.reservation_is_committed(self.c, offset, n, write))

    def write(self, offset: int, data: bytes) -> None:
        ffi.memmove(self.at + offset, data, len(data))

    def read(self, offset: int, n: int) -> bytes:
        return bytes(ffi.buffer(self.at + offset, n))

    def residency(self, offset: int = 0, n: int = 0) -> Any:
        out = ffi.new("struct os_residency *")
        must(self.lib.os_residency(self.lib.os_features(), self.at + offset, n or self.size, out))
        return out

    def copy(self, offset: int, buffer: Any, *, into: bool) -> None:
        must(self.lib.reservation_copy(self.c, offset, ffi.from_buffer(buffer), len(buffer), into))


class Block(NamedTuple):
    handle: int
    offset: int
    bytes: int
    address: int
    dirty: int


class Arena:
    """An arena, with a clock that stands still."""

    def __init__(
        self, size: int = 16 * MIB, *, chunk: int = CHUNK, retain: int = EVER, features: Any = NULL, **config: Any
    ) -> None:
        self.lib, self.error = library(), ffi.new("struct arena_error *")
        self.now = 1
        self.clock = ffi.callback("uint64_t(void *)", lambda arg: self.now)
        options = ffi.new("struct arena_config *", {"chunk": chunk, "retain": retain, "now_ns": self.clock, **config})
        options.reservation.size = size
        self.features = options.reservation.features = features  # the core keeps the pointer
        out = ffi.new("arena **")
        must(self.lib.arena_create(options, out, self.error))
        self.c = out[0]
        self.size, self.chunk = self.stats().reserved, self.lib.arena_chunk(self.c)
        self.base = int(ffi.cast("uintptr_t", self.lib.arena_address(self.c)))
        self.block, self.due = ffi.new("struct arena_block *"), ffi.new("bool *")

    def close(self) -> None:
        if self.c:
            must(self.lib.arena_destroy(self.c))
        self.c = NULL

    def stats(self) -> Any:
        out = ffi.new("struct arena_stats *")
        self.lib.arena_get(self.c, out)
        return out

    def answer(self) -> Block:
        b = self.block
        return Block(b.handle, b.offset, b.bytes, int(ffi.cast("uintptr_t", b.address)), b.dirty)

    def alloc(self, n: int, align: int = 64, flags: int = 0, *, progress: Any = NULL) -> Block:
        must(self.lib.arena_alloc(self.c, n, align, flags, progress, NULL, self.block, self.error))
        return self.answer()

    def alloc_committed(self, n: int, align: int = 64) -> Block:
        must(self.lib.arena_alloc_committed(self.c, n, align, self.block))
        return self.answer()

    def free(self, handle: int) -> None:
        must(self.lib.arena_free(self.c, handle))

    def free_deferred(self, handle: int) -> bool:
        must(self.lib.arena_free_deferred(self.c, handle, self.due))
        return bool(self.due[0])

    def purge(self) -> None:
        must(self.lib.arena_purge(self.c))

    def resize(self, handle: int, n: int, *, progress: Any = NULL) -> Block:
        must(self.lib.arena_resize(self.c, handle, n, progress, NULL, self.block, self.error))
        return self.answer()

    def find(self, address: int) -> Block:
        must(self.lib.arena_find(self.c, ffi.cast("void *", address), self.block))
        return self.answer()

    def warm(self, n: int, blocks: int = 0, *, progress: Any = NULL) -> None:
        must(self.lib.arena_warm(self.c, n, blocks, 0, progress, NULL, self.error))

    def trim(self, keep: int = 0) -> int:
        freed = ffi.new("uint64_t *")
        must(self.lib.arena_trim(self.c, keep, freed, self.error))
        value: int = freed[0]
        return value

    def blocks(self, most: int = 256) -> list[tuple[int, int]]:
        out, cursor, found = ffi.new("struct arena_block[]", most), ffi.new("uint64_t *", 0), []
        while cursor[0] != EVER:
            n = self.lib.arena_blocks(self.c, cursor, out, most)
            assert n <= min(most, 256)
            found += [(out[i].offset, out[i].bytes) for i in range(n)]
        return found

    def write(self, block: Block, byte: int = 1) -> None:
        ffi.memmove(ffi.cast("char *", block.address), bytes([byte]) * block.bytes, block.bytes)

    def read(self, block: Block) -> bytes:
        return bytes(ffi.buffer(ffi.cast("char *", block.address), block.bytes))

    def residency(self) -> int:
        out = ffi.new("struct os_residency *")
        must(self.lib.os_residency(self.lib.os_features(), ffi.cast("void *", self.base), self.size, out))
        present: int = out.present
        return present

    def figures(self) -> dict[str, int]:
        """What a call that failed must not have changed."""
        s = self.stats()
        return {
            name: getattr(s, name) for name in ("committed", "live", "free_committed", "blocks", "largest_free", "free")
        }

    def check(self) -> None:
        line = self.lib.index_check(self.c)
        assert line == 0, f"freelist_check.c:{line} does not hold"
        assert not self.stats().reserved or self.lib.index_committed(self.c) == self.stats().committed
