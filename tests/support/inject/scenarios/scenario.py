"""What a scenario is, and the list of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..steps import Steps

Run = Callable[[Steps], None]


@dataclass(frozen=True)
class Scenario:
    name: str
    run: Run
    summary: str = ""
    huge_pages: int = 0
    """Pages of 2 MiB that the pool must have."""
    when_named: bool = False
    """Run only when it is asked for by its name."""
    cold: bool = False
    """Nothing of the package was run before in the process, so that what is found out once is found out now."""
    always_fail: tuple[tuple[str, int, int], ...] = ()
    """(name, variant, error) of calls that this kernel does not have."""
    keeps: tuple[str, int] | None = None
    """A descriptor, and a shared mapping of so many bytes, that the process keeps for the next time."""
    plays: tuple[str, str] | None = None
    """A file, and what it says."""


SCENARIOS: list[Scenario] = []


def scenario(name: str, **options: Any) -> Callable[[Run], Run]:
    """Decorates a function that is a scenario; one function may be several."""

    def add(run: Run) -> Run:
        summary = (run.__doc__ or "").strip().splitlines()
        assert name not in {known.name for known in SCENARIOS}, name
        SCENARIOS.append(Scenario(name, run, summary[0] if summary else "", **options))
        return run

    return add
