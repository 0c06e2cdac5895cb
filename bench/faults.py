"""What is counted and not timed: resident memory that a large arena costs, page faults in memory that is there, and the
memory of the index.

The faults are the process's own (getrusage), so everything counts: the blocks, the arena's bookkeeping and what Python
does meanwhile. A rehearsal in another arena brings the interpreter's own memory to where it stays.
"""

from __future__ import annotations

import gc
import math
import random
import time

import _measure as m

import arena

native = m.load_native()
SLOTS = 64


def empty_arena() -> float:
    """MiB that Arena("1TiB") makes resident."""
    before = m.resident()
    made = arena.Arena("1TiB")
    cost = m.resident() - before
    made.close()
    return cost / m.MIB


def write_one(size: int) -> int:
    with arena.Arena(2 * size) as pool:
        block = pool.alloc(size)
        address = block.address
        before = native.page_faults()
        native.fill_bytes(address, 255, size)
        count = native.page_faults() - before
        block.free()
    return int(count)


class Churn:
    """Blocks of 64 B to 64 MiB, log-uniform, written and freed in random order."""

    def __init__(self, seed: int) -> None:
        pick = random.Random(seed)
        self.sizes = [int(math.exp(pick.uniform(math.log(64), math.log(64 * m.MIB)))) for _ in range(4096)]
        self.slots = [pick.randrange(SLOTS) for _ in range(4096)]

    def run(self, pool: arena.Arena, seconds: float) -> tuple[int, int]:
        """(faults, blocks)"""
        live: list[arena.Block | None] = [None] * SLOTS
        alloc, fill, clock, faults = pool.alloc, native.fill_bytes, time.monotonic, native.page_faults
        blocks = 0
        end = clock() + seconds
        before = faults()
        while clock() < end:
            for size, slot in zip(self.sizes, self.slots, strict=True):
                live[slot] = None
                live[slot] = block = alloc(size, grow=False)
                fill(block.address, 255, size)
                blocks += 1
                if clock() >= end:
                    break
        after = faults()
        return after - before, blocks


def churn(report: m.Report, seconds: float) -> None:
    plan = Churn(1)
    for attempt in ("rehearsal", "counted"):
        with arena.Arena("16GiB") as pool:
            pool.warm("4GiB")
            gc.collect()
            gc.disable()
            count, blocks = plan.run(pool, 1.0 if attempt == "rehearsal" else seconds)
            gc.enable()
    report.notes.append(f"{blocks} blocks of 64 B to 64 MiB allocated, written whole and freed in {seconds:g} s")
    what = f"page faults in {seconds:g} s of alloc, write, free, 64 B to 64 MiB"
    report.value(what, m.at_most(0, "faults"), [count], "faults")


def index_size(blocks: int, block: int) -> float:
    """Percent of the blocks' bytes that the index needs, without Python objects."""
    pool = arena.Arena(2 * blocks * block)
    pool.alloc(64).free()
    before = m.resident() - pool.stats().committed
    made = native.many_blocks(m.c_api(), pool, blocks, block)
    if made != blocks:
        raise MemoryError(f"room for {made} blocks only")
    after = m.resident() - pool.stats().committed
    pool.reset()
    pool.close()
    return (after - before) * 100 / (blocks * block)


def main() -> None:
    parser, parse = m.arguments(__doc__, repeat=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of alloc, write, free (default: %(default)s)")
    parser.add_argument("--blocks", type=int, default=1_000_000, help="for the index (default: %(default)s)")
    args = parse()
    report = m.Report("faults")
    arena.Arena("1MiB").close()  # what the first arena of a process finds out about the kernel
    costs = [empty_arena() for _ in range(args.repeat)]
    report.value('resident memory that Arena("1TiB") costs', m.below(1, "MiB"), costs, "MiB")
    write_one(m.MIB)
    counts = [write_one(256 * m.MIB) for _ in range(args.repeat)]
    what = "page faults while writing every byte of a 256 MiB block"
    report.value(what, m.at_most(0, "faults"), counts, "faults")
    churn(report, args.seconds)
    share = [index_size(args.blocks, 4096) for _ in range(args.repeat)]
    report.value(f"the index for {args.blocks:,} blocks of 4 KiB", m.below(1, "%"), share, "%")
    report.finish(args.json)


if __name__ == "__main__":
    main()
