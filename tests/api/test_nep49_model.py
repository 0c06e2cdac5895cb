"""The four functions of a data handler against a model: what is allocated, and what was written there."""

from __future__ import annotations

import ctypes
import gc

import pytest
from conftest import MIB
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from arena import Arena, ArenaFullError

pytest.importorskip("numpy")
from test_nep49 import Handler

SIZES = st.one_of(st.integers(0, 300), st.integers(3000, 70_000), st.integers(1, 12).map(lambda n: n * MIB // 4))


def sample(n: int) -> list[tuple[int, int]]:
    """Which parts of n bytes are written and looked at."""
    return [(0, n)] if n <= 256 else [(0, 64), (n // 2, 64), (n - 64, 64)]


class Machine(RuleBasedStateMachine):
    names = Bundle("names")

    @initialize(overflow=st.booleans(), gil=st.booleans(), retain=st.sampled_from([None, 0, MIB]))
    def start(self, overflow: bool, gil: bool, retain: int | None) -> None:
        self.arena = Arena("8MiB", chunk="64KiB", retain=retain)
        self.handler = Handler(self.arena, overflow=overflow, gil=gil)
        self.overflow = overflow
        self.held: dict[int, tuple[int, int, int]] = {}  # by name: address, bytes, what is in them
        self.named = 0

    def write(self, at: int | None, n: int) -> int:
        self.named += 1
        if at is None:
            assert not self.overflow and isinstance(self.arena.last_error, ArenaFullError)
            return 0
        if self.inside(at):
            assert at % 64 == 0
        mark = self.named % 251 + 1
        for start, length in sample(n):
            ctypes.memset(at + start, mark, length)
        self.held[self.named] = (at, n, mark)
        return self.named

    def inside(self, at: int) -> bool:
        return self.arena.address <= at < self.arena.address + self.arena.size

    def check(self, at: int, n: int, mark: int, part: int) -> None:
        for start, length in sample(n):
            length = min(length, part - start)
            assert length <= 0 or ctypes.string_at(at + start, length) == bytes([mark]) * length

    @rule(target=names, n=SIZES)
    def malloc(self, n: int) -> int:
        return self.write(self.handler.malloc(n), n)

    @rule(target=names, n=SIZES, each=st.sampled_from([1, 3]))
    def calloc(self, n: int, each: int) -> int:
        at = self.handler.calloc(n // each, each)
        if at is not None:
            assert ctypes.string_at(at, n // each * each) == bytes(n // each * each)
        return self.write(at, n // each * each)

    @rule(target=names, name=consumes(names), n=SIZES)
    def realloc(self, name: int, n: int) -> int:
        if not name:
            return 0
        at, had, mark = self.held[name]
        moved = self.handler.realloc(at, n)
        if moved is None:
            assert not self.overflow
            self.check(at, had, mark, had)
            return name
        self.check(moved, had, mark, n)
        del self.held[name]
        return self.write(moved, n)

    @rule(name=consumes(names), wrong=st.integers(0, 1 << 40))
    def free(self, name: int, wrong: int) -> None:
        if name:
            at, n, mark = self.held.pop(name)
            self.check(at, n, mark, n)
            self.handler.free(at, wrong)

    @rule()
    def trim(self) -> None:
        self.arena.trim()

    @invariant()
    def the_ledger_agrees(self) -> None:
        if not hasattr(self, "held"):
            return
        ours = sorted((at, max(n, 1)) for at, n, _ in self.held.values() if self.inside(at))
        found = [(self.arena.address + offset, nbytes) for offset, nbytes in self.arena.blocks()]
        assert [(at, -(-n // 64) * 64) for at, n in ours] == found

    def teardown(self) -> None:
        if hasattr(self, "held"):
            for at, n, mark in self.held.values():
                self.check(at, n, mark, n)
                self.handler.free(at, 0)
            assert self.arena.stats().live == 0
            gc.collect()


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
