"""The C API: a C example behind cffi and a Cython example, built as a reader would build them."""

from __future__ import annotations

import array
import ctypes
import errno
import gc
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from compiled import cython, load, need_a_compiler
from conftest import MIB
from measure import faults_at

import arena
from arena import Arena, _core

EXAMPLES = Path(__file__).resolve().parent / "capi"
CAPSULE = b"arena._core._C_API"

# What of arena.h a reader of cffi needs; cffi asks the compiler for what the dots leave out.
DECLARED = """
typedef struct arena arena;
typedef int (*arena_progress)(void *arg, uint64_t done, uint64_t total);
struct arena_error { int err; const char *op; uint64_t requested, committed, available; ...; };
struct arena_block { uint64_t handle, offset, bytes; void *address; uint64_t dirty; };
struct arena_api {
    uint32_t version;
    arena *(*of)(void *py_arena);
    int (*alloc)(arena *, uint64_t bytes, uint64_t align, unsigned flags, arena_progress, void *arg,
                 struct arena_block *, struct arena_error *);
    int (*alloc_committed)(arena *, uint64_t bytes, uint64_t align, struct arena_block *);
    int (*free)(arena *, uint64_t handle);
    int (*resize)(arena *, uint64_t handle, uint64_t bytes, arena_progress, void *arg, struct arena_block *,
                  struct arena_error *);
    int (*find)(arena *, const void *address, struct arena_block *);
};
struct histogram { arena *memory; uint64_t handle, *counts, buckets; struct arena_error why; ...; };
int histogram_open(struct histogram *, const struct arena_api *, arena *, uint64_t buckets);
int histogram_at(struct histogram *, const struct arena_api *, arena *, const void *address);
int histogram_add(struct histogram *, const uint32_t *values, size_t n);
int histogram_close(struct histogram *);
"""


class Table:
    """struct arena_api, and what ctypes makes of `of`: it keeps the GIL, which cffi would release, and raises."""

    def __init__(self, ffi: Any, lib: Any) -> None:
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        self.ffi, self.lib = ffi, lib
        self.api = ffi.cast("struct arena_api *", pointer(vars(_core)["_C_API"], CAPSULE))
        self._of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object)(int(ffi.cast("uintptr_t", self.api.of)))

    def of(self, a: object) -> Any:
        return self.ffi.cast("arena *", self._of(a))

    def open(self, a: Arena, buckets: int) -> tuple[int, Any]:
        h = self.ffi.new("struct histogram *")
        return self.lib.histogram_open(h, self.api, self.of(a), buckets), h

    def add(self, h: Any, values: array.array[int]) -> int:
        rc: int = self.lib.histogram_add(h, self.ffi.from_buffer("uint32_t[]", values), len(values))
        return rc


@pytest.fixture(scope="module")
def c(tmp_path_factory: pytest.TempPathFactory) -> Table:
    cffi = pytest.importorskip("cffi", reason="there is no cffi here")
    need_a_compiler()
    ffi = cffi.FFI()
    ffi.cdef(DECLARED)
    source = (EXAMPLES / "histogram.c").read_text(encoding="utf-8")
    ffi.set_source("_histogram", source, include_dirs=[arena.get_include()], extra_compile_args=["-std=c11"])
    built = load("_histogram", Path(ffi.compile(tmpdir=str(tmp_path_factory.mktemp("cffi")))))
    return Table(built.ffi, built.lib)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    return cython(tmp_path_factory.mktemp("cython"), "scratch", (EXAMPLES / "scratch.pyx").read_text(encoding="utf-8"))


@pytest.fixture
def a() -> Arena:
    return Arena("64MiB")


# --- C ----------------------------------------------------------------------------------------------------------------


def test_the_table_is_in_a_capsule_that_pycapsule_import_finds(c: Table) -> None:
    find = ctypes.pythonapi.PyCapsule_Import
    find.restype, find.argtypes = ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_int]
    assert find(CAPSULE, 0) == int(c.ffi.cast("uintptr_t", c.api))
    assert c.api.version == 1


def test_of_wants_an_arena(c: Table, a: Arena) -> None:
    assert c.of(a) == c.of(a) != c.ffi.NULL
    for wrong in (None, 1, "arena", a.alloc(64), Arena):
        with pytest.raises(TypeError, match=r"arena\.Arena"):
            c.of(wrong)


def test_python_sees_what_c_allocates_and_frees(c: Table, a: Arena) -> None:
    rc, h = c.open(a, 1000)
    assert rc == 0
    s = a.stats()
    assert (s.blocks, s.live) == (1, 8000)
    at = int(c.ffi.cast("uintptr_t", h.counts)) - a.address
    assert list(a.blocks()) == [(at, 8000)]
    assert c.add(h, array.array("I", [0, 1, 1, 999])) == 0
    assert (h.counts[0], h.counts[1], h.counts[999]) == (1, 2, 1)
    assert sum(h.counts[0:1000]) == 4
    assert c.lib.histogram_close(h) == 0
    s = a.stats()
    assert (s.blocks, s.live) == (0, 0)


def test_c_frees_twice_and_harms_nobody(c: Table, a: Arena) -> None:
    _, h = c.open(a, 1000)
    assert c.lib.histogram_close(h) == 0
    heir = a.alloc(8000, zero=True)
    assert heir.address == int(c.ffi.cast("uintptr_t", h.counts))
    assert c.lib.histogram_close(h) == -errno.EINVAL
    assert a.stats().blocks == 1
    heir.free()


def test_c_writes_without_a_page_fault(c: Table, a: Arena) -> None:
    a.warm("32MiB")
    pages = 16 * MIB // 4096
    values = array.array("I", range(0, pages * 512, 512))
    _, h = c.open(a, pages * 512)
    _, other = c.open(a, pages * 512)
    assert faults_at(a.address, a.size, lambda: c.add(other, values), lambda: c.add(h, values)) == 0
    assert other.counts[512] == 1


def test_c_finds_pythons_block_by_its_address(c: Table, a: Arena) -> None:
    block = a.alloc(800, zero=True)
    h = c.ffi.new("struct histogram *")
    at = c.ffi.cast("void *", block.address)
    assert c.lib.histogram_at(h, c.api, c.of(a), at) == 0
    assert h.buckets == 832 // 8
    assert c.add(h, array.array("I", [3, 3, 3])) == 0
    assert memoryview(block).cast("Q")[3] == 3
    assert c.lib.histogram_at(h, c.api, c.of(a), at + 64) == -errno.ENOENT
    assert c.lib.histogram_at(h, c.api, c.of(a), c.ffi.cast("void *", id(a))) == -errno.ENOENT
    block.free()
    assert c.lib.histogram_at(h, c.api, c.of(a), at) == -errno.ENOENT


def test_c_resizes_in_place(c: Table, a: Arena) -> None:
    memoryview(a.alloc("16MiB"))[:] = b"\xff" * (16 * MIB)  # what grows finds used memory, and has to clear it
    gc.collect()
    _, h = c.open(a, 10)
    at = h.counts
    assert c.add(h, array.array("I", [1, 1_000_000])) == 0
    assert (h.counts, h.buckets) == (at, 1_000_001)
    assert a.stats().live == 8_000_064
    assert sum(h.counts[0 : h.buckets]) == 2
    wall = a.alloc(64)
    assert c.add(h, array.array("I", [2_000_000])) == -errno.ENOSPC
    assert h.why.err == errno.ENOSPC
    assert (h.counts, h.buckets) == (at, 1_000_001)
    wall.free()
    assert c.add(h, array.array("I", [2_000_000])) == 0
    assert c.lib.histogram_close(h) == 0


def test_c_is_told_how_full_the_arena_is(c: Table) -> None:
    a = Arena("1MiB")
    kept = a.alloc("512KiB")
    rc, h = c.open(a, MIB // 8)
    assert rc == -errno.ENOSPC
    assert (h.why.err, h.why.requested, h.why.available) == (errno.ENOSPC, MIB, MIB // 2)
    assert h.why.committed == a.stats().committed
    assert c.ffi.string(h.why.op) == b"alloc"
    assert a.stats().blocks == 1
    del kept


def test_c_is_refused_by_a_closed_arena(c: Table, a: Arena) -> None:
    _, h = c.open(a, 10)
    a.close()
    rc, _ = c.open(a, 10)
    assert rc == -errno.ESHUTDOWN
    assert c.lib.histogram_close(h) == 0


def test_c_may_allocate_from_all_threads(c: Table, a: Arena) -> None:
    values = array.array("I", range(1000))

    def work(_: int) -> int:
        rc, h = c.open(a, 10)
        for buckets in range(100, 1000, 100):
            rc = rc or c.add(h, values[:buckets])
            if rc == -errno.ENOSPC:  # another thread's block lies behind it: that is what in place means
                rc = 0
        return int(rc or c.lib.histogram_close(h))

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(work, range(200))) == {0}
    assert a.stats().live == 0


# --- Cython -----------------------------------------------------------------------------------------------------------


def shuffled(n: int, seed: int = 1) -> array.array[float]:
    rng = random.Random(seed)
    return array.array("d", (rng.random() for _ in range(n)))


def test_cython_allocates_and_frees_without_the_gil(scratch: ModuleType, a: Arena) -> None:
    values = shuffled(10_000)
    expected = sorted(values)
    scratch.sort(values, a)
    assert list(values) == expected
    s = a.stats()
    assert (s.blocks, s.live) == (0, 0)
    assert s.peak_live == 40_000


def test_cython_allocates_and_frees_in_all_threads(scratch: ModuleType, a: Arena) -> None:
    def work(seed: int) -> bool:
        values = shuffled(1000 + seed * 100, seed)
        expected = sorted(values)
        scratch.sort(values, a)
        return list(values) == expected

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(100)))
    s = a.stats()
    assert (s.blocks, s.live) == (0, 0)
    assert s.peak_live >= 4000


def test_cython_writes_without_a_page_fault(scratch: ModuleType, a: Arena) -> None:
    a.warm("16MiB")
    values = shuffled(1 << 18)
    few = shuffled(100)  # their blocks leave most of the warmed memory untouched
    assert faults_at(a.address, a.size, lambda: scratch.sort(values, a), lambda: scratch.sort(few, a)) == 0


def test_cython_gets_errors_as_minus_errno(scratch: ModuleType) -> None:
    a = Arena("64KiB")
    with pytest.raises(OSError) as caught:
        scratch.sort(shuffled(100_000), a)
    assert caught.value.errno == errno.ENOSPC
    a.close()
    for call, arguments in ((scratch.sort, (shuffled(10), a)), (scratch.Scratch, (a, 64))):
        with pytest.raises(OSError) as caught:
            call(*arguments)
        assert caught.value.errno == errno.ESHUTDOWN


def test_cython_wants_an_arena(scratch: ModuleType) -> None:
    for wrong in (None, 1, Arena):
        with pytest.raises(TypeError):
            scratch.sort(shuffled(10), wrong)


def test_cython_keeps_the_arena_of_its_block_alive(scratch: ModuleType, a: Arena) -> None:
    mine = scratch.Scratch(a, 4000)
    assert list(a.blocks()) == [(0, 4032)]
    values = shuffled(1000)
    mine.sort(values)
    assert list(values) == sorted(values)
    with pytest.raises(ValueError):
        mine.sort(shuffled(2000))
    del mine
    assert a.stats().live == 0
    alone = scratch.Scratch(Arena("1MiB"), 4000)
    gc.collect()
    alone.sort(values)
