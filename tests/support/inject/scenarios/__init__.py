"""The scenarios. Each takes Steps, does its steps by them, and leaves there what lives."""

from __future__ import annotations

import importlib.util

from . import arenas, files, forks, kernels, realtime, reservations
from .scenario import SCENARIOS, Scenario

if importlib.util.find_spec("numpy") is not None:
    from . import arrays

__all__ = ["Scenario", "all_scenarios", "arenas", "arrays", "files", "forks", "kernels", "realtime", "reservations"]


def all_scenarios() -> list[Scenario]:
    return SCENARIOS
