from __future__ import annotations

import collections.abc
import copy
import gc
import pickle
import sys
from typing import Any

import pytest
from conftest import MIB

from arena import Arena, ArenaFullError, Block


@pytest.fixture
def a() -> Arena:
    return Arena("64MiB")


def test_the_buffer(a: Arena) -> None:
    b = a.alloc(1000)
    view = memoryview(b)
    assert (view.nbytes, view.format, view.readonly, view.shape, view.strides) == (1000, "B", False, (1000,), (1,))
    assert view.obj is b
    assert len(b) == b.nbytes == 1000
    assert b.address == a.address + b.offset
    assert b.arena is a


def test_items_and_slices_as_a_memoryview_has_them(a: Arena) -> None:
    b = a.alloc(10, zero=True)
    b[3] = 255
    b[-1] = 7
    assert b[3] == 255
    assert b[9] == 7
    assert isinstance(b[2:5], memoryview)
    b[0:3] = b"abc"
    assert bytes(b[:4]) == b"abc\xff"
    for wrong in (10, -11):
        with pytest.raises(IndexError):
            b[wrong]
    with pytest.raises(ValueError):
        b[0:3] = b"toolong"
    with pytest.raises(ValueError):
        b[0] = 256


def test_free_gives_the_memory_back_at_once(a: Arena) -> None:
    b = a.alloc(1000)
    at = b.offset
    b.free()
    assert b.freed
    assert a.alloc(1000).offset == at


def test_free_twice(a: Arena) -> None:
    b = a.alloc(1000)
    b.free()
    with pytest.raises(ValueError, match="freed before"):
        b.free()
    with pytest.raises(BufferError, match="freed"):
        memoryview(b)
    with pytest.raises(BufferError):
        b[0]
    with pytest.raises(ValueError):
        b.resize(10)


def test_free_while_exported(a: Arena) -> None:
    b = a.alloc(1000)
    view = memoryview(b)
    part = view[10:20]
    view.release()
    with pytest.raises(BufferError, match="exported"):
        b.free()
    with pytest.raises(BufferError):
        b.resize(2000)
    part.release()
    b.free()


def test_with_frees(a: Arena) -> None:
    with a.alloc(1000) as b:
        b[0] = 1
    assert b.freed
    with a.alloc(1000) as b:
        b.free()
    with pytest.raises(ValueError), b:
        pass


def test_dropping_frees(a: Arena) -> None:
    b = a.alloc(1000)
    view = memoryview(b)
    del b
    assert a.stats().blocks == 1
    view.release()
    del view
    gc.collect()
    assert a.stats().blocks == 0


def test_a_block_keeps_its_arena() -> None:
    b = Arena("64MiB").alloc(1000)
    gc.collect()
    b[0] = 9
    assert b[0] == 9
    assert b.arena.stats().blocks == 1


def test_python_has_no_memory_for_the_object(a: Arena) -> None:
    testcapi: Any = pytest.importorskip("_testcapi", reason="this CPython has no _testcapi")
    kept = [a.alloc(100) for _ in range(100)]  # more than the type's own free list has
    failed = 0
    for nbytes in (100, 3 * MIB):  # from committed memory, and not
        for nth in range(20):  # the nth allocation of Python's from here on fails
            testcapi.set_nomemory(nth, nth + 1)
            try:
                kept.append(a.alloc(nbytes))
            except MemoryError:
                failed += 1
            finally:
                testcapi.remove_mem_hooks()
    assert failed
    assert a.stats().blocks == len(kept) == 140 - failed


def test_resize_in_place(a: Arena) -> None:
    b = a.alloc(1000)
    b[:4] = b"keep"
    at = b.address
    b.resize("8MiB")
    assert (b.address, len(b)) == (at, 8 * MIB)
    assert bytes(b[:4]) == b"keep"
    b[8 * MIB - 1] = 1
    b.resize(10)
    assert len(b) == 10
    assert a.stats().live == 64
    c = a.alloc(64)
    with pytest.raises(ArenaFullError):
        b.resize("1MiB")
    assert len(b) == 10
    for wrong in (0, -1, "x"):
        with pytest.raises(ValueError):
            b.resize(wrong)
    del c


def test_blocks_are_made_by_alloc_only(a: Arena) -> None:
    for make in (
        Block,
        lambda: Block.__new__(Block),
        lambda: copy.copy(a.alloc(1)),
        lambda: pickle.dumps(a.alloc(1), 4),
    ):
        with pytest.raises(TypeError):
            make()
    with pytest.raises(TypeError):
        type("Mine", (Block,), {})


@pytest.mark.skipif(sys.version_info < (3, 12), reason="PEP 688 is in Python 3.12")
def test_pep_688(a: Arena) -> None:
    b = a.alloc(16)
    assert isinstance(b, vars(collections.abc)["Buffer"])
    view = b.__buffer__(0)
    assert view.nbytes == 16
    with pytest.raises(BufferError):
        b.free()
    view.release()


def test_writes_between_neighbours_do_not_meet(a: Arena) -> None:
    kept = [a.alloc(100 + i) for i in range(50)]
    for i, b in enumerate(kept):
        b[:] = bytes([i]) * len(b)
    assert all(bytes(b[:]) == bytes([i]) * len(b) for i, b in enumerate(kept))


np: Any = pytest.importorskip("numpy", reason="NumPy is not installed")


def test_ndarray_that_holds_no_export(a: Arena) -> None:
    b = a.alloc(4096, zero=True)
    array = np.ndarray((4096,), np.uint8, buffer=b)
    b.free()
    a.trim()
    assert array.sum() >= 0  # reused or zero, but mapped
    a.close()
    assert array[0] >= 0
    del b
    assert array[4095] >= 0


def test_frombuffer_and_asarray_hold_exports(a: Arena) -> None:
    for make in (lambda b: np.frombuffer(b, np.uint8), np.asarray):
        b = a.alloc(4096)
        array = make(b)
        with pytest.raises(BufferError):
            b.free()
        with pytest.raises(BufferError):
            a.reset()
        del b
        array[:] = 3
        assert array.sum() == 3 * 4096
        del array
    assert a.stats().blocks == 0
