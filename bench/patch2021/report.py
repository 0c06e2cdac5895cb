"""The table in words: for a terminal of 100 columns, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
import itertools
import json
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from arena import draw
from arena.errors import amount

from .claims import CANNOT_SAY, Case, Claim, judge
from .mappings import ARENA, MIB, MappingType
from .table import Row, Table

__all__ = ["as_csv", "as_json", "as_text"]

WIDTH = 100
PAGES_WERE_THERE = (
    "In 2021 private reads of a memfd, tmpfs or file took a fraction of shared ones (137 ms, not 1,078), as if their "
    "pages had been in the file already; here each file is empty, so these ratios differ for more than the machine."
)


def as_text(here: Table, then: Table) -> str:
    parts = [*the_table(here, then), the_best(here, then), the_claims(here, then)]
    return "\n\n".join(parts)


# --- numbers ----------------------------------------------------------------------------------------------------------


def milliseconds(ms: float | None) -> str:
    if ms is None:
        return "-"
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.1f}" if ms >= 10 else f"{ms:.3f}"


def times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"


def ratio_then(then: Table, row: Row) -> float | None:
    return then.ratio(then.like(row.size), row.kind, row.method)


# --- for a terminal ---------------------------------------------------------------------------------------------------


def the_table(here: Table, then: Table) -> Iterator[str]:
    """Two sizes side by side."""
    for sizes in [here.sizes[i : i + 2] for i in range(0, len(here.sizes), 2)]:
        header = ["milliseconds, the shortest"]
        for size in sizes:
            header += [amount(size), "median", "÷ Write", "2021"]
        blocks = [block(here, then, sizes, kind) for kind in here.kinds]
        lines = iter(draw.table(header, [row for rows, _ in blocks for row in rows]).splitlines())
        said = [next(lines)]
        for rows, remarks in blocks:
            said += ["", *itertools.islice(lines, len(rows)), *remarks]
        yield "\n".join(said)
    if any(kind.sharing == "private" and kind.has_file and not kind.huge for kind in here.kinds):
        yield "\n".join(wrapped(PAGES_WERE_THERE, ""))


def block(here: Table, then: Table, sizes: Sequence[int], kind: MappingType) -> tuple[list[list[str]], list[str]]:
    """Of one mapping: the lines of the table, the first with its name, and what is to be said of missing ones."""
    lines = [[str(kind), *[""] * 4 * len(sizes)]]
    for method in kind.methods:
        rows = [here.at[size, kind, method] for size in sizes]
        if any(row.samples for row in rows):
            lines.append([f"  {method}", *(cell for row in rows for cell in four(here, then, row))])
    return lines, why_missing([here.at[size, kind, method] for size in sizes for method in kind.methods])


def four(here: Table, then: Table, row: Row) -> list[str]:
    before = times(ratio_then(then, row))
    if not row.samples:
        return ["-", "-", "-", before]
    return [
        milliseconds(row.ms),
        milliseconds(row.median),
        times(here.ratio(row.size, row.kind, row.method)),
        before,
    ]


def why_missing(rows: Sequence[Row]) -> list[str]:
    """A remark for each reason."""
    lines = []
    sizes, methods = {row.size for row in rows}, {row.method for row in rows}
    for reason in dict.fromkeys(row.missing for row in rows if row.missing):
        concerned = [row for row in rows if row.missing == reason]
        which: list[str] = []
        if {row.size for row in concerned} != sizes:
            which += dict.fromkeys(amount(row.size) for row in concerned)
        if {row.method for row in concerned} != methods:
            which += dict.fromkeys(row.method for row in concerned)
        lines += wrapped(f"not here: {', '.join(which)}{': ' if which else ''}{reason}", "  ")
    return lines


def the_best(here: Table, then: Table) -> str:
    """The fastest of the patch's methods that allocate and map, and the arena."""
    size = here.largest
    rows = []
    for kind in here.kinds:
        best, before, arena = here.best(size, kind), then.best(then.like(size), kind), here.ms(size, kind, ARENA)
        rows.append(
            [
                str(kind),
                best.method if best else "-",
                milliseconds(best.ms if best else None),
                before.method if before else "-",
                milliseconds(arena),
                f"{best.ms / arena:.2f} x" if best and arena else "-",
            ]
        )
    header = ["", "here", "ms", "in 2021", "arena ms", "as fast"]
    said = [f"The best method to have {amount(size)} allocated and mapped", "", draw.table(header, rows)]
    if any(str(kind) == "shared file" for kind in here.kinds):
        said += wrapped(
            "A file that was only read is clean, and the first write to each of its pages still faults.", ""
        )
    return "\n".join(said)


def the_claims(here: Table, then: Table) -> str:
    before = {claim.sentence: {case.kind: case for case in claim.cases} for claim in judge(then)}
    lines = [f"What the patch says, on mappings of {amount(here.largest)} (in brackets the figures of 2021)"]
    for claim in judge(here):
        lines += ["", *wrapped(f"{claim.verdict.upper()}: {claim.sentence}.", "")]
        if claim.verdict == CANNOT_SAY:
            continue
        both = len({case.kind.sharing for case in claim.cases}) > 1
        figures = ", ".join(in_words(case, before[claim.sentence].get(case.kind), both) for case in claim.cases)
        lines += wrapped(f"{claim.figure}: {figures}", "  ")
    return "\n".join(lines)


def in_words(case: Case, before: Case | None, with_sharing: bool) -> str:
    name = str(case.kind) if with_sharing else case.kind.backing
    figure = f"{name} {case.value:.2f}" + (f" ({before.value:.2f})" if before else "")
    note = {"for": "", "neither": " no difference", "against": " AGAINST"}[case.speaks]
    return figure + note + (f": {case.note}" if case.note else "")


def wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + "  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


# --- for programs -----------------------------------------------------------------------------------------------------


def columns(here: Table, then: Table, row: Row) -> dict[str, Any]:
    """The names of the published table, and more; None for what there is not."""
    like = then.like(row.size)
    return {
        "size_mib": row.size / MIB if row.size % MIB else row.size // MIB,
        "mapping": row.kind.sharing,
        "backing": row.kind.backing,
        "method": row.method,
        "ms": row.ms if row.samples else None,
        "median_ms": row.median if row.samples else None,
        "ratio_to_write": here.ratio(row.size, row.kind, row.method),
        "published_size_mib": like // MIB,
        "published_ms": then.ms(like, row.kind, row.method),
        "published_ratio_to_write": ratio_then(then, row),
        "missing": row.missing or None,
    }


def as_csv(here: Table, then: Table) -> str:
    rows = [columns(here, then, row) for row in here.rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_json(here: Table, then: Table, about: dict[str, Any]) -> str:
    size = here.largest
    best = {}
    for kind in here.kinds:
        row = here.best(size, kind)
        best[str(kind)] = row.method if row else None
    whole = {
        "benchmark": "populate",
        "machine": about,
        "rows": [columns(here, then, row) | {"samples_ms": list(row.samples)} for row in here.rows],
        "best": best,
        "claims": [claim_as_dict(claim) for claim in judge(here)],
    }
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def claim_as_dict(claim: Claim) -> dict[str, Any]:
    cases = [
        {"mapping": case.kind.sharing, "backing": case.kind.backing, "value": case.value, "speaks": case.speaks}
        for case in claim.cases
    ]
    return {"claim": claim.sentence, "verdict": claim.verdict, "figure": claim.figure, "cases": cases}
