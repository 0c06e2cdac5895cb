"""What a finding is: one fact, what it means for a use, and the line that mends it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ..advice import Mend
from ..errors import amount

__all__ = ["USES", "VERDICTS", "Finding", "Topic", "Use", "Verdict", "among", "limited", "unknown"]

Use: TypeAlias = Literal["realtime", "numpy", "sharing"]
USES: tuple[Use, ...] = ("realtime", "numpy", "sharing")

Verdict: TypeAlias = Literal["blocks you", "limits you", "good", "information"]
VERDICTS: tuple[Verdict, ...] = ("blocks you", "limits you", "good", "information")
"""The worst first."""

Topic: TypeAlias = Literal["place", "kernel", "memory", "pages", "locking", "scheduling", "sharing"]


@dataclass(frozen=True)
class Finding:
    """One thing that this machine, container or process can or cannot do."""

    topic: Topic
    name: str
    """What programs look for: it does not change. Where the kernel has a name for the thing, this is it."""
    value: str
    """What was found, in words."""
    verdict: Verdict
    """What it means for the use that was asked for. "information" is neither good nor bad for it, or cannot be read."""
    reason: str
    """Why, in one sentence."""
    mend: Mend | None = None
    """The line that mends it; None where nothing has to be mended, or no line does."""


def among(use: Use | None, *uses: Use | None, verdict: Verdict = "limits you") -> Verdict:
    """Return the verdict if the use is among these (None: no use was named), and "information" for all others."""
    return verdict if use in uses else "information"


def limited(n: int | None) -> str:
    """Return a limit in words; None means that there is none."""
    return "unlimited" if n is None else amount(n)


def unknown(topic: Topic, name: str, unread: Mapping[str, str], path: str) -> Finding:
    """Make the finding for a fact that cannot be read. ``unread`` has what was said when this path was read."""
    return Finding(topic, name, "cannot be read", "information", f"{path}: {unread.get(path, 'does not say it')}.")
