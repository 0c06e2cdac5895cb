"""Reservations in C on kernels that are played by what they can do: Linux 5.10, 5.15 and this one."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import Any

import machine
import pytest
from core._build import must, refused
from core._core import HUGE, MIB, PAGE, Arena, Range, ffi, library

pytestmark = pytest.mark.slow  # the same on every CPython

KERNELS: dict[str, tuple[str, ...] | None] = {"5.10": (), "5.15": ("populate",), "this": None}


def play(version: str) -> Any:
    """struct os_features of such a kernel, as far as this one can do that too."""
    can = KERNELS[version]
    features = ffi.new("struct os_features *", library().os_features()[0])
    for name, _ in ffi.typeof("struct os_features").fields:
        if can is not None and name not in can:
            setattr(features, name, False)
    return features


@pytest.fixture(params=KERNELS)
def reserve(request: pytest.FixtureRequest) -> Iterator[Callable[..., Range]]:
    made: list[Range] = []

    def new(size: int, **options: Any) -> Range:
        made.append(Range(size, features=play(request.param), **options))
        return made[-1]

    yield new
    for r in made:
        r.close()


def memfd() -> int:
    value: int = library().ARENA_BACKING_MEMFD
    return value


MAPPINGS = [{}, {"backing": "memfd"}, {"shared": True, "backing": "memfd"}, {"shared": True, "backing": "anonymous"}]


def config(options: dict[str, Any]) -> dict[str, Any]:
    backings = {"memfd": library().ARENA_BACKING_MEMFD, "anonymous": library().ARENA_BACKING_ANONYMOUS}
    return {name: backings.get(value, value) for name, value in options.items()}


@pytest.mark.parametrize("options", MAPPINGS, ids=str)
def test_what_somebody_else_has_locked_is_given_back_and_stays_locked(reserve: Any, options: dict[str, Any]) -> None:
    r = reserve(8 * MIB, **config(options))
    r.commit(0, 4 * MIB)
    r.write(0, b"x" * 4 * MIB)
    must(r.lib.lock_foreign(r.at, r.size))
    r.commit(0, r.size)
    assert r.release(MIB, 2 * MIB) == 2 * MIB
    assert r.committed == r.residency().present == 6 * MIB
    assert r.read(MIB - 4, 4) == r.read(3 * MIB, 4) == b"xxxx"
    r.commit(MIB, 2 * MIB)
    assert r.read(MIB, 2 * MIB) == bytes(2 * MIB)
    assert r.lib.is_locked(r.at + MIB) and r.lib.is_locked(r.at)


@pytest.mark.parametrize("options", MAPPINGS, ids=str)
def test_pages_of_the_pool_go_back_to_it(reserve: Any, options: dict[str, Any]) -> None:
    with machine.huge_pages(8):
        free = machine.free_huge_pages()
        r = reserve(8 * HUGE, pages="2M", **config(options))
        r.commit(0, 4 * HUGE)
        assert machine.free_huge_pages() == free - 4
        for page in range(4):
            r.write(page * HUGE, b"kept")
        assert r.release(HUGE, 2 * HUGE) == 2 * HUGE
        assert r.committed == r.residency().present == 2 * HUGE
        assert machine.free_huge_pages() == free - 2
        assert r.read(0, 4) == r.read(3 * HUGE, 4) == b"kept"
        r.commit(HUGE, HUGE)
        assert r.read(HUGE, 4) == bytes(4)
        # More than there is: what it had made present goes back too.
        with machine.pool_of_others(machine.free_huge_pages() - 1):
            refused(errno.ENOSPC, r.commit, 0, 8 * HUGE)
        assert r.committed == r.residency().present == 3 * HUGE
        assert machine.free_huge_pages() == free - 3
        assert r.release(0, 8 * HUGE) == 3 * HUGE
        assert machine.free_huge_pages() == free


def test_a_release_that_fails_in_the_middle_books_what_it_gave_back(reserve: Any) -> None:
    r = reserve(16 * MIB)
    r.commit(0, 8 * MIB)
    hole = r.at + 3 * MIB + 5 * PAGE
    must(r.lib.cut(hole))
    refused(errno.ENOMEM, r.release, 0, 16 * MIB)
    assert ffi.string(r.error.op) == b"release"
    assert r.error.offset == 3 * MIB + 5 * PAGE
    assert r.error.committed == r.committed == r.residency(0, 3 * MIB).present == r.residency(4 * MIB, MIB).present == 0
    must(r.lib.mend(hole))
    assert r.commit(0, 8 * MIB) == 8 * MIB
    assert r.release(0, 16 * MIB) == 8 * MIB


def test_a_copy_is_of_the_reservation(reserve: Any) -> None:
    r = reserve(MIB, shared=True, backing=memfd())
    r.commit(0, MIB)
    for offset, n in ((MIB, 1), (MIB - 9, 10), (1 << 63, 10), (-4 % (1 << 64), 10)):
        refused(errno.EINVAL, r.copy, offset, bytearray(n), into=False)
        refused(errno.EINVAL, r.copy, offset, bytearray(n), into=True)
    r.copy(MIB, bytearray(), into=False)


@pytest.mark.parametrize("version", KERNELS)
def test_an_arena_and_its_index(version: str) -> None:
    a = Arena(64 * MIB, retain=0, features=play(version))
    blocks = [a.alloc(MIB) for _ in range(20)] + [a.alloc(64) for _ in range(20000)]
    for block in blocks:
        a.write(block)
    a.check()
    for block in blocks[::2] + blocks[1::2]:
        a.free(block.handle)
    a.check()
    assert a.stats().committed == a.residency() == 0
    must(a.lib.lock_foreign(ffi.cast("void *", a.base), a.size))
    a.warm(4 * MIB)
    assert a.trim() == 4 * MIB
    assert a.stats().committed == 0
    a.close()


@pytest.mark.parametrize("version", KERNELS)
def test_a_mirror(version: str) -> None:
    must(library().mirror_round_trip(play(version), 4 * MIB))
