"""Decompressing into a block. zlib's module makes bytes, so there its pieces are kept small; libz itself and zstandard
write into the block."""

from __future__ import annotations

import ctypes
import ctypes.util
import gzip
import io
import os
import zlib
from typing import Any

import pytest
from conftest import MIB
from neighbour import faults_into, neighbour, python_bytes
from neighbours import inflate

from arena import Arena, Block

DATA = os.urandom(MIB // 8) * 32


@pytest.fixture
def a() -> Arena:
    return Arena("64MiB")


def test_zlib_makes_bytes_so_they_are_small(a: Arena) -> None:
    block = a.alloc(len(DATA))
    compressed = zlib.compress(DATA)
    assert python_bytes(lambda: inflate(compressed, block)) < MIB // 4
    assert bytes(block) == DATA
    block.free()


def test_zlib_of_more_than_the_block_holds(a: Arena) -> None:
    block = a.alloc(len(DATA) - 1)
    with pytest.raises(ValueError):
        inflate(zlib.compress(DATA), block)
    with pytest.raises(EOFError):
        inflate(zlib.compress(DATA)[:-9], a.alloc(len(DATA)))
    block.free()


def test_gzip_makes_bytes_of_all_of_it(a: Arena) -> None:
    """Its readinto() is a read() and a copy, as large as what is asked for: ask for little at a time."""
    compressed = gzip.compress(DATA)

    def whole(block: Block) -> None:
        with gzip.open(io.BytesIO(compressed)) as file:
            assert file.readinto(block) == len(DATA)

    def pieces(block: Block) -> None:
        with gzip.open(io.BytesIO(compressed)) as file:
            for at in range(0, len(block), 1 << 16):
                assert file.readinto(block[at : at + (1 << 16)]) == 1 << 16

    block = a.alloc(len(DATA))
    assert python_bytes(lambda: whole(block)) > len(DATA)
    assert bytes(block) == DATA
    block[:] = bytes(len(DATA))
    assert python_bytes(lambda: pieces(block)) < MIB // 2
    assert bytes(block) == DATA


def test_libz_writes_into_the_block(a: Arena) -> None:
    name = ctypes.util.find_library("z")
    if name is None:
        pytest.skip("there is no libz")
    libz = ctypes.CDLL(name)
    compressed = zlib.compress(DATA)

    def uncompress(view: memoryview) -> None:
        target = (ctypes.c_char * len(view)).from_buffer(view)
        length = ctypes.c_ulong(len(view))
        assert libz.uncompress(target, ctypes.byref(length), compressed, ctypes.c_ulong(len(compressed))) == 0
        assert length.value == len(view)

    block = a.alloc(len(DATA))
    assert python_bytes(lambda: uncompress(memoryview(block))) < MIB // 4
    assert bytes(block) == DATA
    block.free()


def test_zstandard_writes_into_the_block(a: Arena) -> None:
    zstandard: Any = neighbour("zstandard")
    compressed = zstandard.compress(DATA)
    decompressor = zstandard.ZstdDecompressor()

    def read(view: memoryview) -> None:
        with decompressor.stream_reader(compressed) as stream:
            assert stream.readinto(view) == len(view)

    block = a.alloc(len(DATA))
    assert python_bytes(lambda: read(memoryview(block))) < MIB // 4
    assert bytes(block) == DATA
    assert faults_into(a, read) == 0
    block.free()
