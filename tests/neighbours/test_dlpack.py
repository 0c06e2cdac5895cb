"""DLPack: the capsules byte by byte, as dlpack.h has them, and NumPy's from_dlpack."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest
from conftest import MIB, SUPPORT, rss
from neighbour import holds_an_export

from arena import Arena, ArenaFullError, Block

VERSIONED = (1, 0)
IS_COPIED = 2


class Tensor(ctypes.Structure):
    """DLTensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class Plain(ctypes.Structure):
    """DLManagedTensor, of DLPack 0.8."""

    _fields_ = (("tensor", Tensor), ("manager_ctx", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


class Versioned(ctypes.Structure):
    """DLManagedTensorVersioned, of DLPack 1.0."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", Tensor),
    )


USED = {b"dltensor": b"used_dltensor", b"dltensor_versioned": b"used_dltensor_versioned"}
api = ctypes.pythonapi
api.PyCapsule_GetPointer.restype, api.PyCapsule_GetPointer.argtypes = (
    ctypes.c_void_p,
    [ctypes.py_object, ctypes.c_char_p],
)
api.PyCapsule_SetName.argtypes = [ctypes.py_object, ctypes.c_char_p]
api.PyCapsule_GetName.restype, api.PyCapsule_GetName.argtypes = ctypes.c_char_p, [ctypes.py_object]


def look(capsule: object) -> Any:
    """The managed tensor in it."""
    name = api.PyCapsule_GetName(capsule)
    return (Plain if name == b"dltensor" else Versioned).from_address(api.PyCapsule_GetPointer(capsule, name))


def consume(capsule: object) -> Any:
    """As a consumer: the tensor, and from now on the duty to call its deleter."""
    managed = look(capsule)
    api.PyCapsule_SetName(capsule, USED[api.PyCapsule_GetName(capsule)])
    return managed


def delete(managed: Any) -> None:
    """Calls the deleter, without the GIL."""
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(managed.deleter)(ctypes.addressof(managed))


@pytest.fixture
def a() -> Arena:
    return Arena("64MiB")


@pytest.mark.parametrize("version", [None, (0, 8), VERSIONED, (1, 3), (2, 0)])
def test_what_is_in_the_capsule(a: Arena, version: tuple[int, int] | None) -> None:
    block = a.alloc(1000)
    capsule = block.__dlpack__(max_version=version)
    managed = look(capsule)
    t = managed.tensor
    assert (t.data, t.byte_offset) == (block.address, 0)
    assert (t.device_type, t.device_id) == (1, 0) == block.__dlpack_device__()
    assert (t.code, t.bits, t.lanes) == (1, 8, 1)
    assert (t.ndim, t.shape[0], t.strides[0]) == (1, 1000, 1)
    assert isinstance(managed, Versioned) == (version is not None and version >= VERSIONED)
    if isinstance(managed, Versioned):
        # A consumer that knows 1.0 can read it, and one that knows more knows 1.0.
        assert (managed.major, managed.minor, managed.flags) == (1, 0, 0)


@pytest.mark.parametrize("version", [None, VERSIONED])
def test_an_unconsumed_capsule_holds_an_export(a: Arena, version: tuple[int, int] | None) -> None:
    holds_an_export(a, lambda block: block.__dlpack__(max_version=version))


@pytest.mark.parametrize("version", [None, VERSIONED])
def test_a_consumer_holds_it_until_it_calls_the_deleter(a: Arena, version: tuple[int, int] | None) -> None:
    block = a.alloc(1000)
    managed = consume(block.__dlpack__(max_version=version))
    gc.collect()
    with pytest.raises(BufferError):
        block.free()
    delete(managed)
    block.free()


def test_the_last_reference_is_the_consumers(a: Arena) -> None:
    managed = consume(a.alloc(1000).__dlpack__())
    gc.collect()
    assert a.stats().blocks == 1
    delete(managed)
    assert a.stats().blocks == 0


@pytest.mark.parametrize("version", [None, VERSIONED])
def test_the_deleter_on_a_thread_that_python_does_not_know(a: Arena, version: tuple[int, int] | None) -> None:
    libc = ctypes.CDLL(None)
    libc.pthread_create.argtypes = [ctypes.c_void_p] * 4
    libc.pthread_join.argtypes = [ctypes.c_void_p] * 2
    for _ in range(100):
        managed = [consume(a.alloc(1000).__dlpack__(max_version=version)) for _ in range(4)]
        threads = [ctypes.c_void_p() for _ in managed]
        for thread, one in zip(threads, managed, strict=True):
            assert libc.pthread_create(ctypes.byref(thread), None, one.deleter, ctypes.addressof(one)) == 0
        for thread in threads:
            assert libc.pthread_join(thread, None) == 0
    assert a.stats().blocks == 0


HERE = Path(__file__).resolve().parent
LATE = """
import sys
sys.path[:0] = HERE
import ctypes
from test_dlpack import consume
from arena import Arena
for version in (None, (1, 0)):
    managed = consume(Arena("64MiB").alloc(1000).__dlpack__(max_version=version))
    # Run by exit(), when there is no interpreter any more.
    atexit = ctypes.CDLL(None).__cxa_atexit
    atexit.argtypes = [ctypes.c_void_p] * 3
    assert atexit(managed.deleter, ctypes.addressof(managed), None) == 0
# And these while it is being finalized.
sys.modules["kept"] = [Arena("64MiB").alloc(1000).__dlpack__(max_version=version) for version in (None, (1, 0))]
print("to the end")
"""


def test_the_deleter_after_the_interpreter(child: Callable[..., str]) -> None:
    assert child(LATE.replace("HERE", repr([str(HERE), str(HERE.parent), str(SUPPORT)]))) == "to the end\n"


@pytest.mark.parametrize("version", [None, VERSIONED])
def test_a_copy_is_a_block_of_its_own(a: Arena, version: tuple[int, int] | None) -> None:
    block = a.alloc(3 * MIB)
    block[:5] = b"hello"
    block[-1] = 7
    capsule = block.__dlpack__(copy=True, max_version=version)
    managed = look(capsule)
    assert a.address <= managed.tensor.data < a.address + a.size and managed.tensor.data != block.address
    assert managed.tensor.shape[0] == 3 * MIB
    if isinstance(managed, Versioned):
        assert managed.flags == IS_COPIED
    block[:5] = b"later"
    assert ctypes.string_at(managed.tensor.data, 3 * MIB) == b"hello" + bytes(block[5:])
    assert a.stats().blocks == 2
    block.free()
    assert a.stats().blocks == 1
    del capsule
    assert a.stats().blocks == 0


def test_no_room_for_a_copy(a: Arena) -> None:
    block = a.alloc("40MiB")
    with pytest.raises(ArenaFullError):
        block.__dlpack__(copy=True)
    block.free()
    assert a.stats().blocks == 0


def test_what_is_refused(a: Arena) -> None:
    block = a.alloc(1000)
    nonsense: Any
    for nonsense in (1, "1.0", (1,), (1, 0, 0), [1, 0], ("1", 0), (1.0, 0)):
        with pytest.raises(TypeError):
            block.__dlpack__(max_version=nonsense)
        with pytest.raises(TypeError):
            block.__dlpack__(dl_device=nonsense)
    for nonsense in (0, 1, -1, "default"):
        with pytest.raises(ValueError, match="stream"):
            block.__dlpack__(stream=nonsense)
    for nonsense in ((2, 0), (1, 1), (13, 0)):
        with pytest.raises(BufferError, match="CPU"):
            block.__dlpack__(dl_device=nonsense)
    for nonsense in (1, "yes"):
        with pytest.raises(TypeError, match="copy"):
            block.__dlpack__(copy=nonsense)
    positional: Any = block.__dlpack__
    with pytest.raises(TypeError):
        positional(None)
    block.free()
    for copy in (None, False, True):
        with pytest.raises(BufferError, match="freed"):
            block.__dlpack__(copy=copy)
    assert a.stats().blocks == 0


def test_its_own_device_by_any_int(a: Arena) -> None:
    device: Any = IntEnum("device", {"CPU": 1})
    assert look(a.alloc(10).__dlpack__(dl_device=(device.CPU, 0), copy=False)).tensor.ndim == 1


def leave(block: Block) -> None:
    block.__dlpack__()


def take(block: Block) -> None:
    delete(consume(block.__dlpack__(max_version=VERSIONED)))


def copy(block: Block) -> None:
    block.__dlpack__(copy=True)


def refuse(block: Block) -> None:
    wrong: Any
    for wrong in ({"stream": 1}, {"dl_device": (2, 0)}, {"max_version": 1}, {"copy": 1}):
        with pytest.raises((BufferError, TypeError, ValueError)):
            block.__dlpack__(**wrong)


@pytest.mark.parametrize("use", [leave, take, copy, refuse])
def test_nothing_is_left_of_ten_thousand(a: Arena, use: Callable[[Block], None]) -> None:
    rounds = 500 if use is refuse else 10_000
    for _ in range(rounds):
        use(a.alloc(100))
    before = rss()
    for _ in range(rounds):
        use(a.alloc(100))
    assert a.stats().blocks == 0
    # Of malloc's memory neither: 200 bytes of each would be 2 MB.
    assert rss() - before < MIB


@pytest.mark.parametrize("copy", [None, True])
def test_nothing_is_left_where_memory_runs_out(a: Arena, copy: bool | None) -> None:
    testcapi: Any = pytest.importorskip("_testcapi", reason="this CPython has no _testcapi")
    block = a.alloc(100)
    failed = 0
    for nth in range(30):  # the nth allocation of Python's from here on fails
        testcapi.set_nomemory(nth, nth + 1)
        try:
            block.__dlpack__(copy=copy)
        except MemoryError:
            failed += 1
        finally:
            testcapi.remove_mem_hooks()
    assert failed
    block.free()
    assert a.stats().blocks == 0


def test_exports_and_frees_in_all_threads(a: Arena) -> None:
    def work(seed: int) -> int:
        refused = 0
        for i in range(500):
            block = shared[(seed + i) % len(shared)]
            try:
                if i % 50 == 49:
                    block.free()
                elif i % 2:
                    delete(consume(block.__dlpack__()))
                else:
                    block.__dlpack__(copy=bool(seed % 2), max_version=VERSIONED)
            except (BufferError, ValueError):
                refused += 1
        return refused

    shared = [a.alloc(1000) for _ in range(8)]
    with ThreadPoolExecutor(4) as pool:
        refused = list(pool.map(work, range(4)))
    assert sum(refused)
    shared.clear()
    gc.collect()
    assert a.stats().blocks == 0


# --- NumPy


def test_numpy(a: Arena) -> None:
    np: Any = pytest.importorskip("numpy", reason="NumPy is not installed")
    block = a.alloc(1000, zero=True)
    array = np.from_dlpack(block)
    assert (array.ctypes.data, array.shape, array.dtype) == (block.address, (1000,), np.uint8)
    block[5] = 9
    assert array[5] == 9
    holds_an_export(a, np.from_dlpack)


def test_numpy_2_asks_for_a_version_and_copies(a: Arena) -> None:
    np: Any = pytest.importorskip("numpy", "2.1", reason="NumPy 2.1 is not installed")
    block = a.alloc(1000, zero=True)
    array = np.from_dlpack(block, device="cpu", copy=False)
    array[3] = 4  # writable, which NumPy believes of versioned tensors only
    assert block[3] == 4
    copied = np.from_dlpack(block, copy=True)
    assert copied.ctypes.data != block.address
    assert a.stats().blocks == 2
    assert (copied == array).all()
    del copied
    gc.collect()
    assert a.stats().blocks == 1
