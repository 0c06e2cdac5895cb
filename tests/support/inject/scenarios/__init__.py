"""The scenarios. Each takes Steps, does its steps by them, and leaves there what lives."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from . import arenas, files, forks, kernels, realtime, reservations, self_test
from .scenario import SCENARIOS, Scenario

if importlib.util.find_spec("numpy") is not None:
    from . import arrays

__all__ = [
    "Scenario",
    "all_scenarios",
    "arenas",
    "arrays",
    "files",
    "forks",
    "kernels",
    "realtime",
    "reservations",
    "self_test",
]


def all_scenarios() -> list[Scenario]:
    return [scenario for scenario in SCENARIOS if not scenario.when_named]


def chosen_scenarios(names: Sequence[str]) -> list[Scenario]:
    """Those whose names begin with one of these; all, where none is given."""
    if not names:
        return all_scenarios()
    begun = [scenario for scenario in all_scenarios() if scenario.name.startswith(tuple(names))]
    return begun + [scenario for scenario in SCENARIOS if scenario.when_named and scenario.name in names]
