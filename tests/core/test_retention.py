"""What an arena keeps of its free memory, and when it gives back the rest: the policy alone, time passed in."""

from __future__ import annotations

from typing import Any

import pytest
from core._core import EVER, ffi, library

pytestmark = pytest.mark.slow  # the same on every CPython

CHUNK = 100


class Retention:
    def __init__(self, retain: int = 0, decay_ns: int = 0) -> None:
        self.lib = library()
        self.r = ffi.new("struct retention *", {"retain": retain, "decay_ns": decay_ns})

    def note(self, free: int) -> None:
        self.lib.note(self.r, free)

    def freed(self, free: int, now: int = 0) -> bool:
        return bool(self.lib.freed(self.r, free, now, CHUNK))

    def to_purge(self, free: int) -> int:
        return int(self.lib.retention_to_purge(self.r, free))

    def purged(self, n: int, free: int) -> None:
        self.lib.retention_purged(self.r, n, free)

    def warm(self, n: int) -> int:
        return int(self.lib.retention_warm(self.r, n))

    def unwarm(self, n: int, before: int) -> None:
        self.lib.retention_unwarm(self.r, n, before)


@pytest.mark.parametrize(
    ("retain", "warmed", "free", "purged"),
    [(0, 0, 1000, 1000), (400, 0, 1000, 600), (400, 700, 1000, 300), (700, 400, 1000, 300), (1000, 0, 1000, 0),
     (0, 2000, 1000, 0), (EVER, 0, 1000, 0)],
)  # fmt: skip
def test_without_decay_all_that_is_too_much_goes_at_once(retain: int, warmed: int, free: int, purged: int) -> None:
    r = Retention(retain)
    r.warm(warmed)
    assert r.freed(free) == (purged >= CHUNK)
    assert r.to_purge(free) == purged


def test_less_than_a_chunk_is_not_worth_a_purge() -> None:
    r = Retention(400)
    assert not r.freed(499)
    assert r.freed(500)


def test_with_decay_the_low_water_mark_of_a_whole_window_goes() -> None:
    r = Retention(0, decay_ns=10)
    assert not r.freed(1000, now=5)  # the window begins
    r.note(300)  # some of it was in use for a moment
    assert not r.freed(1000, now=14)
    assert r.freed(1000, now=15) and r.to_purge(1000) == 300
    r.purged(200, 800)
    assert r.to_purge(800) == 100
    assert not r.freed(800, now=24) or r.to_purge(800) == 100  # what was purgeable stays so
    assert r.freed(800, now=25) and r.to_purge(800) == 800


def test_what_is_used_again_is_not_purged() -> None:
    r = Retention(0, decay_ns=10)
    r.freed(1000, now=1)
    assert r.freed(1000, now=11)
    r.note(250)
    assert r.to_purge(250) == 250
    assert r.to_purge(1000) == 250  # nor more than that, before another window has passed


def test_a_window_does_not_wrap() -> None:
    r = Retention(0, decay_ns=EVER - 1)
    r.freed(1000, now=5)
    assert not r.freed(1000, now=EVER - 1)
    assert r.freed(1000, now=EVER)


def test_a_warming_that_fails_keeps_what_was_kept_before() -> None:
    r = Retention()
    assert r.warm(300) == 0
    before = r.warm(700)
    r.unwarm(700, before)
    assert r.freed(1000) and r.to_purge(1000) == 700
    before = r.warm(500)
    r.warm(900)  # by another thread
    r.unwarm(500, before)
    assert r.to_purge(1000) == 100
    assert r.warm(100) == 900 and r.to_purge(1000) == 100  # the largest counts


def test_at_the_end_nothing_is_kept() -> None:
    r: Any = Retention(EVER, decay_ns=10)
    r.warm(500)
    r.lib.retention_end(r.r)
    assert r.to_purge(1000) == 1000
