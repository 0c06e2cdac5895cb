"""A pytest plugin for numpy_suite.py: installs a data handler for the whole run, and writes what came of every test,
and how many allocations are outstanding at its end. SUITE_HANDLER: "malloc" or "arena"; SUITE_OUT: the file."""

from __future__ import annotations

import ctypes
import gc
import json
import os
from pathlib import Path
from typing import Any

import _measure as m
import pytest

from arena import Arena, _core, nep49

outcomes: dict[str, str] = {}
state: dict[str, Any] = {}


def pytest_configure(config: pytest.Config) -> None:
    if os.environ["SUITE_HANDLER"] == "malloc":
        library = state["library"] = m.load_counting()
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        _core.swap_numpy_handler(new(ctypes.addressof(ctypes.c_char.in_dll(library, "counting")), b"mem_handler", None))
    else:
        state["arena"] = Arena(os.environ["SUITE_SIZE"])
        nep49.install(state["arena"])


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        outcomes[report.nodeid] = report.outcome


def pytest_unconfigure(config: pytest.Config) -> None:
    nep49.uninstall()
    gc.collect()
    result: dict[str, Any] = {"outcomes": outcomes}
    if "arena" in state:
        stats = state["arena"].stats()
        error = state["arena"].last_error
        result["outstanding"] = stats.blocks
        result["peak"] = stats.peak_live
        result["last_error"] = str(error) if error else None
    else:
        library = state["library"]
        result["outstanding"] = library.counted_made() - library.counted_gone()
        result["made"] = library.counted_made()
    Path(os.environ["SUITE_OUT"]).write_text(json.dumps(result), encoding="utf-8")
