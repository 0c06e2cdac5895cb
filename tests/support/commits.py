"""What a child sees of a commit: that a refused one left nothing behind, and that one that fits gives memory which
works. No pytest here: see kernel.py."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Collection
from functools import partial
from typing import Literal, NamedTuple

from machine import free_huge_pages
from measure import allocated, descriptor_behind, faults_writing, resident, rss

from arena import CommitError, Reservation

Populate = Literal["write", "read"]

SLACK = 1 << 20
"""Of the interpreter's own memory."""


class Facts(NamedTuple):
    committed: int
    resident: int
    rss: int
    blocks: int
    free: int


def facts(r: Reservation) -> Facts:
    """The ledger, and what the kernel says of the range, of this process, of the file and its file system."""
    blocks = free = 0
    # Not r.fileno(): whoever has asked for that may have written to it, and a rollback has to reckon with him.
    fd = descriptor_behind(r.address)
    if fd is not None:
        blocks = allocated(fd)
        there = os.fstatvfs(fd)
        # A disk that others use as well says nothing, and a memfd's file system has no size.
        if 0 < there.f_blocks * there.f_frsize < 1 << 30:
            free = there.f_bfree * there.f_frsize
    return Facts(r.committed, resident(r.address, r.size), rss(), blocks, free)


def error_of(
    call: Callable[[], object],
    *,
    errnos: Collection[int] = (),
    says: str = "",
    kinds: type[BaseException] | tuple[type[BaseException], ...] = OSError,
) -> BaseException:
    """The exception of a call that has to fail, of this kind, with one of these errnos, and in these words."""
    try:
        call()
    except kinds as error:
        err = getattr(error, "errno", None)
        assert not isinstance(error, OSError) or not errnos or err in errnos, f"errno {err}: {error!r}"
        assert re.search(says, str(error)), f"it does not say {says!r}: {error}"
        return error
    raise AssertionError("no error")


def refused(
    r: Reservation,
    nbytes: int,
    *,
    offset: int = 0,
    errnos: Collection[int],
    says: str,
    populate: Populate = "write",
    threads: int | None = None,
    known: bool = True,
    ours: bool = True,
    metadata: int = 0,
    pool: bool = False,
) -> CommitError:
    """A commit that has to fail with a CommitError, whose numbers are right, and leave everything as it was.

    known: whether how much there was can be known. ours: whether the file is, so that its pages have to be gone too.
    metadata: what the file system may keep for its own use. pool: whether its pages are of the hugetlb pool.
    """
    before, pool_before = facts(r), free_huge_pages()
    commit = partial(r.commit, nbytes, offset=offset, populate=populate, threads=threads)
    error = error_of(commit, errnos=errnos, says=says, kinds=CommitError)
    after = facts(r)
    assert isinstance(error, CommitError)
    assert isinstance(error, OSError) and isinstance(error, MemoryError)
    assert error.op and error.hint and error.hint in str(error), (error.op, error.hint)
    # What of it was committed before need not be asked for again.
    assert error.offset == offset and error.requested is not None
    assert nbytes - before.committed <= error.requested <= nbytes, (error.requested, nbytes)
    assert error.committed == before.committed, error.committed
    if known:
        assert error.available is not None and 0 <= error.available < error.requested, error.available
    assert after.committed == before.committed, (before, after)
    assert after.resident == before.resident, (before, after)
    assert after.rss < before.rss + SLACK, (before, after)
    if ours:
        assert after.blocks <= before.blocks + metadata, (before, after)
        assert after.free >= before.free - metadata, (before, after)
    if pool:
        # Others use it too, and may have taken some for a moment.
        patience = time.monotonic() + 5
        while free_huge_pages() < pool_before and time.monotonic() < patience:
            time.sleep(0.01)
        assert free_huge_pages() >= pool_before, (free_huge_pages(), pool_before)
    return error


PIECE = 64 << 10
"""What is compared at once: in a small cgroup the test's own memory counts."""


def pattern(offset: int) -> bytes:
    """A piece of what is written to a range that begins at this offset."""
    return bytes((offset // 4096 + i) % 251 + 1 for i in range(256)) * (PIECE // 256)


def works(r: Reservation, nbytes: int, *, offset: int = 0, disk: bool = False) -> None:
    """A commit that fits: what it gives is written without a fault (on a disk: until the kernel writes it back), and
    read back."""
    r.commit(nbytes, offset=offset)
    piece = pattern(offset)
    with r.view(nbytes, offset=offset) as view:
        faults = faults_writing(view)
        assert faults == 0 or disk, f"{faults} faults"
        for at in range(0, nbytes, PIECE):
            view[at : at + PIECE] = piece[: nbytes - at]
    still_there(r, nbytes, offset=offset)


def still_there(r: Reservation, nbytes: int, *, offset: int = 0) -> None:
    """What works() wrote to the range that begins at this offset: by a view, and by read_into()."""
    piece, into = pattern(offset), bytearray(PIECE)
    with r.view(nbytes, offset=offset, readonly=True) as view:
        for at in range(0, nbytes, PIECE):
            assert bytes(view[at : at + PIECE]) == piece[: nbytes - at], "not what was written"
    for at in range(0, nbytes, PIECE):
        part = memoryview(into)[: nbytes - at]
        assert r.read_into(part, offset=offset + at) == len(part)
        assert part == piece[: nbytes - at], "not what was written, by read_into()"
