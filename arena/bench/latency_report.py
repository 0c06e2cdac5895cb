"""The latencies in words: tables, histograms and figures for a terminal, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ..draw import bar, table
from ..errors import amount
from .cycles import Samples
from .ways import ARENA, RESIDENT

__all__ = ["Row", "as_csv", "as_json", "as_text", "figures", "histogram"]

PERCENTILES = (("p50", 50.0), ("p99", 99.0), ("p99.9", 99.9), ("p99.99", 99.99), ("max", 100.0))
LARGE = 64 << 20
CHANCE = 0.01  # of a bound that is wrong

T = TypeVar("T", int, float)


@dataclass(frozen=True)
class Row:
    """What was measured of one way in one case."""

    size: int
    page: int  # a byte each so many, or 0: filled
    pressure: str
    paced: bool
    way: str
    samples: Samples
    locked: bool = False  # the whole process

    @property
    def written(self) -> str:
        return "a byte a page" if self.page else "filled"

    def memory(self, percent: float) -> float:
        return percentile(self.samples.memory, percent)

    @property
    def tail(self) -> float:
        return self.memory(99.9) / self.memory(50)

    @property
    def faults(self) -> int:
        """The page faults of whole cycles if all is locked, else those in the buffers: the interpreter has its own."""
        return self.samples.cycle_faults if self.locked else self.samples.buffer_faults


def percentile(values: Sequence[T], percent: float) -> T:
    """Return a percentile by nearest rank: of fewer than 10,000 values p99.99 is the largest."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * percent / 100), len(ordered) - 1)]


def at_least(values: Sequence[int], percent: float) -> int:
    """Return a percentile; of too few values for it, a bound that it is not below, but for a chance of 1%.

    The k-th largest of n is above it when k or more of them are, and how many are has a Poisson distribution.
    """
    expected = len(values) * (1 - percent / 100)
    if expected >= 1:
        return percentile(values, percent)
    k, term = 1, math.exp(-expected)
    above = 1 - term  # the probability that k or more are
    while above > CHANCE and k < len(values):
        term *= expected / k
        above -= term
        k += 1
    return sorted(values)[-k]


def microseconds(ns: float) -> str:
    return f"{ns / 1e3:,.1f}" if ns < 1e5 else f"{ns / 1e3:,.0f}"


def as_text(rows: Sequence[Row]) -> str:
    paced = [row for row in rows if row.paced]
    parts = [
        "Wake-up latency, us\n" + percentiles(paced, wake=True),
        "The memory part of a cycle, us\n" + percentiles(paced),
        "As fast as it goes: the memory part of a cycle, us, under all pressures\n"
        + percentiles([row for row in rows if not row.paced]),
        *(f"{row.way}, {row.pressure}: the memory part\n{bars(row)}" for row in paced if row.pressure == "neighbour"),
        table(["figure", "target", "measured", "reached"], [[f[0], f[1], f[2], f[3]] for f in figures(rows)]),
    ]
    return "\n\n".join(parts)


def percentiles(rows: Sequence[Row], *, wake: bool = False) -> str:
    header = ["", "way", "cycles", *(name for name, _ in PERCENTILES), "faults", "in all"]
    lines = []
    for row in rows:
        values = row.samples.wake if wake else row.samples.memory
        lines.append(
            [
                f"{amount(row.size)} {row.written}, {row.pressure}",
                row.way,
                f"{len(values):,}",
                *(microseconds(percentile(values, percent)) for _, percent in PERCENTILES),
                f"{row.samples.buffer_faults / len(values):,.2f}",
                f"{row.samples.cycle_faults / len(values):,.2f}",
            ]
        )
    return table(header, lines)


def histogram(values: Sequence[int]) -> dict[int, int]:
    """Count the values in each [2**k, 2**(k+1)) microseconds; those below 1 us count as 1."""
    counts: dict[int, int] = {}
    for value in values:
        k = max(value // 1000, 1).bit_length() - 1
        counts[k] = counts.get(k, 0) + 1
    return {k: counts.get(k, 0) for k in range(min(counts), max(counts) + 1)}


def bars(row: Row) -> str:
    counts = histogram(row.samples.memory)
    most = max(counts.values())
    return "\n".join(f"{1 << k:>9,} us  {bar(count, most, 40)}  {count:,}" for k, count in counts.items())


def figures(rows: Sequence[Row]) -> list[tuple[str, str, str, str]]:
    """Return each figure with its target, what was measured, and whether that reaches the target."""
    found = []

    def figure(name: str, target: str, value: str, reached: bool, few: str = "") -> None:
        found.append((name, target, value + few, "too few cycles" if few else "yes" if reached else "no"))

    for row in rows:
        if row.way == ARENA:
            pace = "loop" if row.paced else "unpaced"
            where = "" if row.locked else " in buffers"
            name = f"faults a cycle{where}, {pace}, {amount(row.size)} {row.written}, {row.pressure}"
            figure(name, "0", f"{row.faults / len(row.samples.memory):g}", row.faults == 0)
    at = {(row.size, row.page, row.way): row for row in rows if not row.paced}
    for size, page, way in at:
        if way != ARENA:
            continue
        ours, floor = at[size, page, ARENA], at[size, page, RESIDENT]
        case = f"{amount(size)} {ours.written}"
        ratio = ours.tail / floor.tail
        few = fewer_than(1000, ours, floor)
        figure(f"p99.9/p50 to memset's, {case}", "<= 1.2", f"{ratio:.2f}", ratio <= 1.2, few)
        for other in ("np.empty", "bytearray"):
            if (size, page, other) in at:
                theirs = at[size, page, other]
                times = at_least(theirs.samples.memory, 99.99) / ours.memory(99.99)
                least = 10 if size == LARGE and page else 1
                few = fewer_than(10000, ours)
                bound = "" if enough(10000, theirs) else "at least "
                if bound and times < least:
                    few = few or fewer_than(10000, theirs)
                figure(f"p99.99 of {other} to ours, {case}", f">= {least}", f"{bound}{times:.2f}", times >= least, few)
    return found


def enough(cycles: int, row: Row) -> bool:
    return len(row.samples.memory) >= cycles


def fewer_than(cycles: int, *rows: Row) -> str:
    """Say of a percentile that it is a maximum, if it is."""
    few = [row for row in rows if not enough(cycles, row)]
    return f" (max of {min(len(row.samples.memory) for row in few):,})" if few else ""


def columns(row: Row) -> dict[str, Any]:
    found: dict[str, Any] = {
        "size": row.size,
        "written": row.written,
        "pressure": row.pressure,
        "paced": row.paced,
        "way": row.way,
        "cycles": len(row.samples.memory),
    }
    for name, percent in PERCENTILES:
        found[f"wake_{name}_ns"] = percentile(row.samples.wake, percent) if row.paced else None
        found[f"memory_{name}_ns"] = percentile(row.samples.memory, percent)
    found["buffer_faults"] = row.samples.buffer_faults
    found["cycle_faults"] = row.samples.cycle_faults
    return found


def as_csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    lines = [columns(row) for row in rows]
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def as_json(rows: Sequence[Row], about: dict[str, Any], said: str) -> str:
    whole = {
        "benchmark": "latency",
        "machine": about,
        "conditions": said,
        "rows": [
            columns(row)
            | {"memory_ns": row.samples.memory.tolist(), "wake_ns": row.samples.wake.tolist() if row.paced else None}
            for row in rows
        ],
        "figures": [dict(zip(("figure", "target", "measured", "reached"), f, strict=True)) for f in figures(rows)],
    }
    return json.dumps(whole, ensure_ascii=False) + "\n"
