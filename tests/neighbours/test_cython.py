"""Cython's typed memoryviews: of a block as of any buffer, and without the arena's .pxd (test_capi.py has that)."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
from compiled import cython
from neighbour import faults_into, holds_an_export

from arena import Arena

SAMPLES = """
# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=True
from libc.stdint cimport uintptr_t


cdef class Samples:
    cdef double[::1] values

    def __init__(self, double[::1] values not None):
        self.values = values

    def fill(self, double value):
        cdef Py_ssize_t i
        with nogil:
            for i in range(self.values.shape[0]):
                self.values[i] = value

    def address(self):
        return <uintptr_t>&self.values[0]
"""


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    return cython(tmp_path_factory.mktemp("samples"), "samples", SAMPLES.lstrip())


@pytest.fixture
def a() -> Arena:
    return Arena("64MiB")


def test_a_typed_memoryview(samples: Any, a: Arena) -> None:
    block = a.alloc(8000, zero=True)
    mine = samples.Samples(memoryview(block).cast("d"))
    assert mine.address() == block.address
    mine.fill(1.5)
    assert memoryview(block).cast("d")[999] == 1.5
    with pytest.raises(ValueError, match="dtype"):
        samples.Samples(block)  # bytes, until they are cast
    holds_an_export(a, lambda block: samples.Samples(memoryview(block).cast("d")))


def test_an_array_of_the_arena(samples: Any, a: Arena) -> None:
    pytest.importorskip("numpy", reason="NumPy is not installed")
    array = a.zeros(1000)
    samples.Samples(array).fill(1.5)
    assert array.sum() == 1500


def test_its_loops_fault_on_nothing(samples: Any, a: Arena) -> None:
    assert faults_into(a, lambda view: samples.Samples(view.cast("d")).fill(1.0)) == 0
