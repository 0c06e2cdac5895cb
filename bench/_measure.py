"""What the benchmarks have in common: interleaving, memory that is warm, the table, JSON, and the compiled helpers.

Times on a shared machine wander, so nothing is measured alone: the cases of a comparison take turns, round by round,
and a figure is the median of the rounds' ratios, beside the ratio of the two shortest times.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import importlib.machinery
import importlib.util
import json
import operator
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

HERE = Path(__file__).resolve().parent
MIB = 1 << 20
GIB = 1 << 30
HUGE_PAGE = 2 * MIB

# A BLAS that starts its threads on import would make this a process with other threads, to which a commit is polite
# (stall.py measures what that costs). So this module comes before NumPy in every benchmark.
for _variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

sys.path.append(str(HERE.parent))  # a checkout that was built in place; an installed arena comes first

from arena.bench.machine import machine as what_figures_depend_on  # noqa: E402
from arena.bench.machine import resident as resident  # noqa: E402

# --- arguments --------------------------------------------------------------------------------------------------------


def arguments(
    description: str | None, *, repeat: int = 11, size: str | None = None
) -> tuple[argparse.ArgumentParser, Callable[[], argparse.Namespace]]:
    """A parser with the common options, to add more to, and the function that parses."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures and every sample to FILE")
    parser.add_argument("--repeat", type=int, default=repeat, metavar="N", help="rounds (default: %(default)s)")
    if size is not None:
        parser.add_argument("--size", default=size, help="how much memory (default: %(default)s)")

    def parse() -> argparse.Namespace:
        args = parser.parse_args()
        if size is not None:
            from arena.sizes import parse_size

            args.size = parse_size(args.size, "size")
        return args

    return parser, parse


# --- measuring --------------------------------------------------------------------------------------------------------

Case = Callable[[], float]
Pages = Literal["4K", "thp"]
Samples = dict[str, list[float]]


def interleave(cases: Mapping[str, Case], repeat: int, before: Callable[[], object] | None = None) -> Samples:
    """Each case returns what it measured. They take turns, starting with another one each round; the first round only
    warms up. `before` runs ahead of every single case."""
    names = list(cases)
    samples: Samples = {name: [] for name in names}
    for round_ in range(-1, repeat):
        for i in range(len(names)):
            name = names[(round_ + i) % len(names)]
            if before is not None:
                before()
            value = cases[name]()
            if round_ >= 0:
                samples[name].append(value)
    return samples


def ratios(above: Sequence[float], below: Sequence[float]) -> tuple[float, float]:
    """The median of the rounds' ratios, and the ratio of the shortest times."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True)), min(above) / min(below)


def warm_machine(nbytes: int) -> None:
    """Populates and releases memory, ahead of every sample that needs fresh memory: in a virtual machine the host takes
    back what the guest has freed, a few seconds later, and the first populate after that measures the host."""
    native = load_native()
    at = native.range_new(nbytes, 1)
    if at:
        native.touch_pages(at + HUGE_PAGE - 1, nbytes - HUGE_PAGE, HUGE_PAGE)
        native.bare_populate(at, nbytes)
        native.range_drop(at, nbytes)


# --- the table --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """What a figure has to reach: at_least(2.0) times, below(20, "µs")."""

    sign: str
    value: float
    unit: str = "x"

    def met(self, value: float) -> bool:
        compare = {">=": operator.ge, "<=": operator.le, "<": operator.lt}[self.sign]
        return bool(compare(value, self.value))

    def __str__(self) -> str:
        return f"{self.sign} {amount(self.value, self.unit)}"


def at_least(value: float, unit: str = "x") -> Target:
    return Target(">=", value, unit)


def at_most(value: float, unit: str = "x") -> Target:
    return Target("<=", value, unit)


def below(value: float, unit: str = "x") -> Target:
    return Target("<", value, unit)


def amount(value: float, unit: str) -> str:
    digits = f"{value:.0f}" if value == int(value) and abs(value) < 1e6 else f"{value:.3g}"
    return f"{digits} {unit}".rstrip()


@dataclass
class Figure:
    what: str
    target: str
    median: float
    best: float
    unit: str
    reached: str


@dataclass
class Report:
    """The figures of one benchmark."""

    name: str
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    samples: dict[str, Any] = field(default_factory=dict)

    def add(self, what: str, target: Target | None, median: float, best: float, unit: str = "x") -> None:
        reached = ""
        if target is not None:
            reached = "yes" if target.met(median) else "at best" if target.met(best) else "NO"
        self.figures.append(Figure(what, str(target or ""), median, best, unit, reached))

    def times_faster(self, what: str, target: Target | None, other: Sequence[float], ours: Sequence[float]) -> None:
        self.add(what, target, *ratios(other, ours))

    def times_cost(self, what: str, target: Target | None, ours: Sequence[float], other: Sequence[float]) -> None:
        self.add(what, target, *ratios(ours, other))

    def value(self, what: str, target: Target | None, values: Iterable[float], unit: str) -> None:
        found = sorted(values)
        self.add(what, target, statistics.median(found), found[0], unit)

    def keep(self, group: str, samples: Mapping[str, Sequence[float]], unit: str = "s") -> None:
        """The samples go to the JSON file, and their median and minimum to the terminal."""
        self.samples[group] = {"unit": unit, "of": {name: list(values) for name, values in samples.items()}}
        if unit == "s":
            parts = [f"{n} {in_words(statistics.median(v))} (min {in_words(min(v))})" for n, v in samples.items() if v]
            self.notes.append(f"{group}: " + ", ".join(parts))

    def finish(self, path: Path | None) -> None:
        for note in self.notes:
            print(note)
        print()
        print_table(self.figures)
        if path is not None:
            path.write_text(json.dumps(self.as_dict(), indent=1) + "\n", encoding="utf-8")

    def as_dict(self) -> dict[str, Any]:
        return {
            "benchmark": self.name,
            "machine": machine(),
            "figures": [vars(figure) for figure in self.figures],
            "notes": self.notes,
            "samples": self.samples,
        }


def in_words(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def print_table(figures: Sequence[Figure]) -> None:
    rows = [("figure", "target", "median", "best", "reached")]
    rows += [(f.what, f.target, amount(f.median, f.unit), amount(f.best, f.unit), f.reached) for f in figures]
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    for n, row in enumerate(rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if n == 0:
            print("  ".join("-" * width for width in widths))


def machine() -> dict[str, Any]:
    return what_figures_depend_on() | {"load": os.getloadavg()[0]}


# --- compiled helpers -------------------------------------------------------------------------------------------------

Signatures = Mapping[str, tuple[Any, Sequence[Any]]]  # what it returns, and what it takes

_NATIVE: Signatures = {
    "range_new": (ctypes.c_void_p, [ctypes.c_size_t, ctypes.c_int]),
    "range_drop": (None, [ctypes.c_void_p, ctypes.c_size_t]),
    "bare_populate": (ctypes.c_int64, [ctypes.c_void_p, ctypes.c_size_t]),
    "bare_release": (ctypes.c_int64, [ctypes.c_void_p, ctypes.c_size_t]),
    "bare_map_populate": (ctypes.c_int64, [ctypes.c_size_t]),
    "touch_pages": (ctypes.c_int64, [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]),
    "time_pages": (None, [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]),
    "fill_bytes": (ctypes.c_int64, [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]),
    "stream_zero": (ctypes.c_int64, [ctypes.c_void_p, ctypes.c_size_t]),
    "walk_lines": (ctypes.c_int64, [ctypes.c_void_p, ctypes.c_size_t]),
    "not_zero": (ctypes.c_int64, [ctypes.c_void_p, ctypes.c_size_t]),
    "page_faults": (ctypes.c_int64, []),
    "rusage_pairs": (ctypes.c_int64, [ctypes.c_int64]),
    "neighbour_start": (
        ctypes.c_int,
        [ctypes.c_int, ctypes.c_void_p, ctypes.py_object, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_size_t],
    ),
    "neighbour_count": (ctypes.c_int64, []),
    "neighbour_failed": (ctypes.c_int, []),
    "neighbour_stop": (ctypes.c_int64, []),
    "many_blocks": (ctypes.c_int64, [ctypes.c_void_p, ctypes.py_object, ctypes.c_int64, ctypes.c_uint64]),
}


def _compile(source: str, target: Path, *options: str) -> None:
    compiler = os.environ.get("CC", "cc" if shutil.which("cc") else "gcc")
    flags = ["-O2", "-shared", "-fPIC", "-std=gnu11", "-Wall", "-pthread", *options]
    subprocess.run([compiler, *flags, str(HERE / source), "-o", str(target)], check=True)


def _include() -> str:
    """Where arena.h is: beside bench/ in a checkout, else with the installed package."""
    beside = HERE.parent / "csrc" / "include"
    if beside.is_dir():
        return str(beside)
    import arena

    return arena.get_include()


def load(source: str, signatures: Signatures, *options: str) -> ctypes.CDLL:
    """A file of this folder, compiled; its calls release the GIL."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "library.so"
        _compile(source, target, *options)
        library = ctypes.CDLL(str(target))
    for name, (result, parameters) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, parameters
    return library


@functools.cache
def load_native() -> ctypes.CDLL:
    """_native.c."""
    return load("_native.c", _NATIVE, f"-I{_include()}")


@functools.cache
def load_counting() -> ctypes.CDLL:
    """_counting.c: NumPy's allocator with counters."""
    return load("_counting.c", {"counted_made": (ctypes.c_int64, []), "counted_gone": (ctypes.c_int64, [])})


@functools.cache
def load_floor() -> Any:
    """_floor.c, as an extension module of this interpreter."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "_floor.so"
        _compile("_floor.c", target, f"-I{sysconfig.get_paths()['include']}")
        loader = importlib.machinery.ExtensionFileLoader("_floor", str(target))
        spec = importlib.util.spec_from_loader("_floor", loader)
        if spec is None:
            raise ImportError("_floor.c was compiled but cannot be loaded")
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
    return module


def c_api() -> int:
    """The address of the table that arena hands to other extensions."""
    import arena._core

    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return int(get(vars(arena._core)["_C_API"], b"arena._core._C_API"))


def checked(nanoseconds: int) -> float:
    """Seconds, of what a native function measured."""
    if nanoseconds < 0:
        raise OSError(-nanoseconds, os.strerror(-nanoseconds))
    return nanoseconds / 1e9
