"""Bytes with a meaning: memoryview.cast, struct, ctypes and cffi on a block."""

from __future__ import annotations

import ctypes
import struct
from typing import Any

import pytest
from neighbour import holds_an_export, keeps_the_object_only, python_bytes

from arena import Arena

RECORD = struct.Struct("<IdH")


class Sample(ctypes.Structure):
    _fields_ = (("number", ctypes.c_uint32), ("value", ctypes.c_double))


@pytest.fixture
def a() -> Arena:
    return Arena("64MiB")


def address(view: Any) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


@pytest.mark.parametrize("format", ["b", "H", "i", "Q", "f", "d"])
def test_a_cast_is_the_same_memory(a: Arena, format: Any) -> None:
    block = a.alloc(960, zero=True)
    view = memoryview(block).cast(format)
    assert len(view) == 960 // struct.calcsize(format)
    assert address(view) == block.address
    view[1] = 5
    assert struct.unpack_from(format, block, struct.calcsize(format)) == (5,)
    holds_an_export(a, lambda block: memoryview(block).cast(format))


def test_a_cast_has_a_shape(a: Arena) -> None:
    block = a.alloc(96, zero=True)
    view = memoryview(block).cast("d", shape=[3, 4])
    view[1, 2] = 2.5
    assert struct.unpack_from("d", block, (1 * 4 + 2) * 8) == (2.5,)


def test_struct_packs_and_unpacks_in_place(a: Arena) -> None:
    block = a.alloc(RECORD.size * 1000)
    for i in range(1000):
        RECORD.pack_into(block, i * RECORD.size, i, i / 2, i & 7)
    assert RECORD.unpack_from(block, 999 * RECORD.size) == (999, 499.5, 7)
    assert sum(number for number, _, _ in RECORD.iter_unpack(block)) == 499_500
    with pytest.raises(struct.error):
        RECORD.pack_into(block, len(block) - 1, 1, 1, 1)
    holds_an_export(a, struct.Struct("16s").iter_unpack)
    block.free()  # a call that is over holds nothing


def test_ctypes(a: Arena) -> None:
    block = a.alloc(ctypes.sizeof(Sample) * 10, zero=True)
    samples = (Sample * 10).from_buffer(block)
    assert ctypes.addressof(samples) == block.address
    samples[3].number, samples[3].value = 7, 1.5
    assert struct.unpack_from("I4xd", block, 3 * ctypes.sizeof(Sample)) == (7, 1.5)
    assert ctypes.addressof(Sample.from_buffer(block, 32)) == block.address + 32
    with pytest.raises(ValueError):
        (Sample * 11).from_buffer(block)
    holds_an_export(a, (Sample * 10).from_buffer)
    # A part of it keeps the whole.
    holds_an_export(a, lambda block: (Sample * 10).from_buffer(block)[3])


def test_a_bare_address_keeps_nothing(a: Arena) -> None:
    block = a.alloc(100)
    pointer = ctypes.c_void_p(block.address)
    ctypes.memset(pointer, 7, 100)
    assert bytes(block) == b"\7" * 100
    block.free()


def test_cffi(a: Arena) -> None:
    cffi: Any = pytest.importorskip("cffi", reason="cffi is not installed")
    ffi = cffi.FFI()
    ffi.cdef("struct sample { uint32_t number; double value; };")
    block = a.alloc(160, zero=True)
    samples = ffi.from_buffer("struct sample[]", block, require_writable=True)
    assert (int(ffi.cast("uintptr_t", samples)), len(samples)) == (block.address, 10)
    samples[3].number, samples[3].value = 7, 1.5
    assert Sample.from_buffer(block, 48).value == 1.5
    holds_an_export(a, lambda block: ffi.from_buffer("struct sample[]", block))
    # A pointer into it keeps neither the block nor an export, as in C.
    with pytest.raises(BufferError):
        block.free()
    with ffi.from_buffer(block):
        pass
    ffi.release(samples)
    block.free()


def test_numpy_and_who_holds_an_export(a: Arena) -> None:
    np: Any = pytest.importorskip("numpy", reason="NumPy is not installed")
    record = np.dtype([("number", "<u4"), ("value", "<f8"), ("flags", "<u2")])
    block = a.alloc(RECORD.size * 10)
    RECORD.pack_into(block, 3 * RECORD.size, 7, 1.5, 1)
    records = np.frombuffer(block, record)
    assert (records.ctypes.data, records[3].tolist()) == (block.address, (7, 1.5, 1))
    holds_an_export(a, lambda block: np.frombuffer(block, "f8"))
    holds_an_export(a, lambda block: np.frombuffer(block, "f8").reshape(2, -1)[1, 3:].view("i4"))
    holds_an_export(a, np.asarray)
    holds_an_export(a, lambda block: memoryview(np.frombuffer(block, "f8")))
    keeps_the_object_only(a, lambda block: np.ndarray((100,), "f8", block))


def test_bytes_are_a_copy(a: Arena) -> None:
    block = a.alloc(1 << 20, zero=True)
    for copy in (bytes, bytearray):
        assert copy(block) == bytes(1 << 20)
        assert python_bytes(lambda: copy(block)) >= 1 << 20  # noqa: B023  (called at once)
    block.free()
