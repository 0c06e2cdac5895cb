"""The examples in docstrings run, each module's in a child, for some lock memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytestmark = pytest.mark.slow  # the same on every CPython


@pytest.mark.parametrize("name", ["arena.mapped", "arena.nep49", "arena.realtime.locking", "arena.realtime.preparing"])
def test_the_examples_of(name: str, child: Callable[..., str]) -> None:
    np = pytest.importorskip("numpy")
    if np.lib.NumpyVersion(np.__version__) < "2.0.0":
        pytest.skip("NumPy before 2.0 shows its scalars otherwise")
    child(
        f"""
        import doctest, importlib
        failed, tried = doctest.testmod(importlib.import_module({name!r}))
        assert not failed and tried
        """
    )
