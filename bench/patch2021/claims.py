"""What the patch says about speed, held against a table: does it hold there?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from .mappings import ARENA, MIB, TYPES, MappingType
from .table import Table

__all__ = ["CANNOT_SAY", "FAILS", "HOLDS", "Case", "Claim", "judge"]

NOISE = 0.05  # a difference below this is none
SMALL = 2 * MIB
MATTERS = 1.0  # ms
NEARLY = 0.25  # small pages have factors

HOLDS, FAILS, CANNOT_SAY = "holds", "does not hold", "cannot be said here"


@dataclass(frozen=True)
class Case:
    """What one mapping says: a ratio of times, or milliseconds; and whether that is for the claim, against it, or (no
    difference where one was claimed) neither."""

    kind: MappingType
    value: float
    speaks: str  # "for", "against" or "neither"
    note: str = ""


@dataclass(frozen=True)
class Claim:
    sentence: str
    figure: str  # what the cases' values are
    verdict: str
    cases: tuple[Case, ...]


Judge = Callable[[Table, int, MappingType], "Case | None"]


def faster(method: str, *others: str) -> Judge:
    """Faster than the fastest of the others."""

    def look(table: Table, size: int, kind: MappingType) -> Case | None:
        ours = table.ms(size, kind, method)
        theirs = [ms for other in others if (ms := table.ms(size, kind, other)) is not None]
        if ours is None or len(theirs) < len(others):
            return None
        ratio = ours / min(theirs)
        return Case(kind, ratio, "for" if ratio < 1 - NOISE else "against" if ratio > 1 + NOISE else "neither")

    return look


def as_fast(method: str, other: str) -> Judge:
    def look(table: Table, size: int, kind: MappingType) -> Case | None:
        ours, theirs = table.ms(size, kind, method), table.ms(size, kind, other)
        if ours is None or not theirs:
            return None
        ratio = ours / theirs
        return Case(kind, ratio, "for" if abs(ratio - 1) <= NOISE else "against")

    return look


def best(method: str) -> Judge:
    """None that allocates and maps is faster."""

    def look(table: Table, size: int, kind: MappingType) -> Case | None:
        ours = table.ms(size, kind, method)
        others = {
            other: ms
            for other in kind.methods
            if other not in (method, ARENA)
            and kind.allocates_and_maps(other)
            and (ms := table.ms(size, kind, other)) is not None
        }
        if ours is None or not others:
            return None
        rival = min(others, key=others.__getitem__)
        ratio = ours / others[rival]
        return Case(kind, ratio, "against" if ratio > 1 + NOISE else "for", rival if ratio > 1 + NOISE else "")

    return look


def spread(table: Table, size: int, kind: MappingType) -> list[float]:
    times = [table.ms(size, kind, method) for method in kind.methods if method != ARENA]
    return sorted(ms for ms in times if ms is not None)


def all_alike(table: Table, size: int, kind: MappingType) -> Case | None:
    times = spread(table, size, kind)
    if len(times) < 2:
        return None
    ratio = times[-1] / times[0]
    return Case(kind, ratio, "for" if ratio <= 1 + NEARLY else "against")


def hardly_matters(table: Table, size: int, kind: MappingType) -> Case | None:
    times = spread(table, size, kind)
    if len(times) < 2:
        return None
    return Case(kind, times[-1] - times[0], "for" if times[-1] - times[0] < MATTERS else "against")


def kinds(sharing: str, *backings: str) -> list[MappingType]:
    return [kind for kind in TYPES if kind.sharing == sharing and kind.backing in backings]


SMALL_PAGES = ("Anon 4 KiB", "Memfd 4 KiB", "tmpfs", "file")
FILES = ("Memfd 4 KiB", "tmpfs", "file")
MAPPING_METHODS = [method for method in MappingType("shared", "tmpfs").methods if method not in ("FALLOCATE", ARENA)]

# The sentence, what its figures are, which mappings it is about, and how one of them is judged.
CLAIMS: list[tuple[str, str, list[MappingType], Judge]] = [
    (
        "Private: POPULATE_READ is faster than reading",
        "POPULATE_READ ÷ Read",
        kinds("private", *SMALL_PAGES),
        faster("POPULATE_READ", "Read"),
    ),
    (
        "Private: POPULATE_WRITE is the fastest way to allocate and prefault",
        "POPULATE_WRITE ÷ the faster of Write and Read/Write",
        kinds("private", *SMALL_PAGES),
        faster("POPULATE_WRITE", "Write", "Read/Write"),
    ),
    (
        "Shared: FALLOCATE alone, which maps nothing, is faster than all that map",
        "FALLOCATE ÷ the fastest of all others",
        kinds("shared", *FILES),
        faster("FALLOCATE", *MAPPING_METHODS),
    ),
    (
        "Shared: POPULATE_WRITE is faster than writing, and than reading and writing",
        "POPULATE_WRITE ÷ the faster of Write and Read/Write",
        kinds("shared", *SMALL_PAGES),
        faster("POPULATE_WRITE", "Write", "Read/Write"),
    ),
    (
        "Shared: POPULATE_READ is faster than reading",
        "POPULATE_READ ÷ Read",
        kinds("shared", *SMALL_PAGES),
        faster("POPULATE_READ", "Read"),
    ),
    (
        "Shared, without a descriptor: POPULATE_WRITE is the fastest way to allocate and prefault",
        "POPULATE_WRITE ÷ the fastest of all others",
        kinds("shared", "Anon 4 KiB"),
        best("POPULATE_WRITE"),
    ),
    (
        "Shared, memory with a descriptor: FALLOCATE+POPULATE_WRITE is the fastest way to allocate and prefault",
        "FALLOCATE+POPULATE_WRITE ÷ the fastest of all others that do both",
        kinds("shared", "Memfd 4 KiB", "tmpfs"),
        best("FALLOCATE+POPULATE_WRITE"),
    ),
    (
        "Real files: FALLOCATE+POPULATE_READ, which leaves them clean, is the fastest way to allocate and prefault",
        "FALLOCATE+POPULATE_READ ÷ the fastest of all others that do both",
        kinds("shared", "file"),
        best("FALLOCATE+POPULATE_READ"),
    ),
    (
        "Real files: FALLOCATE+Read is about as fast as that",
        "FALLOCATE+Read ÷ FALLOCATE+POPULATE_READ",
        kinds("shared", "file"),
        as_fast("FALLOCATE+Read", "FALLOCATE+POPULATE_READ"),
    ),
    (
        f"With huge pages the differences nearly vanish (all within {NEARLY:.0%})",
        "the slowest method ÷ the fastest",
        [kind for kind in TYPES if kind.huge],
        all_alike,
    ),
]
SMALL_CLAIM = f"On small mappings (2 MiB) the differences do not matter (less than {MATTERS:g} ms)"


def judge(table: Table) -> list[Claim]:
    """Every claim, on the largest mappings that were measured, and the last on those of 2 MiB."""
    size = table.largest
    claims = [
        conclude(sentence, figure, (look(table, size, kind) for kind in about))
        for sentence, figure, about, look in CLAIMS
    ]
    cases = (hardly_matters(table, SMALL, kind) for kind in TYPES)
    return [*claims, conclude(SMALL_CLAIM, "ms, the slowest method - the fastest", cases)]


def conclude(sentence: str, figure: str, looks: Iterable[Case | None]) -> Claim:
    """It holds where something is for it and nothing against it."""
    cases = [case for case in looks if case is not None]
    return Claim(sentence, figure, verdict(cases), tuple(cases))


def verdict(cases: Sequence[Case]) -> str:
    if not cases:
        return CANNOT_SAY
    said = {case.speaks for case in cases}
    return HOLDS if "for" in said and "against" not in said else FAILS
