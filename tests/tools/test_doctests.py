"""The examples in docstrings run, each module's in a child, for some lock memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from conftest import SUPPORT

pytestmark = pytest.mark.slow  # the same on every CPython

MODULES = [
    "arena._core",
    "arena._realtime",
    "arena.cli",
    "arena.doctor",
    "arena.doctor.files",
    "arena.draw",
    "arena.errors",
    "arena.ledger",
    "arena.mapped",
    "arena.nep49",
    "arena.realtime.locking",
    "arena.realtime.preparing",
    "arena.sizes",
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of(name: str, child: Callable[..., str]) -> None:
    np = pytest.importorskip("numpy")
    if np.lib.NumpyVersion(np.__version__) < "2.0.0":
        pytest.skip("NumPy before 2.0 shows its scalars otherwise")
    child(
        f"""
        import sys
        sys.path.insert(0, {str(SUPPORT)!r})
        from docstrings import run_examples
        run_examples({name!r})
        """
    )
