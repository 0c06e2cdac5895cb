"""Numba's compiled functions on arrays of an arena."""

from __future__ import annotations

import gc
from typing import Any

import pytest
from neighbour import faults_into, neighbour

from arena import Arena

numba: Any = neighbour("numba")
np: Any = neighbour("numpy")


@numba.njit("uintp(float64[::1], float64)")  # type: ignore[untyped-decorator]
def fill(x: Any, value: float) -> Any:
    for i in range(x.size):
        x[i] = value
    return x.ctypes.data


@numba.njit("float64[::1](float64[::1])")  # type: ignore[untyped-decorator]
def tail(x: Any) -> Any:
    return x[10:]


@pytest.fixture
def a() -> Arena:
    return Arena("64MiB")


def test_it_writes_into_the_block(a: Arena) -> None:
    block = a.alloc(8000, zero=True)
    array = np.frombuffer(block, "f8")
    assert fill(array, 1.5) == block.address
    assert memoryview(block).cast("d")[999] == 1.5
    with pytest.raises(BufferError):
        block.free()
    del array
    gc.collect()
    block.free()  # compiled code keeps nothing when it is over


def test_what_it_returns_keeps_the_block(a: Arena) -> None:
    array = a.zeros(1000)
    rest = tail(array)
    assert rest.ctypes.data == array.ctypes.data + 80
    del array
    gc.collect()
    assert a.stats().blocks == 1
    del rest
    gc.collect()
    assert a.stats().blocks == 0


def test_its_loops_fault_on_nothing(a: Arena) -> None:
    assert faults_into(a, lambda view: fill(np.frombuffer(view, "f8"), 1.0)) == 0
