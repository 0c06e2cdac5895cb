"""The findings as text for a terminal, and as JSON.

The JSON is one object. Its fields stay; new ones may come, and then "schema" does not change::

    schema    1; another number when a field goes or changes its meaning
    use       "realtime", "numpy", "sharing", or null: the core itself
    blocked   whether something blocks that use: the exit status
    findings  objects in the order of the text, each with
        topic    "place", "kernel", "memory", "pages", "locking", "scheduling" or "sharing"
        name     what it is about: stable, and once only
        value    in words
        verdict  "blocks you", "limits you", "good" or "information"
        reason   one sentence
        mend     null, or how (what takes the line: arena.doctor.Mend), line, and where it goes
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict

from .finding import VERDICTS, Finding, Use
from .judge import blocked

__all__ = ["as_json", "as_text"]


def as_json(findings: Sequence[Finding], use: Use | None) -> str:
    """Return the findings as a JSON object, as above."""
    whole = {
        "schema": 1,
        "use": use,
        "blocked": blocked(list(findings)),
        "findings": [asdict(finding) for finding in findings],
    }
    return json.dumps(whole, indent=1, ensure_ascii=False)


def as_text(findings: Sequence[Finding], use: Use | None, *, width: int = 100, bold: bool = False) -> str:
    """Return the findings as text: a headline, what blocks and limits with the lines that mend it, then the rest."""
    counts = ", ".join(f"{verdict}: {sum(f.verdict == verdict for f in findings)}" for verdict in VERDICTS[:3])
    parts = [f"For {use or 'the core itself'}, {counts}."]
    column = max((len(f.name) for f in findings), default=0) + 2
    for verdict in VERDICTS:
        these = [f for f in findings if f.verdict == verdict]
        if these:
            parts += ["", f"\033[1m{verdict}\033[0m" if bold else verdict]
        for f in these:
            parts += textwrap.wrap(
                f.value, width, initial_indent=f"  {f.name.ljust(column)}", subsequent_indent=" " * (column + 2)
            )
            if verdict not in ("good", "information"):
                parts += _advice(f, width)
    return "\n".join(parts) + "\n"


def _advice(f: Finding, width: int) -> list[str]:
    indent = " " * 6
    lines = textwrap.wrap(f.reason, width, initial_indent=indent, subsequent_indent=indent)
    if f.mend is not None:
        # The line is not wrapped: it is there to be copied.
        lines += [f"{indent}→ {f.mend.line}"]
        lines += textwrap.wrap(f.mend.where, width, initial_indent=f"{indent}  ", subsequent_indent=f"{indent}  ")
    return lines
