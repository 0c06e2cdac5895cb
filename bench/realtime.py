"""What arena.realtime costs: the guard around a cycle, a pool's take() and put(), and a sparse reservation under locks.

The latencies themselves are what `python -m arena bench latency` is for.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import time
from itertools import repeat

import _measure as m

import arena
from arena.realtime import Pool, count_page_faults, no_page_faults

native = m.load_native()
LOOPS = 200_000

UNDER_LOCKS = """
from arena import Arena, Reservation
from arena.realtime import lock_memory, unlock_memory

def status(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key + ":"))

lock_memory()
Arena("1MiB").close()
before, locked = status("VmRSS"), status("VmLck")
a = Arena("64GiB", lock=True)
print((status("VmRSS") - before) / 1024)
unlock_memory()
before, locked = status("VmRSS"), status("VmLck")
block = a.alloc("4MiB")
del block
a.trim()
print(status("VmLck") - locked, (status("VmRSS") - before) / 1024)
"""


def empty_loop() -> float:
    start = time.perf_counter()
    for _ in repeat(None, LOOPS):
        pass
    return (time.perf_counter() - start) / LOOPS


def guarded(guard: count_page_faults) -> float:
    start = time.perf_counter()
    for _ in repeat(None, LOOPS):
        with guard:
            pass
    return (time.perf_counter() - start) / LOOPS - empty_loop()


def looks() -> float:
    return m.checked(native.rusage_pairs(LOOPS)) / LOOPS


def taking(pool: Pool) -> float:
    take, put = pool.take, pool.put
    start = time.perf_counter()
    for _ in repeat(None, LOOPS):
        put(take())
    return (time.perf_counter() - start) / LOOPS


def main() -> None:
    _, parse = m.arguments(__doc__)
    args = parse()
    report = m.Report("realtime")
    guards = {"no_page_faults": no_page_faults(allow_minor=1 << 30), "count_page_faults": count_page_faults()}
    cases: dict[str, m.Case] = {"two bare getrusage calls": looks}
    cases |= {name: functools.partial(guarded, guard) for name, guard in guards.items()}
    samples = m.interleave(cases, args.repeat)
    report.keep("enter and exit", samples)
    bare = samples["two bare getrusage calls"]
    for name in guards:
        on_top = [1e6 * (with_ - without) for with_, without in zip(samples[name], bare, strict=True)]
        report.value(f"{name}: enter and exit, on top of two getrusage calls", m.at_most(0.5, "µs"), on_top, "µs")
    with arena.Arena("64MiB") as memory, Pool(memory, "64KiB", 16) as pool:
        floor = m.load_floor().Floor()
        samples = m.interleave(
            {"Pool": functools.partial(taking, pool), "no-op methods": functools.partial(taking, floor)}, args.repeat
        )
    report.keep("take and put", samples)
    report.times_cost(
        "Pool: take() and put(), against two no-op methods", m.at_most(1.5), samples["Pool"], samples["no-op methods"]
    )
    done = subprocess.run([sys.executable, "-c", UNDER_LOCKS], capture_output=True, text=True, check=False)
    if done.returncode:
        report.notes.append(f"locks are not permitted here: {done.stderr.strip().splitlines()[-1]}")
    else:
        added, locked, left = (float(word) for word in done.stdout.split())
        what = "resident memory that a 64 GiB arena adds under lock_memory()"
        report.value(what, m.below(1, "MiB"), [added], "MiB")
        report.value("VmLck after a release of locked memory", m.at_most(0, "KiB"), [locked], "KiB")
        report.value("resident memory after that", m.at_most(1, "MiB"), [left], "MiB")
    report.finish(args.json)


if __name__ == "__main__":
    main()
