"""h5py reads into an array of the arena; zarr copies into it, a few chunks at a time."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import MIB
from measure import faults_at
from neighbour import neighbour, python_bytes

from arena import Arena

np: Any = neighbour("numpy")
N = 1 << 20


@pytest.fixture
def a() -> Arena:
    return Arena("64MiB")


@pytest.mark.parametrize("stored", [{}, {"chunks": (1 << 13,), "compression": "gzip"}], ids=["plain", "chunks"])
def test_h5py(a: Arena, tmp_path: Path, stored: dict[str, Any]) -> None:
    h5py: Any = neighbour("h5py")
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file.create_dataset("x", data=np.arange(float(N)), **stored)
        file.create_dataset("small", data=np.arange(10.0), **({**stored, "chunks": (10,)} if stored else {}))
    block = a.alloc(8 * N)
    array = np.frombuffer(block, "f8")
    a.warm("16MiB")
    with h5py.File(tmp_path / "data.h5") as file:
        assert python_bytes(partial(file["x"].read_direct, array)) < MIB // 4
        assert (array == np.arange(float(N))).all()
        few, fresh = a.empty(10), a.empty(N)
        assert (
            faults_at(a.address, a.size, lambda: file["x"].read_direct(fresh), lambda: file["small"].read_direct(few))
            == 0
        )
        # A part, into a part.
        file["x"].read_direct(array, np.s_[5:10], np.s_[0:5])
        assert array[:6].tolist() == [5, 6, 7, 8, 9, 5]
    del array
    block.free()  # a call that is over holds nothing


def test_zarr(a: Arena, tmp_path: Path) -> None:
    pytest.importorskip("zarr", "3", reason="zarr 3 is not installed: pip install '.[neighbours]'")
    zarr: Any = neighbour("zarr")
    NDBuffer = neighbour("zarr.buffer.cpu").NDBuffer
    stored = zarr.create_array(str(tmp_path / "data.zarr"), shape=(N,), dtype="f8", chunks=(1 << 13,))
    stored[:] = np.arange(float(N))
    block = a.alloc(8 * N)
    array = np.frombuffer(block, "f8")
    # Some chunks are on their way at a time; `array[:] = stored[:]` would take all of it.
    assert python_bytes(partial(stored.get_basic_selection, slice(None), out=NDBuffer(array))) < 4 * MIB
    assert python_bytes(lambda: stored[:]) > 8 * MIB
    assert (array == np.arange(float(N))).all()
    del array
    block.free()
