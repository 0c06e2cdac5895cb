"""Allocating, writing and freeing, beside what else a Python programmer can allocate with.

The allocators run in worker processes (NumPy under a preloaded malloc needs one of its own), and take turns, size by
size and round by round. A worker writes a byte per page of each block in C, in two ways: through the buffer protocol,
with the same function for all, as readinto() and its like do; and by the shortest way that each kind of object has to
its memory, which spares NumPy its slow export of a buffer.

The cost of alloc() itself is measured against the least that a Python allocator can cost: a call of a method of an
extension type that does nothing, plus an extension object without anything in it made and dropped. The same in one
call, a method that makes the object, stands beside it.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import _measure as m

KIB = 1 << 10
SIZES = {4 * KIB: 2.0, 64 * KIB: 2.5, m.MIB: 0.9, 16 * m.MIB: 0.9, 64 * m.MIB: 1.1}
BURSTS = ((64, m.MIB), (8, 16 * m.MIB))
UNIFORM, SHORTEST, BURST = "through the buffer protocol", "by the shortest way", "burst"
PRELOADED = {"mimalloc": "libmimalloc.so.2", "jemalloc": "libjemalloc.so.2"}
FOLDERS = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib")


# --- in the worker ----------------------------------------------------------------------------------------------------

Alloc = Callable[[int], Any]
Touch = Callable[[Any], None]


@dataclass
class Allocator:
    alloc: Alloc
    unit: int  # bytes that one unit of alloc's argument stands for
    shortest: Touch


def allocators() -> dict[str, Allocator]:
    import numpy as np

    floor = m.load_floor()
    empty = Allocator(np.empty, 8, floor.touch_doubles)
    if "LD_PRELOAD" in os.environ:
        return {"np.empty": empty}
    import arena

    pool = arena.Arena("4GiB")
    pool.warm("1GiB")
    found = {
        "arena": Allocator(pool.alloc, 1, floor.touch_buffer),
        "arena.empty": Allocator(pool.empty, 8, floor.touch_doubles),
        "np.empty": empty,
        "bytearray": Allocator(bytearray, 1, floor.touch_bytearray),
    }
    try:
        import pyarrow as pa
    except ImportError:
        return found
    for name in ("system", "mimalloc", "jemalloc"):
        try:
            memory_pool = getattr(pa, f"{name}_memory_pool")()
        except NotImplementedError:  # this wheel was built without it
            continue
        allocate = functools.partial(pa.allocate_buffer, memory_pool=memory_pool)
        found[f"pyarrow {name}"] = Allocator(allocate, 1, floor.touch_buffer)
    return found


def last_in_first_out(alloc: Alloc, touch: Touch, argument: int, loops: int) -> float:
    start = time.perf_counter()
    for _ in repeat(None, loops):
        touch(alloc(argument))
    return (time.perf_counter() - start) / loops


def burst(alloc: Alloc, touch: Touch, argument: int, count: int) -> float:
    held: list[Any] = [None] * count
    time.sleep(0.05)
    start = time.perf_counter()
    for i in range(count):
        held[i] = block = alloc(argument)
        touch(block)
    spent = time.perf_counter() - start
    del block
    held.clear()
    return spent / count


def work() -> None:
    """Commands come as lines of JSON, and answers go back."""
    gc.disable()
    known = allocators()
    print(json.dumps(list(known)), flush=True)
    uniform = m.load_floor().touch_buffer
    for line in sys.stdin:
        name, how, size, count = json.loads(line)
        one = known[name]
        touch = one.shortest if how == SHORTEST else uniform
        measure = burst if how == BURST else last_in_first_out
        print(measure(one.alloc, touch, size // one.unit, count), flush=True)


class Worker:
    def __init__(self, preload: str | None = None) -> None:
        env = dict(os.environ)
        if preload:
            env["LD_PRELOAD"] = preload
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        self.names: list[str] = json.loads(self.answer())

    def answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("a worker ended early")
        return line

    def measure(self, name: str, how: str, size: int, count: int) -> float:
        assert self.process.stdin is not None
        print(json.dumps([name, how, size, count]), file=self.process.stdin, flush=True)
        return float(self.answer())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def workers(report: m.Report) -> dict[str, tuple[Worker, str]]:
    """By the name in the report: the worker, and the name that it knows the allocator by."""
    plain = Worker()
    found = {name: (plain, name) for name in plain.names}
    for name, library in PRELOADED.items():
        path = next((p for p in (Path(folder) / library for folder in FOLDERS) if p.exists()), None)
        if path is None:
            report.notes.append(f"np.empty under {name}: left out, no {library} here (apt-get install lib{name}...)")
        else:
            found[f"np.empty under {name}"] = (Worker(str(path)), "np.empty")
    for name in ("system", "mimalloc", "jemalloc"):
        if f"pyarrow {name}" not in found:
            report.notes.append(f"pyarrow's {name} pool: left out, this pyarrow (or none) does not have it")
    return found


def case(worker: Worker, name: str, how: str, size: int, count: int) -> m.Case:
    return lambda: worker.measure(name, how, size, count)


def against_others(report: m.Report, rounds: int) -> None:
    found = workers(report)
    others = [name for name in found if not name.startswith("arena")]
    for size, target in SIZES.items():
        loops = max(20, min(20000, (1 << 30) // size))
        for how in (UNIFORM, SHORTEST):
            s = m.interleave({name: case(*found[name], how, size, loops) for name in found}, rounds)
            report.keep(f"alloc, write {how}, free, {in_bytes(size)}", s)
            best = min(others, key=lambda name: statistics.median(s[name]))
            what = f"alloc, write {how}, free, {in_bytes(size)}, vs the best of the others ({best})"
            report.times_faster(what, m.at_least(target), s[best], s["arena"])
    for worker in {worker for worker, _ in found.values()}:
        worker.close()


def bursts(report: m.Report, rounds: int) -> None:
    for count, size in BURSTS:
        # A new process for each: whether malloc trims its heap depends on what happened to lie at its end before.
        worker = Worker()
        s = m.interleave({name: case(worker, name, BURST, size, count) for name in ("arena", "np.empty")}, rounds)
        worker.close()
        report.keep(f"burst of {count} x {in_bytes(size)}, per alloc", s)
        what = f"burst of {count} x {in_bytes(size)}, per alloc with a byte per page, vs np.empty"
        report.times_faster(what, m.at_least(25), s["np.empty"], s["arena"])


# --- the cost of alloc() itself ---------------------------------------------------------------------------------------


def per_call(function: Callable[..., object], *argument: object, loops: int = 100_000) -> float:
    """Seconds, the loop's own included."""
    if not argument:
        start = time.perf_counter()
        for _ in repeat(None, loops):
            function()
        return (time.perf_counter() - start) / loops
    [one] = argument
    start = time.perf_counter()
    for _ in repeat(None, loops):
        function(one)
    return (time.perf_counter() - start) / loops


def calling(function: Callable[..., object], *argument: object) -> m.Case:
    return functools.partial(per_call, function, *argument)


def empty_loop(loops: int = 100_000) -> float:
    start = time.perf_counter()
    for _ in repeat(None, loops):
        pass
    return (time.perf_counter() - start) / loops


def bare_cost(report: m.Report, rounds: int) -> None:
    import numpy as np

    import arena

    compiled = m.load_floor()
    floor = compiled.Floor()
    pool = arena.Arena("1GiB")
    pool.warm("256MiB")
    sizes = [64 << (2 * i) for i in range(11)]  # 64 B to 64 MiB
    cases: dict[str, m.Case] = {
        "empty loop": empty_loop,
        "no-op method": calling(floor.noop, 64),
        "bare object": calling(compiled.Bare),
        "method that makes one": calling(floor.make, 64),
        "np.empty(16)": calling(np.empty, 16),
        "bytearray(16)": calling(bytearray, 16),
    }
    cases |= {f"alloc({in_bytes(size)})": calling(pool.alloc, size) for size in sizes}
    s = m.interleave(cases, rounds)
    report.keep("one call", s)
    first = s[f"alloc({in_bytes(sizes[0])})"]
    # Two calls have two loops in them, and alloc() has one.
    parts = zip(s["no-op method"], s["bare object"], s["empty loop"], strict=True)
    least = [method + bare - loop for method, bare, loop in parts]
    what = "alloc(64) and drop, vs a no-op method + a bare object made and dropped"
    report.times_cost(what, m.at_most(2.0), first, least)
    report.times_cost("  vs a method that makes a bare object", None, first, s["method that makes one"])
    report.times_cost("alloc(64) and drop, vs np.empty(16)", m.at_most(1.0), first, s["np.empty(16)"])
    by_size = [s[f"alloc({in_bytes(size)})"] for size in sizes]
    rounds_of = [max(values) / min(values) for values in zip(*by_size, strict=True)]
    shortest = [min(values) for values in by_size]
    report.add(
        "alloc(n) and drop, n from 64 B to 64 MiB, largest over smallest",
        m.at_most(1.3),
        sorted(rounds_of)[len(rounds_of) // 2],
        max(shortest) / min(shortest),
    )


def many_live(report: m.Report, rounds: int, blocks: int) -> None:
    """The same calls with so many blocks live, and a tenth as many holes among them."""
    import arena

    pick = random.Random(1)
    empty, full = arena.Arena("2GiB"), arena.Arena("2GiB")
    empty.warm("1GiB")
    full.warm("1GiB")
    sizes = pick.choices((64, 128, 256, 512, 1024), k=blocks * 11 // 10)
    held: list[arena.Block | None] = [full.alloc(size) for size in sizes]
    for i in pick.sample(range(len(held)), len(held) - blocks):
        held[i] = None
    live = full.stats().blocks
    for size in (64, 4 * KIB, m.MIB):
        s = m.interleave({"empty": calling(empty.alloc, size), "many": calling(full.alloc, size)}, rounds)
        report.keep(f"alloc({in_bytes(size)}) and drop, by blocks live", s)
        what = f"alloc({in_bytes(size)}) and drop with {live:,} blocks live, vs an empty arena"
        report.times_cost(what, m.at_most(1.5), s["many"], s["empty"])


def in_bytes(size: int) -> str:
    for unit, n in (("MiB", m.MIB), ("KiB", KIB)):
        if size >= n:
            return f"{size // n} {unit}"
    return f"{size} B"


def main() -> None:
    parser, parse = m.arguments(__doc__, repeat=15)
    parser.add_argument("--blocks", type=int, default=1_000_000, help="live blocks (default: %(default)s)")
    parser.add_argument("--worker", action="store_true", help="for this program itself: serve on stdin and stdout")
    args = parse()
    if args.worker:
        work()
        return
    report = m.Report("alloc")
    gc.disable()
    bare_cost(report, args.repeat)
    many_live(report, args.repeat, args.blocks)
    against_others(report, args.repeat)
    bursts(report, args.repeat)
    report.finish(args.json)


if __name__ == "__main__":
    main()
