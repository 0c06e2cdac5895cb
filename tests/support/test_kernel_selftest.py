"""The kernel's own tests of MADV_POPULATE_(READ|WRITE), tools/testing/selftests/mm/madv_populate.c, written anew for
Reservation.commit(): what they hold the kernel to, commit() has to keep, and where they expect an errno it has to raise
an exception that carries it.

Each check is over 2 MiB of fresh private anonymous memory, in a fork, for some of them take the range apart.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable, Iterator
from typing import Literal

import pytest
from conftest import MIB, in_child
from kernel import PROT_READ, PROT_WRITE, protect, unmap
from measure import PRESENT, SOFT_DIRTY, pagemap

from arena import CommitError, Reservation

Verb = Literal["read", "write"]
SIZE = 2 * MIB
PAGE = mmap.PAGESIZE

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture
def r() -> Iterator[Reservation]:
    with Reservation(SIZE, pages="4K") as reservation:
        yield reservation


def populated(r: Reservation) -> int:
    return sum(bool(entry & PRESENT) for entry in pagemap(r.address, r.size))


def refuses(r: Reservation, verb: Verb, err: int) -> Callable[[], None]:
    """In a child: the commit fails with err, and leaves no page behind."""

    def work() -> None:
        with pytest.raises(CommitError) as caught:
            r.commit(populate=verb)
        assert caught.value.errno == err, caught.value
        assert caught.value.hint
        assert r.committed == 0
        assert populated(r) == 0

    return work


def commits(r: Reservation, verb: Verb) -> Callable[[], None]:
    def work() -> None:
        assert r.commit(populate=verb) == SIZE
        assert populated(r) == SIZE // PAGE

    return work


@pytest.mark.parametrize(
    ("protection", "verb", "works"),
    [
        (PROT_READ, "read", True),
        (PROT_READ, "write", False),
        (PROT_WRITE, "read", False),
        (PROT_WRITE, "write", True),
    ],
)
def test_protection(r: Reservation, protection: int, verb: Verb, works: bool) -> None:
    def work() -> None:
        protect(r.address, SIZE, protection)
        (commits(r, verb) if works else refuses(r, verb, errno.EINVAL))()

    in_child(work)


@pytest.mark.parametrize("verb", ["read", "write"])
@pytest.mark.parametrize(
    ("offset", "nbytes"), [(PAGE, PAGE), (SIZE - PAGE, PAGE), (0, PAGE)], ids=["in the middle", "at the end", "first"]
)
def test_holes(r: Reservation, offset: int, nbytes: int, verb: Verb) -> None:
    def work() -> None:
        unmap(r.address + offset, nbytes)
        refuses(r, verb, errno.ENOMEM)()
        # The rest of it is as good as before.
        rest = (offset + nbytes) % SIZE
        assert r.commit(PAGE, offset=rest, populate=verb) == PAGE
        os._exit(0)  # what is not mapped is not to be unmapped either

    in_child(work)


@pytest.mark.parametrize("verb", ["read", "write"])
def test_populates(r: Reservation, verb: Verb) -> None:
    assert populated(r) == 0
    assert r.commit(populate=verb) == SIZE
    assert populated(r) == SIZE // PAGE
    assert r.release() == SIZE
    assert populated(r) == 0


def soft_dirty(r: Reservation) -> int:
    return sum(bool(entry & SOFT_DIRTY) for entry in pagemap(r.address, r.size))


def clear_soft_dirty() -> None:
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("4")


def kernel_has_soft_dirty(r: Reservation) -> bool:
    """By its effect: where it is not built in, the bit never shows."""
    r.commit(PAGE)
    shows = soft_dirty(r) > 0
    r.release()
    return shows


def test_soft_dirty(r: Reservation) -> None:
    if not kernel_has_soft_dirty(r):
        pytest.skip("a kernel without soft-dirty bits (CONFIG_MEM_SOFT_DIRTY)")

    def work() -> None:
        clear_soft_dirty()
        assert soft_dirty(r) == 0
        r.commit(populate="read")
        assert soft_dirty(r) == 0
        r.commit(populate="write")
        assert soft_dirty(r) == SIZE // PAGE

    in_child(work)
