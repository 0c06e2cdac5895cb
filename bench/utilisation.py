"""How full an arena is when the first request fails, beside best fit on the same requests; and what the index costs.

The arena is filled until a request fails; then, twenty times, half of the blocks are freed at random and it is
filled again. Sizes follow a power law. Both allocators get the same sizes, in granules of 64 bytes, and merge at once.
Best fit is that of bench/bestfit.c; the free-space index is csrc/alloc/freelist.c alone, all of its arena committed.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path

import _measure as m

CSRC = m.HERE.parent / "csrc"
ARENAS = (64 * m.MIB, m.GIB)
EXPONENTS = (1.2, 1.5, 2.0)  # bytes live mostly in large blocks, in between, and evenly over all sizes
LEAST, MOST = 64, m.MIB
SEEDS = (11, 23, 37, 41, 53)
ROUNDS = 20
GRANULE = 64
BLOCKS, BLOCK = 1_000_000, 4096


def load() -> ctypes.CDLL:
    compiler = os.environ.get("CC", "cc" if shutil.which("cc") else "gcc")
    sources = [str(m.HERE / "bestfit.c"), *(str(CSRC / "alloc" / f"freelist{part}.c") for part in ("", "_commit"))]
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "_bestfit.so"
        flags = ["-O2", "-shared", "-fPIC", "-std=gnu11", "-Wall", f"-I{CSRC}"]
        subprocess.run([compiler, *flags, *sources, "-lm", "-o", str(target)], check=True)
        library = ctypes.CDLL(str(target))
    real, integer = ctypes.c_double, ctypes.c_uint64
    library.utilisation.argtypes = [
        *(ctypes.c_int, integer, real, real, real, integer, ctypes.c_uint32),
        ctypes.POINTER(real),
    ]
    library.index_bytes.argtypes, library.index_bytes.restype = [integer, integer], ctypes.c_int64
    return library


def measure(native: ctypes.CDLL, ours: bool, arena: int, exponent: float, seed: int) -> list[float]:
    out = (ctypes.c_double * (ROUNDS + 1))()
    if native.utilisation(ours, arena // GRANULE, exponent, LEAST, MOST, seed, ROUNDS, out):
        raise MemoryError("the benchmark's own tables")
    return list(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures and every sample to FILE")
    args = parser.parse_args()
    native = load()
    report = m.Report("utilisation")
    every: list[list[float]] = []
    print("arena     exponent  seed   first fill: ours, best fit, ratio   after churn: ours, best fit, ratio")
    for arena in ARENAS:
        for exponent in EXPONENTS:
            ratios: list[float] = []
            for seed in SEEDS:
                ours, best = (measure(native, mine, arena, exponent, seed) for mine in (True, False))
                ratios += [a / b for a, b in zip(ours, best, strict=True)]
                group = f"{arena // m.MIB} MiB, exponent {exponent}, seed {seed}"
                report.keep(group, {"arena": ours, "best fit": best}, "of the arena")
                print(
                    f"{arena // m.MIB:4} MiB  {exponent:8}  {seed:4}"
                    f"   {ours[0]:16.1%}  {best[0]:8.1%}  {ours[0] / best[0]:5.3f}"
                    f"   {statistics.mean(ours[1:]):17.1%}  {statistics.mean(best[1:]):8.1%}"
                    f"  {statistics.mean(ratios[-ROUNDS:]):5.3f}",
                    flush=True,
                )
            mean = statistics.mean(ratios)
            what = f"utilisation at the first failure vs best fit, {arena // m.MIB} MiB, exponent {exponent}, mean"
            report.add(what, m.at_least(0.9), mean, mean)
            every.append(ratios)
    print()
    mean = statistics.mean(map(statistics.mean, every))
    report.add("utilisation at the first failure vs best fit, mean of all", m.at_least(0.9), mean, mean)
    least = min(map(min, every))
    report.add("utilisation at the first failure vs best fit, the worst of all rounds", None, least, least)
    percent = 100 * native.index_bytes(BLOCKS, BLOCK // GRANULE) / (BLOCKS * BLOCK)
    report.add(f"index, {BLOCKS:,} blocks of 4 KiB", m.below(1, "%"), percent, percent, "%")
    report.finish(args.json)


if __name__ == "__main__":
    main()
