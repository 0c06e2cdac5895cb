"""Every order in which things can end. Each case runs in a child that has to exit by itself."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from arena import Arena, Block, Reservation
from arena.realtime import Pool, Ring

PRELUDE = """
import gc, sys
from arena import Arena, Block, Reservation
a = Arena("64MiB")
b = a.alloc(10000)
b[0] = 1
"""


@pytest.mark.parametrize("order", list(itertools.permutations(["a", "b", "v"])))
@pytest.mark.parametrize(
    "view", ["memoryview(b)", "np.frombuffer(b, 'u1')", "np.asarray(b)", "np.ndarray((10000,), 'u1', b)"]
)
def test_dropped_in_any_order(order: tuple[str, ...], view: str, child: Callable[..., str]) -> None:
    if "np." in view:
        pytest.importorskip("numpy", reason="NumPy is not installed")
    steps = "".join(
        f"del {name}\ngc.collect()\n" + ("v[0] = v[9999] = 3\n" if "v" in order[i + 1 :] else "")
        for i, name in enumerate(order)
    )
    child(PRELUDE + ("import numpy as np\n" if "np." in view else "") + f"v = {view}\n" + steps)


@pytest.mark.parametrize("view", ["memoryview(b)", "np.frombuffer(b, 'u1')", "np.ndarray((10000,), 'u1', b)"])
@pytest.mark.parametrize("steps", list(itertools.permutations(["a.close()", "b.free()", "a.reset()", "a.trim()"])))
def test_told_to_end_in_any_order(steps: tuple[str, ...], view: str, child: Callable[..., str]) -> None:
    if "np." in view:
        pytest.importorskip("numpy", reason="NumPy is not installed")
    tries = "".join(
        f"try:\n    {step}\nexcept (BufferError, ValueError):\n    pass\nv[0] = v[9999] = 3\n" for step in steps
    )
    child(
        PRELUDE
        + ("import numpy as np\n" if "np." in view else "")
        + f"v = {view}\n"
        + tries
        + "del v, b, a\ngc.collect()\n"
    )


def test_interpreter_exit_with_live_blocks(child: Callable[..., str]) -> None:
    child(
        PRELUDE
        + "kept = [a.alloc(100 * i + 1) for i in range(1000)]\nview = memoryview(b)\nsys.modules['keep'] = kept\n"
    )


def test_interpreter_exit_with_retention(child: Callable[..., str]) -> None:
    child("from arena import Arena\na = Arena('64MiB', retain=0)\nb = a.alloc('8MiB')\nc = a.alloc('8MiB')\n")


def test_interpreter_exit_with_a_cycle(child: Callable[..., str]) -> None:
    child(PRELUDE + "class C: pass\nc = C()\nc.me = c\nc.block = b\nc.arena = a\nc.view = memoryview(b)\ndel c, b, a\n")


@pytest.mark.parametrize("progress", ["None", "lambda done, total: None"])
def test_exit_while_a_daemon_thread_commits(progress: str, child: Callable[..., str]) -> None:
    child(
        PRELUDE
        + "import threading, time\n"
        + "work = lambda: Arena('8GiB', pages='4K').warm('2GiB', threads=4, progress="
        + progress
        + ")\n"
        + "threading.Thread(target=work, daemon=True).start()\n"
        + "time.sleep(0.1)\n"
    )


def test_the_mapping_goes_with_the_last_block(child: Callable[..., str]) -> None:
    child(
        PRELUDE
        + """
import os
def mapped():
    return any(line.startswith(f"{a.address:x}-") for line in open("/proc/self/maps"))
assert mapped()
a.close()
assert mapped()
b.free()
assert mapped()      # an ndarray(buffer=b) may still point there
del b
assert not mapped()
"""
    )


def test_no_descriptor_and_no_mapping_is_leaked(child: Callable[..., str]) -> None:
    child(
        """
import os
from arena import Arena, Block, Reservation
def count():
    return len(os.listdir("/proc/self/fd")), len(open("/proc/self/maps").readlines())
def use():
    with Arena("64MiB") as a:
        a.warm("8MiB", threads=2)
        a.alloc(100)
        a.residency()
    with Reservation("64MiB") as r:
        r.commit()
    for wrong in ({"chunk": 3}, {"pages": "thp", "chunk": 4096}):
        try:
            Arena("64MiB", **wrong)
        except ValueError:
            pass
use()
before = count()
for _ in range(50):
    use()
after = count()
assert after[0] == before[0] and after[1] <= before[1] + 2, (before, after)
"""
    )


def test_a_reset_while_another_thread_clears_its_block(child: Callable[..., str]) -> None:
    """alloc(zero=True) clears without the GIL: not what a reset and another alloc have got meanwhile."""
    child(
        """
        import threading, time
        from arena import Arena, ArenaFullError
        MIB = 1 << 20
        a = Arena("128MiB")
        a.warm("128MiB")
        with a.alloc("128MiB") as b:
            b[:] = b"x" * (128 * MIB)
        over = threading.Event()
        def clear():
            while not over.is_set():
                try:
                    a.alloc("64MiB", zero=True)
                except (ArenaFullError, BufferError, ValueError):
                    pass
        thread = threading.Thread(target=clear)
        thread.start()
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            try:
                a.reset()
                view = memoryview(a.alloc("80MiB"))
            except (ArenaFullError, BufferError):
                continue
            view[60 * MIB] = 255
            time.sleep(0.005)
            assert view[60 * MIB] == 255
            view.release()
        over.set()
        thread.join()
        """
    )


def test_the_last_block_of_a_closed_arena_goes_while_another_thread_trims(child: Callable[..., str]) -> None:
    child(
        """
        import threading, time
        from arena import Arena
        for _ in range(5):
            a = Arena("1GiB", pages="4K")
            a.warm("384MiB")
            b = a.alloc("64MiB")
            a.close()
            thread = threading.Thread(target=a.trim)
            thread.start()
            time.sleep(0.003)
            del b
            thread.join()
            where = f"{a.address:x}-"
            assert not any(line.startswith(where) for line in open("/proc/self/maps"))
            del a
        """
    )


def test_a_finalizer_that_commits_while_the_interpreter_ends(child: Callable[..., str]) -> None:
    said = child(
        """
        import sys
        from arena import Arena
        class Last:
            arena = Arena("1GiB", pages="4K")
            def __del__(self):
                print("had", len(self.arena.alloc("256MiB")))
        sys.modules["last"] = Last()
        """
    )
    assert said == f"had {256 << 20}\n"


def of_a_reservation(r: Reservation) -> memoryview:
    r.commit()
    return r.view()


WITHS: dict[str, tuple[Callable[[], Any], Callable[[Any], memoryview]]] = {
    "Block": (lambda: Arena("64MiB").alloc(100), memoryview),
    "Reservation": (lambda: Reservation(4096), of_a_reservation),
    "Pool": (lambda: Pool(Arena("64MiB"), 100, 2), lambda pool: memoryview(pool.blocks[0])),
    "Ring": (lambda: Ring(4096), lambda ring: ring.write_view(10)),
}


def is_over(it: Any) -> bool:
    return bool(it.freed if isinstance(it, Block) else it.closed)


@pytest.mark.parametrize("kind", WITHS)
def test_an_exception_in_flight_is_not_hidden_by_what_its_traceback_holds(kind: str) -> None:
    make, view_of = WITHS[kind]

    def work(it: Any) -> None:
        view = view_of(it)
        raise ZeroDivisionError(view[0])

    with pytest.raises(ZeroDivisionError) as info, make() as first:
        work(first)
    assert not is_over(first) and info.value.__context__ is None
    with pytest.raises(BufferError), make() as second:
        view = view_of(second)
    view.release()
    del view, info
    second.free() if isinstance(second, Block) else second.close()
    assert is_over(second)
