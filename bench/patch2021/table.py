"""The rows of the table: measured here, or published with the patch in 2021."""

from __future__ import annotations

import csv
import errno
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from arena import Reservation

from . import calls
from .mappings import ARENA, MIB, Machine, MappingType, NotHereError

__all__ = ["Row", "Table", "measure", "published"]

SLACK = 16 * MIB  # what the kernel takes beside the pages themselves, and more


@dataclass(frozen=True)
class Row:
    """One method on a mapping of ``size`` bytes: milliseconds, run by run; where there are none, ``missing`` says
    why."""

    size: int
    kind: MappingType
    method: str
    samples: tuple[float, ...] = ()
    missing: str = ""

    @property
    def ms(self) -> float:
        """The shortest, as in the patch."""
        return min(self.samples)

    @property
    def median(self) -> float:
        return statistics.median(self.samples)


class Table:
    """Rows in order, and the shortest time of each, or its ratio to plain Write's."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = list(rows)
        self.at = {(row.size, row.kind, row.method): row for row in self.rows}
        self.sizes = sorted({row.size for row in self.rows})
        self.largest = max((row.size for row in self.rows if row.samples), default=self.sizes[-1])
        self.kinds = list(dict.fromkeys(row.kind for row in self.rows))

    def ms(self, size: int, kind: MappingType, method: str) -> float | None:
        row = self.at.get((size, kind, method))
        return row.ms if row and row.samples else None

    def ratio(self, size: int, kind: MappingType, method: str) -> float | None:
        ours, write = self.ms(size, kind, method), self.ms(size, kind, "Write")
        return ours / write if ours is not None and write else None

    def like(self, size: int) -> int:
        """The size in this table that behaves most like ``size``: the smallest is small by itself."""
        return self.sizes[0] if size <= self.sizes[0] else self.sizes[-1]

    def best(self, size: int, kind: MappingType) -> Row | None:
        """The fastest of the patch's methods that allocate and map."""
        rows = [self.at.get((size, kind, m)) for m in kind.methods if m != ARENA and kind.allocates_and_maps(m)]
        return min((row for row in rows if row and row.samples), key=lambda row: row.ms, default=None)


def published() -> Table:
    """The figures of 2021: 2 MiB and 4 GiB."""
    text = Path(__file__).with_name("published-2021.csv").read_text(encoding="ascii")
    return Table(
        Row(
            int(line["size_mib"]) * MIB,
            MappingType(line["mapping"], line["backing"]),
            line["method"],
            (float(line["ms"]),),
        )
        for line in csv.DictReader(text.splitlines())
    )


# --- measuring --------------------------------------------------------------------------------------------------------


def warm(machine: Machine, kind: MappingType, size: int) -> None:
    """Populates as much memory in pages of that size, and gives it back: in a virtual machine the host takes what the
    guest has freed, and the first populate after that measures the host; the same is true of huge pages that nobody
    has used yet. OSError where there is not that much memory: this looks first, where a touch would end in the OOM
    killer."""
    if kind.huge:
        with machine.fresh(MappingType("private", "Anon 2 MiB"), size) as (mapping, _):
            calls.touch(mapping, kind.page, reading=False, writing=True)
    else:
        with Reservation(size * kind.footprint + SLACK, pages="4K") as memory:
            memory.commit()


def sample(machine: Machine, kind: MappingType, size: int, method: str) -> float:
    """Milliseconds that one method took on a fresh mapping. OSError and NotHereError where it cannot be had."""
    if method == ARENA:
        with machine.reservation(kind, size) as memory:
            start = time.perf_counter_ns()
            memory.commit(threads=1)
            return (time.perf_counter_ns() - start) / 1e6
    with machine.fresh(kind, size) as (mapping, fd):
        taken = 0
        for step in method.split("+"):
            if step == "FALLOCATE":
                taken += calls.allocate(fd, size)
            elif step.startswith("POPULATE"):
                taken += calls.populate(mapping, writing=step.endswith("WRITE"))
            else:
                taken += calls.touch(mapping, kind.page, reading="Read" in step, writing="Write" in step)
        return taken / 1e6


def why(error: Exception, method: str) -> str:
    if isinstance(error, OSError) and error.errno == errno.EINVAL and "POPULATE" in method:
        return "this kernel has no MADV_POPULATE (Linux 5.14 has), or a sandbox forbids it"
    return getattr(error, "strerror", None) or str(error)


def measure(
    machine: Machine,
    kinds: Sequence[MappingType],
    sizes: Sequence[int],
    runs: int,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Table:
    """Every method on every mapping. ``progress(done, total)`` counts bytes."""
    total = sum(size * len(kind.methods) * runs for size in sizes for kind in kinds)
    done = 0

    def tick(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        progress(done, total)

    return Table(row for size in sizes for kind in kinds for row in every_method(machine, kind, size, runs, tick))


def every_method(
    machine: Machine, kind: MappingType, size: int, runs: int, tick: Callable[[int], object]
) -> Iterator[Row]:
    """They take turns, beginning with another one each run."""
    samples: dict[str, list[float]] = {method: [] for method in kind.methods}
    missing: dict[str, str] = {}
    for run in range(runs):
        for i in range(len(kind.methods)):
            method = kind.methods[(run + i) % len(kind.methods)]
            affected = kind.methods
            try:
                if method not in missing:
                    machine.check(kind, size)
                    warm(machine, kind, size)
                    affected = [method]
                    samples[method].append(sample(machine, kind, size, method))
            except (NotHereError, OSError) as error:
                missing |= dict.fromkeys(affected, why(error, method))
            tick(size)
    for method in kind.methods:
        # What failed once is no row of fewer runs.
        reason = missing.get(method, "")
        yield Row(size, kind, method, () if reason else tuple(samples[method]), reason)
