"""What the facts mean for a use. Pure: reads nothing."""

from __future__ import annotations

from . import about_kernel, about_locking, about_memory, about_pages, about_scheduling, about_sharing
from .facts import Facts
from .finding import USES, VERDICTS, Finding, Topic, Use

__all__ = ["blocked", "judge"]

_TOPICS = (about_kernel, about_memory, about_pages, about_locking, about_scheduling, about_sharing)

# What matters to a use, the most important first.
_ORDER: dict[Use | None, tuple[Topic, ...]] = {
    None: ("memory", "kernel", "pages", "locking", "sharing", "scheduling", "place"),
    "realtime": ("locking", "scheduling", "memory", "pages", "kernel", "place", "sharing"),
    "numpy": ("memory", "pages", "kernel", "sharing", "locking", "scheduling", "place"),
    "sharing": ("sharing", "memory", "pages", "kernel", "locking", "scheduling", "place"),
}


def judge(facts: Facts, use: Use | None = None) -> list[Finding]:
    """Return all findings: what blocks first, then what limits; within that, what matters most to the use."""
    if use not in _ORDER:
        raise ValueError(f"use {use!r} is none of {', '.join(USES)}")
    order = _ORDER[use]
    found = [finding for topic in _TOPICS for finding in topic.findings(facts, use)]
    return sorted(found, key=lambda finding: (VERDICTS.index(finding.verdict), order.index(finding.topic)))


def blocked(findings: list[Finding]) -> bool:
    """Whether one of the findings blocks the use."""
    return any(finding.verdict == "blocks you" for finding in findings)
