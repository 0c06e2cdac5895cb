"""NumPy's own allocations in an arena."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import ctypes
import gc
import random
import subprocess
import sys
import threading
import warnings
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import MIB, in_child, rss
from machine import MemoryCgroup

from arena import Arena, ArenaFullError, _core, nep49

np = pytest.importorskip("numpy")

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture(autouse=True)
def own_allocator() -> Iterator[None]:
    """What one test installs is not the next one's."""
    yield
    nep49.uninstall()


def address(array: Any) -> int:
    found: int = array.__array_interface__["data"][0]
    return found


def inside(array: Any, a: Arena) -> bool:
    return a.address <= address(array) < a.address + a.size


# --- the one line -----------------------------------------------------------------------------------------------------


def test_one_line_puts_a_program_on_an_arena_and_takes_it_off() -> None:
    with Arena("1GiB") as a:
        with a.numpy_allocations() as got:
            assert got is a and nep49.installed() is a
            x = np.arange(1_000_000, dtype="f8")
            y = x * 2 + 1
            assert inside(x, a) and inside(y, a)
            s = a.stats()
            assert s.blocks == 2 and s.live == 16_000_000 and s.peak_live >= s.live
        assert nep49.installed() is None
        z = y + 1
        assert not inside(z, a)
        assert (y == np.arange(1_000_000) * 2 + 1).all()
        del x, y
        assert a.stats().blocks == 0


def test_as_a_decorator_and_again_and_nested() -> None:
    a, b = Arena("64MiB"), Arena("64MiB")

    @a.numpy_allocations()
    def make() -> Any:
        return np.ones(1000)

    for _ in range(3):
        assert inside(make(), a)
    with a.numpy_allocations():
        with b.numpy_allocations():
            assert inside(np.ones(1000), b)
        with pytest.raises(ZeroDivisionError), b.numpy_allocations():
            _ = 1 / 0
        assert inside(np.ones(1000), a)
    assert nep49.installed() is None


def test_install_and_uninstall() -> None:
    a = Arena("64MiB")
    nep49.install(a)
    nep49.install(a)
    assert inside(np.ones(10), a)
    with Arena("64MiB") as b, b.numpy_allocations():
        nep49.install(a)  # until the end of the with
        assert inside(np.ones(10), a)
    assert nep49.installed() is a
    nep49.uninstall()
    nep49.uninstall()
    assert nep49.installed() is None and not inside(np.ones(10), a)


def test_nonsense() -> None:
    a = Arena("64MiB")
    with pytest.raises(ValueError, match="overflow must be"):
        a.numpy_allocations(overflow="swap").__enter__()  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"an arena\.Arena is wanted"):
        nep49.install("64MiB")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a NumPy array is wanted"):
        nep49.arena_of([1])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="handler"):
        _core.swap_numpy_handler(3)
    a.close()
    with pytest.raises(ValueError, match="closed"):
        nep49.install(a)
    assert nep49.installed() is None


def test_arena_of() -> None:
    a, b = Arena("64MiB"), Arena("64MiB")
    with a.numpy_allocations():
        x = np.arange(24).reshape(2, 3, 4)
    assert nep49.arena_of(x) is a
    assert nep49.arena_of(x[1:, ::-1].T) is a
    assert nep49.arena_of(np.lib.stride_tricks.sliding_window_view(x, 2, 2)) is a
    assert nep49.arena_of(b.empty((3, 3))[1]) is b
    assert nep49.arena_of(np.frombuffer(b.alloc(100), "u1")) is b
    assert nep49.arena_of(np.ones(3)) is None
    assert nep49.arena_of(np.frombuffer(bytes(8))) is None


# --- the four functions -----------------------------------------------------------------------------------------------


def test_everything_is_aligned_and_counted() -> None:
    a = Arena("256MiB")
    rng = random.Random(1)
    with a.numpy_allocations():
        held = [np.empty(rng.choice([0, 1, 7, 100, 5000, 300_000]), "u1") for _ in range(500)]
        assert all(address(x) % 64 == 0 for x in held)
        assert a.stats().blocks == 500
        assert sorted(address(x) - a.address for x in held) == [offset for offset, _ in a.blocks()]
        del held
    assert (a.stats().blocks, a.stats().live, a.stats().fragmentation) == (0, 0, 0)


def test_zeros_does_not_write_what_is_zero() -> None:
    a = Arena("64MiB", populate="read", pages="4K")
    with a.numpy_allocations():
        x = np.zeros(4 * MIB, "u1")
        assert a.residency().zero == a.residency().present >= 4 * MIB, "a page was written to"
        assert not x.any()
        x[:] = 255
        del x
        for n in (100, 5000, 3 * MIB):
            assert not np.zeros(n, "u1").any()


def test_resize_is_in_place_where_there_is_room() -> None:
    a = Arena("64MiB")
    with a.numpy_allocations():
        x = np.arange(1000)
        at = address(x)
        for n in (100_000, 10, 2_000_000, 500):
            x.resize(n, refcheck=False)
            assert address(x) == at
            assert (x[:10] == np.arange(10)).all()
        assert a.stats().live == 4032
        barrier = np.ones(1)
        x.resize(100_000, refcheck=False)
        assert address(x) != at and inside(x, a)
        assert (x[:10] == np.arange(10)).all() and not x[500:].any()
        del barrier, x
    assert a.stats().live == 0


class Handler:
    """NumPy's side of a handler: its four functions, called with the GIL or, as NumPy does too, without."""

    def __init__(self, a: Arena, *, overflow: bool = False, gil: bool = True) -> None:
        self.capsule = _core.numpy_handler(a, overflow)
        get = ctypes.pythonapi.PyCapsule_GetPointer
        get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        words = (ctypes.c_void_p * 5).from_address(get(self.capsule, b"mem_handler") + 128)
        kind = ctypes.PYFUNCTYPE if gil else ctypes.CFUNCTYPE
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        self.ctx = words[0]
        self._malloc = kind(pointer, pointer, size)(words[1] or 0)
        self._calloc = kind(pointer, pointer, size, size)(words[2] or 0)
        self._realloc = kind(pointer, pointer, pointer, size)(words[3] or 0)
        self._free = kind(None, pointer, pointer, size)(words[4] or 0)

    def malloc(self, n: int) -> int | None:
        found: int | None = self._malloc(self.ctx, n)
        return found

    def calloc(self, n: int, each: int) -> int | None:
        found: int | None = self._calloc(self.ctx, n, each)
        return found

    def realloc(self, at: int | None, n: int) -> int | None:
        found: int | None = self._realloc(self.ctx, at, n)
        return found

    def free(self, at: int | None, n: int = 0) -> None:
        self._free(self.ctx, at, n)


@pytest.mark.parametrize("gil", [True, False])
def test_the_functions_with_and_without_the_gil(gil: bool) -> None:
    a = Arena("64MiB", retain=0)
    h = Handler(a, gil=gil)
    small, large, zero = h.malloc(0), h.malloc(16 * MIB), h.calloc(1000, 8)
    assert small is not None and large is not None and zero is not None
    assert ctypes.string_at(zero, 8000) == bytes(8000)
    assert h.realloc(None, 100) is not None
    ctypes.memset(large, 7, 16 * MIB)
    assert h.malloc(100 * MIB) is None and isinstance(a.last_error, ArenaFullError)
    assert h.realloc(large, 100 * MIB) is None
    assert ctypes.string_at(large + 16 * MIB - 4, 4) == b"\7\7\7\7"
    moved = h.realloc(large, 20 * MIB)
    assert moved is not None and ctypes.string_at(moved + 16 * MIB - 4, 4) == b"\7\7\7\7"
    h.free(moved, 1)  # as wrong as NumPy's
    h.free(moved, 1)  # nothing is there: not believed
    h.free(small + 64 * 1000)
    h.free(None)
    for at in (small, zero):
        h.free(at, 1 << 40)
    assert a.stats().blocks == 1  # of realloc(None, 100)
    assert h.calloc(1 << 40, 1 << 40) is None and h.calloc((1 << 63) + 1, 2) is None


def test_the_gil_is_let_go_of_while_memory_is_populated() -> None:
    a = Arena("4GiB", pages="4K")
    started, stop, turns = threading.Event(), threading.Event(), 0

    def turn() -> None:
        nonlocal turns
        started.set()
        while not stop.wait(0.0005):
            turns += 1

    other = threading.Thread(target=turn)
    other.start()
    started.wait()
    before = sys.getswitchinterval()
    sys.setswitchinterval(2)  # seconds: nobody takes it from us
    try:
        with a.numpy_allocations():
            had = turns
            np.empty(64 * MIB, "u1")
            assert turns > had
    finally:
        sys.setswitchinterval(before)
        stop.set()
        other.join()


# --- what cannot be had -----------------------------------------------------------------------------------------------


def test_a_full_arena_is_a_memory_error_and_says_why() -> None:
    a = Arena("64MiB")
    assert Arena("64MiB").last_error is None
    with a.numpy_allocations():
        x = np.empty(60 * MIB, "u1")
        with pytest.raises(MemoryError):
            np.empty(10 * MIB, "u1")
        assert isinstance(a.last_error, ArenaFullError) and "largest free range is 4 MiB" in str(a.last_error)
        with pytest.raises(MemoryError):
            x + 1
        assert a.stats().blocks == 1 and a.stats().overflows == 0
        del x
        assert np.empty(60 * MIB, "u1").size


def test_a_full_machine_is_a_memory_error_and_says_why(cgroup: MemoryCgroup, child: Callable[..., str]) -> None:
    cgroup.limit(128 * MIB)
    said = child(
        """
        import numpy as np
        from arena import Arena
        a = Arena("1GiB")
        with a.numpy_allocations():
            try:
                np.empty(512 << 20, "u1")
            except MemoryError:
                print(repr(a.last_error))
        with a.numpy_allocations(overflow="malloc"):
            np.empty(512 << 20, "u1")[0] = 1
        assert a.stats().committed == 0 and a.stats().overflows == 1
        """,
        preexec=cgroup.enter,
    )
    assert "CommitError" in said


def test_overflow_goes_to_malloc_and_comes_back() -> None:
    a = Arena("16MiB")
    with a.numpy_allocations(overflow="malloc"):
        x = np.zeros(32 * MIB, "u1")
        assert not inside(x, a) and nep49.arena_of(x) is None and not x.any()
        assert (a.stats().overflows, a.stats().blocks) == (1, 0)
        assert isinstance(a.last_error, ArenaFullError)
        y = np.arange(1000)
        assert inside(y, a)
        y.resize(4 * MIB, refcheck=False)  # 32 MiB: moves out
        assert not inside(y, a) and (y[:1000] == np.arange(1000)).all() and not y[1000:].any()
        assert (a.stats().overflows, a.stats().blocks) == (2, 0)
        x.resize(64 * MIB, refcheck=False)
        assert not x.any()
    del x, y
    gc.collect()


def test_an_arena_that_is_closed_meanwhile() -> None:
    a = Arena("64MiB")
    with a.numpy_allocations():
        x = np.ones(1000)
        a.close()
        with pytest.warns(RuntimeWarning, match=rf"the arena of 64 MiB at {a.address:#x} is closed"):
            z = [np.full(n, 7) for n in (1, 1000, 100_000)]
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # once is enough
            z[1].resize(50_000, refcheck=False)
            w = np.zeros(2_000_000)
        assert all((each[:1000] == 7).all() for each in z) and not w.any() and not inside(w, a)
        assert isinstance(a.last_error, ValueError) and "closed" in str(a.last_error)
        x.resize(200_000, refcheck=False)  # of the arena's memory into malloc's
        assert x[:1000].sum() == 1000 and not x[1000:].any()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            np.ones(100_000)
    with a_closed_arenas_allocations(), warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning, match="is closed"):
            np.ones(1000).sum()  # it comes at the next bytecode
    y = x[5:]
    del x
    assert y.sum() == 995


@contextlib.contextmanager
def a_closed_arenas_allocations() -> Iterator[None]:
    a = Arena("64MiB")
    with a.numpy_allocations():
        a.close()
        yield


# --- signals ----------------------------------------------------------------------------------------------------------

INTERRUPTED = """
    import os, signal, sys, threading, time
    import numpy as np
    from arena import Arena

    class Alarm(Exception):
        pass

    def handler(*_):
        calls.append(1)
        if RAISES:
            raise Alarm

    calls = []
    signal.signal(signal.SIGALRM, handler)
    a = Arena("64GiB", pages="4K")
    with a.numpy_allocations(overflow=OVERFLOW):
        x = np.ones(1000)
        signal.setitimer(signal.ITIMER_REAL, 0.03)
        try:
            try:
                y = np.empty(1 << 30, "u1")
            except MemoryError:
                for _ in range(10): time.sleep(0)
                assert False, "the exception of the handler is lost"
            for _ in range(10): time.sleep(0)
        except Alarm:
            assert RAISES
            assert a.stats().blocks == 1 and a.residency().present == a.stats().committed <= 4 << 20
            assert a.last_error.errno == 4, a.last_error
        else:
            assert not RAISES and a.stats().blocks == 2 and a.last_error is None
    assert calls == [1]
"""


@pytest.mark.parametrize("overflow", ["raise", "malloc"])
@pytest.mark.parametrize("raises", [True, False])
def test_a_signal_during_an_allocation(raises: bool, overflow: str, child: Callable[..., str]) -> None:
    child(INTERRUPTED.replace("RAISES", repr(raises)).replace("OVERFLOW", repr(overflow)))


# --- lifetimes --------------------------------------------------------------------------------------------------------


def mapped(start: int) -> bool:
    with open("/proc/self/maps", encoding="ascii", errors="replace") as lines:
        return any(int(line.split("-")[0], 16) <= start < int(line.split()[0].split("-")[1], 16) for line in lines)


def test_arrays_outlive_the_with_and_the_arena() -> None:
    a = Arena("1GiB", name="outlived")
    start = a.address
    with a, a.numpy_allocations():
        x = np.arange(100_000)
        view = x[::2]
    assert a.closed
    del a, x
    assert view[-1] == 99_998 and mapped(start)
    other = threading.Thread(target=lambda v: None, args=(view,))
    other.start()
    other.join()
    del view, other
    gc.collect()
    assert not mapped(start)


def test_the_last_view_may_go_in_another_thread() -> None:
    a = Arena("64MiB", retain=0)
    with a.numpy_allocations():
        box = [np.ones(1_000_000)]
    thread = threading.Thread(target=box.clear)
    thread.start()
    thread.join()
    assert a.stats().blocks == 0 and a.stats().committed == 0


def test_reset_waits_for_arrays() -> None:
    a = Arena("64MiB")
    a.alloc(100)
    with a.numpy_allocations():
        x = np.ones(3)
        with pytest.raises(BufferError, match="NumPy"):
            a.reset()
        del x
        a.reset()
        for overflown in (False, True):
            with a.numpy_allocations(overflow="malloc"):
                y = np.empty(100 * MIB if overflown else 100, "u1")
            del y
            a.reset()
    assert a.stats().blocks == 0


def test_at_the_end_of_the_interpreter(child: Callable[..., str]) -> None:
    for _ in range(3):
        child(
            """
            import threading, time
            import numpy as np
            from arena import Arena, nep49
            a = Arena("4GiB", retain=0, pages="4K")
            nep49.install(a)
            kept = [np.ones(100), np.ones((1000, 1000))]
            cycle = [np.ones(1000)]; cycle.append(cycle)
            class Late:
                def __init__(self): self.x = np.ones(500_000)
                def __del__(self): self.x = np.ones(10) if np is not None else None
            late = Late(); late.me = late

            def work():
                while True:
                    np.empty(1 << 25, "u1")
                    np.sort(np.ones(100_000), kind="stable")

            threading.Thread(target=nep49.carried(work), daemon=True).start()
            time.sleep(0.1)
            """
        )


def test_memory_goes_back() -> None:
    a = Arena("2GiB")
    with a.numpy_allocations():
        before = rss()
        held = [np.ones(MIB, "f8") for _ in range(20)] + [np.zeros(1000) for _ in range(1000)]
        assert rss() > before + 150 * MIB
        del held
        a.trim()
        assert abs(rss() - before) <= MIB
    assert a.stats().committed == 0


def test_handlers_and_arenas_do_not_leak() -> None:
    import weakref

    a = Arena("64MiB")
    gone = weakref.ref(a)
    for _ in range(100):
        with a.numpy_allocations():
            np.ones(3)
    nep49.install(a)
    nep49.uninstall()
    count = sys.getrefcount(a)
    with a.numpy_allocations():
        pass
    assert sys.getrefcount(a) == count
    del a
    gc.collect()
    assert gone() is None


# --- contexts ---------------------------------------------------------------------------------------------------------


def test_threads_start_with_numpys_own_and_carried_takes_it_along() -> None:
    a = Arena("64MiB")
    got: dict[str, bool] = {}

    def look(name: str) -> bool:
        got[name] = inside(np.ones(10), a)
        return got[name]

    # Since 3.14 threads can inherit the context, and on free-threaded builds do.
    inherits = bool(getattr(sys.flags, "thread_inherit_context", False))
    with a.numpy_allocations():
        thread = threading.Thread(target=look, args=("bare",))
        thread.start()
        thread.join()
        thread = threading.Thread(target=nep49.carried(look), args=("carried",))
        thread.start()
        thread.join()
        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(look, "ab")) == [inherits] * 2
            assert list(pool.map(nep49.carried(look), "cd")) == [True, True]
            assert list(pool.map(look, "ef")) == [inherits] * 2, "the pool's thread was left as it was"
            nothing = contextvars.copy_context().run
            assert pool.submit(nothing, look, "g").result()
    assert got["bare"] == inherits and got["carried"]
    assert nep49.carried(nep49.installed)() is None


def test_tasks_inherit_and_keep_to_themselves() -> None:
    a, b = Arena("64MiB"), Arena("64MiB")

    async def look(own: Arena | None) -> tuple[bool, bool]:
        if own is None:
            await asyncio.sleep(0)
            x = np.ones(10)
        else:
            with own.numpy_allocations():
                await asyncio.sleep(0)
                x = np.ones(10)
        return inside(x, a), inside(x, b)

    async def main() -> None:
        with a.numpy_allocations():
            assert [*await asyncio.gather(look(None), look(b))] == [(True, False), (False, True)]
            assert await asyncio.to_thread(lambda: inside(np.ones(10), a))
        assert await look(None) == (False, False)

    asyncio.run(main())


def test_left_in_another_context_it_leaves_that_one_alone() -> None:
    a, b = Arena("64MiB"), Arena("64MiB")

    async def numbers() -> AsyncGenerator[int, None]:
        with a.numpy_allocations():
            yield 1

    async def main() -> None:
        generator = numbers()
        await asyncio.create_task(anext(generator))
        nep49.install(b)
        await generator.aclose()
        assert nep49.installed() is b

    asyncio.run(main())


# --- forks ------------------------------------------------------------------------------------------------------------


def test_a_forks_child_has_its_own() -> None:
    a = Arena("64MiB")
    with a.numpy_allocations():
        x = np.arange(1000)

        def child() -> None:
            nonlocal x
            x[0] = 5
            y = x + 1
            assert inside(y, a) and y[0] == 6
            del x, y
            assert a.stats().blocks == 0

        in_child(child)
        assert x[0] == 0 and a.stats().blocks == 1


def test_a_forks_child_that_may_not_allocate() -> None:
    a = Arena("64MiB", fork="drop")
    with a.numpy_allocations(overflow="malloc"):
        large = np.ones(100_000)  # an array keeps its handler
    with a.numpy_allocations():
        x = np.ones(1000)

        def child() -> None:
            nonlocal x, large
            assert x.data[999] == 0  # even a sum is an allocation of NumPy's
            try:
                np.empty(1000)
            except MemoryError:
                assert "stays with the parent" in str(a.last_error)
            else:
                raise AssertionError("it was given memory of its parent's")
            with a.numpy_allocations(overflow="malloc"):
                y = np.ones(1000)
                large.resize(200_000, refcheck=False)
                assert not inside(y, a) and not inside(large, a)
            del x, y, large

        in_child(child)
        assert x.sum() == 1000 and large.sum() == 100_000


def test_python_objects_are_not_to_be_shared_with_children() -> None:
    with pytest.raises(ValueError, match=r"use a\.empty\(\) in a shared arena"):
        nep49.install(Arena("64MiB", shared=True))
    with Arena("64MiB", shared=True, fork="drop") as a, a.numpy_allocations():
        assert inside(np.ones(10), a)


@pytest.mark.parametrize("by", ["thread", "signal"])
def test_resizing_while_a_resize_populates(by: str, child: Callable[..., str]) -> None:
    """NumPy's resize is one step only as long as the GIL is held, and it is not while memory is populated."""
    child(
        """
        import signal, sys, threading, time
        import numpy as np
        from arena import Arena
        a = Arena("8GiB", pages="4K")
        with a.numpy_allocations():
            x = np.ones(1000, "u1")
            started = threading.Event()
            def shrink(*_):
                x.resize(100, refcheck=False)
            def other():
                started.wait()
                time.sleep(0.05)
                shrink()
            if BY == "thread":
                thread = threading.Thread(target=other)
                thread.start()
                started.set()
            else:
                signal.signal(signal.SIGALRM, shrink)
                signal.setitimer(signal.ITIMER_REAL, 0.05)
            try:
                x.resize(1 << 30, refcheck=False)
            except MemoryError:
                pass
            if BY == "thread":
                thread.join()
            # Whoever was first: what the array says it has, it has.
            blocks = list(a.blocks())
            assert len(blocks) == 1 and blocks[0][1] >= x.nbytes, (blocks, x.nbytes)
            y = np.zeros(5000, "u1")
            x[:] = 255
            assert not y.any()
        del x, y
        assert a.stats().blocks == 0
        """.replace("BY", repr(by))
    )


# --- faults, threads, and NumPy's own tests ---------------------------------------------------------------------------


def test_no_faults_in_the_steady_state(child: Callable[..., str]) -> None:
    # In a process of its own: once this one has forked, a garbage collection faults on each of its pages.
    child(
        """
        import resource
        import numpy as np
        from arena import Arena

        def faults():
            return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt

        a = Arena("2GiB")
        with a.numpy_allocations():
            x, y, z = (np.ones(1 << 19) for _ in range(3))
            def step():
                return (x * y + z).sum() + np.zeros(1 << 20, "u1")[5]
            for _ in range(10):
                step()
            before = faults()
            for _ in range(100):
                step()
            assert faults() - before <= 2, faults() - before  # the interpreter's own
        """
    )


def test_many_threads_at_once() -> None:
    a = Arena("512MiB", retain="8MiB", chunk="64KiB")
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        held: list[tuple[Any, int]] = []
        try:
            for i in range(1500):
                if held and (len(held) > 20 or rng.random() < 0.4):
                    x, n = held.pop(rng.randrange(len(held)))
                    assert x[0] == x[-1] == n
                    if rng.random() < 0.3:
                        x = np.sort(x, kind=rng.choice(["quicksort", "stable", "heapsort"]))
                        assert x[0] == n
                else:
                    n = int(2 ** (rng.random() * 17))
                    x = np.full(n, n, rng.choice(["i4", "f8", "u8"]))
                    if rng.random() < 0.2:
                        x = x.copy()
                        x.resize(2 * n, refcheck=False)
                        x[n:] = n
                    held.append((x, n))
                if i % 300 == 0:
                    a.trim()
        except BaseException as error:
            errors.append(error)

    with a.numpy_allocations():
        threads = [threading.Thread(target=nep49.carried(work), args=(i,)) for i in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    assert not errors, errors
    del threads
    gc.collect()
    assert a.stats().blocks == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_some_of_numpys_own_tests() -> None:
    """bench/numpy_suite.py is for all of them."""
    pytest.importorskip("hypothesis")
    if not (BENCH / "numpy_suite.py").exists():
        pytest.skip("bench/ is not here")
    core = "core" if np.__version__.startswith("1.") else "_core"
    parts = [f"{core}.tests.test_mem_overlap", f"{core}.tests.test_indexing", "linalg.tests.test_linalg"]
    done = subprocess.run(
        [sys.executable, str(BENCH / "numpy_suite.py"), *parts], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_missing_numpy_is_said(child: Callable[..., str]) -> None:
    child(
        """
        import sys
        sys.modules["numpy"] = None
        import arena
        a = arena.Arena("64MiB")
        try:
            a.numpy_allocations().__enter__()
        except ImportError as error:
            assert "pip install" in str(error)
        else:
            raise SystemExit("no ImportError")
        """
    )
