"""NumPy arrays on blocks: every dtype and order as NumPy has them, and memory that goes with the last view."""

from __future__ import annotations

import contextlib
import copy
import gc
import pickle
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from conftest import MIB, in_child
from hypothesis import given
from hypothesis import strategies as st
from measure import faults_writing

from arena import Arena, ArenaFullError, Block

np: Any = pytest.importorskip("numpy", reason="NumPy is not installed")

DTYPES = [
    "?", "i1", "<u2", ">i4", "u8", "f2", "f4", ">f8", "g", "F", "D", "S5", "U7", ">U3", "V3", "M8[ns]", "m8[D]", "M8",
    [("a", "i4"), ("b", "S3"), ("c", "f8", (2, 3))],
    {"names": ["x", "y"], "formats": ["u1", "f8"], "offsets": [0, 8], "itemsize": 24},
]  # fmt: skip


@pytest.fixture
def a() -> Arena:
    return Arena("64MiB")


def live(a: Arena) -> int:
    gc.collect()
    return a.stats().blocks


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(a: Arena, dtype: Any) -> None:
    dt = np.dtype(dtype)
    plain = np.zeros((3, 4), dt)
    random = np.random.default_rng(1).integers(1, 100, (3, 4))
    if dt.names is None and dt.kind != "V":
        plain[...] = random.astype("i8" if dt.kind in "mM" else "i4").astype(dt)
    for order in ("C", "F"):
        x = a.empty((3, 4), dt, order)
        same = np.empty((3, 4), dt, order)
        assert (x.dtype, x.shape, x.strides, type(x)) == (dt, (3, 4), same.strides, np.ndarray)
        assert x.flags.aligned and x.flags.writeable and not x.flags.owndata
        x[...] = plain
        assert (x == plain).all()
        z = a.zeros((3, 4), dt, order)
        block: Any = z.base  # not z.tobytes(), which leaves out padding
        assert z.strides == same.strides and bytes(block) == bytes(z.nbytes)
    y = a.array(plain)
    assert y.dtype == dt and (y == plain).all() and type(y.base).__name__ == "Block"
    f = a.full(5, plain[0, 0], dt)
    assert (f == plain[0, 0]).all() and f.dtype == dt
    assert a.empty_like(plain).dtype == dt
    assert (pickle.loads(pickle.dumps(y)) == plain).all()
    del x, y, z, f, block
    assert live(a) == 0


def test_the_arguments_are_numpys(a: Arena) -> None:
    assert a.empty(3).dtype == a.empty(3, None).dtype == np.float64
    assert a.empty((), "M8[s]").shape == ()
    for shape in (3, (3,), [3], np.int64(3), np.array([3]), (np.int8(3),), range(3, 4)):
        assert a.zeros(shape, "u1").tolist() == [0, 0, 0], shape
    assert a.full(5, 7).dtype == np.asarray(7).dtype
    assert a.full(2, 1.9, dtype=int).tolist() == [1, 1]
    assert a.full((2, 3), [1, 2, 3]).tolist() == [[1, 2, 3]] * 2
    assert a.empty((2, 3), "(4,)f4").shape == np.empty((2, 3), "(4,)f4").shape == (2, 3, 4)
    assert a.empty((2, 3), "(4,)f4", "F").strides == np.empty((2, 3), "(4,)f4", "F").strides


def test_strings_without_a_length(a: Arena) -> None:
    """NumPy has items of one character then, and as many as the data has where there is data."""
    for dtype in ("U", "S", str, bytes):
        assert a.empty(3, dtype).dtype == np.empty(3, dtype).dtype
        assert a.array(["a", "bcd"], dtype).dtype == np.array(["a", "bcd"], dtype).dtype
        assert a.full(2, "xy", dtype).tolist() == np.full(2, "xy", dtype).tolist()
    assert a.array(np.arange(3), "S").dtype == np.array(np.arange(3), "S").dtype
    assert a.array(["2020-01-02"], "M8").dtype == np.dtype("M8[D]")
    assert a.empty(3, "V").dtype == np.empty(3, "V").dtype
    assert a.empty(3, [("s", "U")]).nbytes == 0


@pytest.mark.parametrize("dtype", [object, [("n", "i4"), ("o", "O")], "(2,)O"], ids=str)
def test_objects_are_refused(a: Arena, dtype: Any) -> None:
    zero = np.zeros(2, dtype)
    dicts: Any = [{}, {}]
    makes: list[Callable[[], object]] = [
        lambda: a.empty(3, dtype),
        lambda: a.zeros(0, dtype),
        lambda: a.full(3, None, dtype),
        lambda: a.array([1, 2], dtype),
        lambda: a.array(zero),
        lambda: a.empty_like(zero),
        lambda: a.empty_like([1], dtype),
        lambda: a.full(3, None),
        lambda: a.array(dicts),
    ]
    for make in makes:
        with pytest.raises(ValueError, match="count their references"):
            make()
    assert live(a) == 0


def test_strings_of_variable_width_are_refused(a: Arena) -> None:
    if not hasattr(np, "dtypes") or not hasattr(np.dtypes, "StringDType"):
        pytest.skip("StringDType is in NumPy 2")
    dtype = np.dtypes.StringDType()
    strings = np.array(["x" * 100], dtype)
    makes: list[Callable[[], object]] = [
        lambda: a.empty(3, dtype),
        lambda: a.array(strings),
        lambda: a.full(1, "x", "T"),
    ]
    for make in makes:
        with pytest.raises(ValueError, match="fixed width"):
            make()
    assert a.array(np.array(["xyz"], dtype), "U3").tolist() == ["xyz"]


@pytest.mark.parametrize(
    ("shape", "error", "says"),
    [
        (-1, ValueError, "negative"),
        ((2, -3), ValueError, "negative"),
        ((0, -3), ValueError, "negative"),
        (1.5, TypeError, None),
        ((2, 1.5), TypeError, None),
        ("64MiB", TypeError, None),
        (1 << 62, ValueError, "too big"),
        (1 << 70, ValueError, "too big"),
        ((1 << 40, 0, 1 << 40), ValueError, "too big"),
        ((1,) * 65, ValueError, "dimension"),
        ((1, None), TypeError, None),
    ],
)
def test_shapes_that_make_no_sense(a: Arena, shape: Any, error: type[Exception], says: str | None) -> None:
    for make in (a.empty, a.zeros, lambda n: a.full(n, 1.0), lambda n: a.empty_like(np.empty(3), shape=n)):
        with pytest.raises(error, match=says):
            make(shape)
    assert live(a) == 0


def test_other_arguments_that_make_no_sense(a: Arena) -> None:
    for made in (a.empty, a.zeros):
        make: Any = made
        for order in ("K", "A", "c", "", None, 1):
            with pytest.raises(ValueError, match="order"):
                make(1, order=order)
        with pytest.raises(TypeError):
            make(1, dtype="nonsense")
    wrong: Any
    for wrong in ("c", "", None, []):
        with pytest.raises(ValueError, match="order"):
            a.array([1], order=wrong)
        with pytest.raises(ValueError, match="order"):
            a.empty_like([1], order=wrong)
    for align in (0, 3, -64, 4 * MIB):
        with pytest.raises(ValueError, match="align"):
            a.empty(1, align=align)
        with pytest.raises(ValueError, match="align"):
            a.array([1], align=align)
    with pytest.raises(ArenaFullError):
        a.empty(5 << 30)
    with pytest.raises(ValueError, match="could not convert"):
        a.array("abc", float)
    with pytest.raises(ValueError, match="could not convert"):
        a.full(3, "abc", float)
    assert live(a) == 0


@pytest.mark.parametrize("align", [1, 8, 64, 4096, "64KiB", 2 * MIB])
def test_alignment(a: Arena, align: Any) -> None:
    step = {"64KiB": 65536}.get(align, align)
    kept = [
        make(align)
        for _ in range(2)
        for make in (
            lambda n: a.empty(100, align=n),
            lambda n: a.zeros((3, 5), "c16", "F", align=n),
            lambda n: a.full(7, 1, align=n),
            lambda n: a.array(b"abc", align=n),
            lambda n: a.empty_like(np.empty((3, 4))[::-1, ::2].T, align=n),
        )
    ]
    assert all(x.ctypes.data % step == 0 for x in kept)


def test_an_arena_with_larger_chunks_aligns_to_them() -> None:
    a = Arena("256MiB", chunk="16MiB")
    assert a.empty(3, align="16MiB").ctypes.data % (16 * MIB) == 0


@st.composite
def prototypes(draw: st.DrawFn) -> Any:
    """Arrays as slicing, transposing and broadcasting make them."""
    dims = draw(st.lists(st.integers(0, 4), max_size=4))
    x = np.arange(int(np.prod(dims)), dtype="i4").reshape(dims, order=draw(st.sampled_from("CF")))
    x = x[tuple(slice(None, None, draw(st.sampled_from([1, 2, -1, -2]))) for _ in dims)]
    x = x.transpose(draw(st.permutations(range(len(dims)))))
    if draw(st.booleans()):
        x = np.broadcast_to(x, (draw(st.integers(0, 3)), *x.shape))
    return x


@given(prototypes(), st.sampled_from("CFAK"), st.sampled_from([None, "f8", "S3", "(2,)u1"]))
def test_like_and_copies_are_laid_out_as_numpys(x: Any, order: Any, dtype: Any) -> None:
    a = Arena("1MiB")
    same = np.empty_like(x, dtype, order)
    made = a.empty_like(x, dtype, order)
    assert (made.shape, made.dtype) == (same.shape, same.dtype)
    assert made.strides == same.strides or not made.size
    if dtype != "(2,)u1":
        # Of order="A" NumPy says the same for both, but np.array often means "K" by it.
        strides = same.strides
        same = np.array(x, dtype, order=order)
        made = a.array(x, dtype, order)
        assert (made.shape, made.dtype) == (same.shape, same.dtype)
        assert made.strides == (strides if order == "A" else same.strides) or not made.size
        assert made.tolist() == same.tolist()
        assert not np.shares_memory(made, x)


@given(prototypes(), st.sampled_from("CFAK"), st.lists(st.integers(0, 4), max_size=5))
def test_like_with_another_shape(x: Any, order: Any, shape: list[int]) -> None:
    same = np.empty_like(x, order=order, shape=shape)
    made = Arena("1MiB").empty_like(x, order=order, shape=shape)
    assert made.shape == same.shape
    assert made.strides == same.strides or not made.size


def test_copies_of_anything(a: Arena) -> None:
    class Wrapped:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            return np.arange(3, dtype=dtype)

    masked = np.ma.masked_array([1, 2, 3], [0, 1, 0])
    record = np.rec.array([(1, 2.0)], dtype=[("a", int), ("b", float)])
    things: list[Any] = [
        5, 2.5, 1j, "abc", b"abc", True, [], [[1, 2], [3, 4]], (1, 2.5), range(4), np.float16(1.5),
        np.datetime64("2020-01-01", "s"), bytearray(b"abc"),
        memoryview(b"abcd").cast("H"), masked, record, Wrapped(),
    ]  # fmt: skip
    for thing in things:
        same, made = np.array(thing, subok=False), a.array(thing)
        assert type(made) is np.ndarray
        assert (made.dtype, made.shape) == (same.dtype, same.shape), thing
        assert made.tolist() == same.tolist()
    for dtype in ("i2", "f4", "c8", "?", "S20", "U3", "m8[s]"):
        same = np.array([1, 0, 3], dtype)
        made = a.array(np.array([1, 0, 3]), dtype)
        assert made.dtype == same.dtype and made.tolist() == same.tolist()
    with pytest.raises(ValueError):
        a.array([[1], [1, 2]])
    with pytest.raises(TypeError):
        a.array([1, 2], "nonsense")


def test_a_copy_is_a_copy(a: Arena) -> None:
    x = np.arange(10)
    y = a.array(x)
    z = a.array(y)
    y[:] = 0
    assert x.tolist() == z.tolist() == list(range(10))
    assert live(a) == 2


def test_what_warns_in_numpy_warns(a: Arena) -> None:
    with pytest.warns(RuntimeWarning, match="invalid value"):
        a.array(np.array([np.nan]), int)
    with pytest.warns(np.exceptions.ComplexWarning if hasattr(np, "exceptions") else np.ComplexWarning):
        a.array(np.array([1j]), float)


def test_arrays_of_no_bytes_are_numpys(a: Arena) -> None:
    for x in (
        a.empty(0),
        a.zeros((3, 0, 2), "i4", "F"),
        a.array([]),
        a.empty_like(np.empty((0, 3)).T),
        a.empty(3, "V"),
    ):
        assert x.nbytes == 0 and x.base is None
    assert a.zeros((3, 0, 2), "i4", "F").strides == np.zeros((3, 0, 2), "i4", "F").strides
    assert live(a) == 0
    a.close()


# Lifetimes.


def test_an_array_is_an_export(a: Arena) -> None:
    x = a.empty((3, 4))
    block: Any = x.base
    assert type(block) is Block and block.nbytes == 96
    for refused in (a.reset, lambda: a.close(strict=True), block.free):
        with pytest.raises(BufferError):
            refused()
    with pytest.raises(BufferError):
        block.resize(10)
    with pytest.raises(BufferError), block:
        pass
    x[:] = 7
    assert bytes(block) == x.tobytes()  # the block can be looked at meanwhile
    del x, refused
    with pytest.raises(BufferError):
        block.free()  # it is the array's for life: an array might be made of it again
    del block
    assert live(a) == 0
    a.reset()
    a.close()


def test_the_block_goes_with_the_last_view(a: Arena) -> None:
    makes: list[Callable[[Any], Any]] = [
        lambda x: x[1:][::2].T,
        lambda x: x.reshape(2, -1).view("u1")[0],
        lambda x: memoryview(x),
        lambda x: np.lib.stride_tricks.as_strided(x, (2,), (8,)),
        lambda x: np.lib.stride_tricks.sliding_window_view(x, 3),
        lambda x: np.broadcast_to(x, (5, 12)),
        lambda x: iter(x),
        lambda x: x.flat,
        lambda x: np.frombuffer(x, "u1"),
        lambda x: pickle.PickleBuffer(x),
        lambda x: x.view(np.recarray),
        lambda x: x.ctypes,
        lambda x: np.nditer(x),
    ]
    for make in makes:
        view = make(a.empty(12))
        assert live(a) == 1
        with pytest.raises(BufferError):
            a.reset()
        del view
        assert live(a) == 0


def test_a_view_outlives_everything_else() -> None:
    a = Arena("64MiB")
    view = a.full(1000, 7)[10:20][::-1]
    a.close()
    del a
    gc.collect()
    assert view.tolist() == [7] * 10
    view[:] = 8
    whole: Any = view.base
    assert whole.base.arena.stats().blocks == 1


def test_memory_comes_back_from_whichever_thread(a: Arena) -> None:
    handed: list[Any] = []
    there, done = threading.Barrier(5), threading.Event()

    def work(number: int) -> None:
        mine = [a.full((10, i + 1), number, "i4", align=4096) for i in range(50)]
        handed.extend(x[1:].T for x in mine)
        del mine
        there.wait()
        done.wait()
        for _ in range(50):
            handed.pop()  # somebody's

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    there.wait()
    assert live(a) == 200
    assert all((x == x[0, 0]).all() for x in handed)
    done.set()
    for thread in threads:
        thread.join()
    assert live(a) == 0
    a.close()


def test_reset_and_arrays_from_many_threads_never_meet() -> None:
    """An array is either made before a reset, which is refused, or after it: its memory is never another's."""
    a = Arena("64MiB")
    wrong: list[object] = []
    stop = threading.Event()

    def make(number: int) -> None:
        while not stop.is_set():
            try:
                x = a.full(100, number, "i4")
            except (BufferError, RuntimeError):
                continue
            if not (x == number).all():
                wrong.append(x.tolist())

    threads = [threading.Thread(target=make, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(3000):
        with contextlib.suppress(BufferError):
            a.reset()
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert live(a) == 0


def test_copies_are_numpys_own(a: Arena) -> None:
    x = a.full((3, 4), 1.5)
    others = [copy.copy(x), copy.deepcopy(x), x.copy(), x + 1, pickle.loads(pickle.dumps(x))]
    kept: list[pickle.PickleBuffer] = []
    data = pickle.dumps(x, protocol=5, buffer_callback=kept.append)
    assert len(data) < 1000
    out = pickle.loads(data, buffers=kept)
    assert np.shares_memory(out, x)
    del x
    assert live(a) == 1  # by the buffer that went out of band
    kept.clear()
    assert (out == 1.5).all()
    del out
    assert live(a) == 0
    assert all(other[0, 0] in (1.5, 2.5) for other in others)


def test_a_fork(a: Arena) -> None:
    x = a.full(1000, 7)

    def child() -> None:
        nonlocal x
        assert (x == 7).all()
        x[:] = 8
        y = a.zeros(1000)
        assert not y.any()
        del x, y
        assert a.stats().blocks == 0

    in_child(child)
    assert (x == 7).all()


def test_nothing_is_leaked_by_many_arrays(a: Arena) -> None:
    dtype = np.dtype([("a", "i4"), ("b", "f8")])

    def round_trip() -> None:
        a.empty((3, 4), dtype)
        a.zeros(5, "U")
        with pytest.raises(ValueError):
            a.empty((1,) * 65, dtype)
        for order in ("C", "X"):
            with contextlib.suppress(ValueError):
                a.empty((1,) * 40, dtype, order)  # type: ignore[call-overload]

    for _ in range(10):
        round_trip()
    counted = (a, dtype, np.ndarray)
    before = [sys.getrefcount(o) for o in counted]
    for _ in range(1000):
        round_trip()
    assert [sys.getrefcount(o) for o in counted] == before
    assert live(a) == 0


# Memory that is there.


def test_zeros_write_nothing_that_is_known_to_be_zero() -> None:
    with Arena("64MiB", populate="read", pages="4K", chunk="64KiB") as a:
        x = a.zeros(MIB, "u1")
        assert not x.any()
        r = a.residency()
        if r.zero is None:
            pytest.skip("zero pages are counted since Linux 6.7")
        assert r.zero == r.present >= MIB
        x[5] = 1
        assert a.residency().zero == r.zero - 4096
        del x
        x = a.zeros(MIB, "u1")  # what was used may be anything now, so it is cleared
        assert not x.any()
        del x


def test_no_fault_in_an_array(a: Arena) -> None:
    assert faults_writing(a.empty(16 * MIB, "u1").data) == 0
    assert faults_writing(a.zeros(16 * MIB, "u1").data) == 0
    commits = a.stats().commits
    assert faults_writing(a.array(np.ones(16 * MIB, "u1")).data) == 0
    assert a.stats().commits == commits


def test_without_numpy(child: Callable[..., str]) -> None:
    child(
        """
        import sys
        sys.modules["numpy"] = None
        import arena
        a = arena.Arena("1MiB")
        for make in (a.empty, a.array, a.empty_like, arena.memmap):
            try:
                make(3)
            except ImportError as error:
                assert "pip install" in str(error)
            else:
                raise AssertionError
        a.close()
        """
    )


def test_importing_arena_does_not_import_numpy(child: Callable[..., str]) -> None:
    child("import sys, arena; arena.memmap; assert 'numpy' not in sys.modules")


if TYPE_CHECKING:
    # What users who run mypy --strict get; mypy reads this as a test.
    import numpy as n  # noqa: ICN001  (np is Any above)
    from numpy.typing import NDArray
    from typing_extensions import assert_type

    def types(a: Arena, x: NDArray[n.int16], dtype: n.dtype[n.float32], value: n.int8) -> None:
        assert_type(a.empty(3), NDArray[n.float64])
        assert_type(a.zeros((3, 4), order="F"), NDArray[n.float64])
        assert_type(a.empty([3], n.uint8, "F", align="4KiB"), NDArray[n.uint8])
        assert_type(a.zeros(3, dtype), NDArray[n.float32])
        assert_type(a.empty(3, "S5"), NDArray[Any])
        assert_type(a.full(3, value), NDArray[n.int8])
        assert_type(a.full(3, 1, n.int8), NDArray[n.int8])
        assert_type(a.full(3, 1), NDArray[Any])
        assert_type(a.empty_like(x), NDArray[n.int16])
        assert_type(a.empty_like([1], dtype, shape=3), NDArray[n.float32])
        assert_type(a.array(x), NDArray[n.int16])
        assert_type(a.array(x, n.int8, "F"), NDArray[n.int8])
        assert_type(a.array([1, 2]), NDArray[Any])
        assert_type(a.array("abc", "U"), NDArray[Any])
