"""A state machine over Arena. The model is a dict of ranges."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

from arena import Arena, ArenaFullError, Block

pytestmark = pytest.mark.slow  # the same on every CPython

KIB = 1024
SIZE = 4 << 20

sizes = st.one_of(
    st.integers(1, 300),
    st.integers(1, 64 * KIB),
    st.integers(1, SIZE + 100),
    st.sampled_from([64, 4096, 64 * KIB, SIZE]),
)


class ArenaMachine(RuleBasedStateMachine):
    blocks = Bundle("blocks")

    @initialize(chunk=st.sampled_from(["4KiB", "64KiB", "2MiB"]), retain=st.sampled_from([None, 0, "128KiB", "1MiB"]))
    def start(self, chunk: str, retain: str | int | None) -> None:
        self.arena = Arena(SIZE, chunk=chunk, retain=retain)
        self.size = self.arena.size
        self.model: dict[int, tuple[Block, int, int]] = {}  # offset -> block, rounded size, the byte it is filled with
        self.fill = itertools.cycle(range(1, 256))

    def adopt(self, block: Block) -> Block:
        start, end = block.offset, block.offset + -(-len(block) // 64) * 64
        for offset, (_, size, _) in self.model.items():
            assert end <= offset or offset + size <= start, "blocks overlap"
        assert end <= self.size
        byte = next(self.fill)
        block[:] = bytes([byte]) * len(block)
        self.model[start] = (block, end - start, byte)
        return block

    def intact(self, block: Block) -> None:
        byte = self.model[block.offset][2]
        assert bytes(block[:]) == bytes([byte]) * len(block)

    def largest_free(self) -> int:
        at, largest = 0, 0
        for offset in sorted(self.model):
            largest = max(largest, offset - at)
            at = offset + self.model[offset][1]
        return max(largest, self.size - at)

    @rule(target=blocks, n=sizes, shift=st.integers(6, 12), zero=st.booleans(), grow=st.booleans())
    def alloc(self, n: int, shift: int, zero: bool, grow: bool) -> Block | None:
        committed = self.arena.stats().committed
        try:
            block = self.arena.alloc(n, align=1 << shift, zero=zero, grow=grow)
        except ArenaFullError as error:
            if grow:
                assert n + (1 << shift) > self.largest_free()
                assert error.available == self.largest_free()
            return None
        assert grow or self.arena.stats().committed == committed
        assert block.offset % (1 << shift) == 0
        if zero:
            assert not any(block[:])
        return self.adopt(block)

    @rule(block=consumes(blocks))
    def free(self, block: Block | None) -> None:
        if block is not None and not block.freed:
            self.intact(block)
            del self.model[block.offset]
            block.free()

    @rule(block=blocks, n=sizes)
    def resize(self, block: Block | None, n: int) -> None:
        if block is None or block.freed:
            return
        self.intact(block)
        kept = min(n, len(block))
        byte = self.model[block.offset][2]
        try:
            block.resize(n)
        except ArenaFullError:
            self.intact(block)
            return
        assert bytes(block[:kept]) == bytes([byte]) * kept
        del self.model[block.offset]
        self.adopt(block)

    @rule(keep=st.integers(0, SIZE))
    def trim(self, keep: int) -> None:
        before = self.arena.stats()
        freed = self.arena.trim(keep)
        after = self.arena.stats()
        assert before.committed - after.committed == freed
        assert after.free_committed >= min(keep, before.free_committed)

    @rule(n=st.integers(1, SIZE))
    def warm(self, n: int) -> None:
        try:
            self.arena.warm(n)
        except ArenaFullError:
            assert n > self.largest_free()
        else:
            self.arena.alloc(n, grow=False)

    @precondition(lambda self: len(self.model) > 3)
    @rule()
    def reset(self) -> None:
        self.arena.reset()
        assert all(block.freed for block, _, _ in self.model.values())
        self.model.clear()

    @invariant()
    def ledger(self) -> None:
        if not hasattr(self, "arena"):
            return
        s = self.arena.stats()
        assert s.blocks == len(self.model)
        assert s.live == sum(size for _, size, _ in self.model.values())
        assert s.largest_free == self.largest_free()
        assert s.free_committed == s.committed - s.live
        assert self.arena.residency().present == s.committed
        assert list(self.arena.blocks()) == [(offset, self.model[offset][1]) for offset in sorted(self.model)]

    def teardown(self) -> None:
        if not hasattr(self, "arena"):
            return
        for block, _, _ in self.model.values():
            self.intact(block)
        self.model.clear()


TestArenaMachine = ArenaMachine.TestCase
TestArenaMachine.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
