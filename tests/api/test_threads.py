"""Eight threads on one arena; on free-threaded CPython without the GIL's protection."""

from __future__ import annotations

import random
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import MIB, run_child

from arena import Arena, ArenaFullError, Block

SECONDS = 3.0
THREADS = 8


def hammer(work: Callable[[random.Random, Callable[[], bool]], None]) -> None:
    errors: list[BaseException] = []
    stop = threading.Event()
    timer = threading.Timer(SECONDS, stop.set)

    def run(seed: int) -> None:
        try:
            work(random.Random(seed), stop.is_set)
        except BaseException as error:
            errors.append(error)
            stop.set()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(THREADS)]
    timer.start()
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    timer.cancel()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("retain", [None, 0, 8 * MIB])
def test_alloc_free_trim(retain: int | None) -> None:
    a = Arena("256MiB", retain=retain, chunk="64KiB")

    def work(rng: random.Random, stop: Callable[[], bool]) -> None:
        mine: list[tuple[Block, int]] = []
        while not stop():
            if mine and (len(mine) > 50 or rng.random() < 0.5):
                block, byte = mine.pop(rng.randrange(len(mine)))
                assert block[0] == block[len(block) - 1] == byte
                if rng.random() < 0.5:
                    block.free()
                del block
            elif rng.random() < 0.02:
                a.trim(rng.randrange(4 * MIB))
            elif rng.random() < 0.02:
                s = a.stats()
                assert s.live <= s.reserved
                list(a.blocks())
            else:
                n = int(64 * 2 ** (rng.random() * 14))
                try:
                    block = a.alloc(n, align=1 << rng.randrange(6, 13), zero=rng.random() < 0.3)
                except ArenaFullError:
                    continue
                byte = rng.randrange(256)
                block[0] = block[n - 1] = byte
                mine.append((block, byte))

    hammer(work)
    s = a.stats()
    assert (s.blocks, s.live) == (0, 0)
    assert s.fragmentation == 0
    a.trim()
    assert a.stats().committed == a.residency().present == 0


def test_exports_and_frees_of_one_block() -> None:
    """Taking a buffer fails once freed; freeing fails once exported; exactly one free succeeds."""
    a = Arena("64MiB")
    for _ in range(300):
        block = a.alloc(4096)
        freed: list[int] = []
        barrier = threading.Barrier(4)

        def work(i: int, block: Block = block, freed: list[int] = freed, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            for _ in range(20):
                try:
                    if i % 2:
                        view = memoryview(block)
                        view[0] = 1
                        view.release()
                    else:
                        block.free()
                        freed.append(i)
                except (BufferError, ValueError):
                    pass

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        if not freed:
            block.free()
        assert len(freed) <= 1
    assert a.stats().blocks == 0


def test_resets_between() -> None:
    a = Arena("64MiB")

    def work(rng: random.Random, stop: Callable[[], bool]) -> None:
        while not stop():
            try:
                block = a.alloc(rng.randrange(1, 100_000))
                view = memoryview(block)
                view[0] = 1
                view.release()
                if rng.random() < 0.1:
                    a.reset()
                elif rng.random() < 0.5:
                    block.free()
            except (BufferError, ValueError, RuntimeError):
                pass

    hammer(work)
    a.reset()
    assert a.stats().live == 0
    a.alloc("64MiB")


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python was built with a GIL")
def test_the_gil_stays_off() -> None:
    enabled: Callable[[], bool] = vars(sys)["_is_gil_enabled"]
    assert not enabled()


BIG_TLS = """
static __thread char big[SIZE] __attribute__((tls_model("initial-exec")));
__attribute__((constructor)) static void touch(void) { big[0] = 1; }
char *big_tls(void) { return big; }
"""


@pytest.mark.parametrize("size", [80 << 10, 1 << 20])
def test_helpers_have_room_beside_static_tls(tmp_path: Path, size: int) -> None:
    """glibc puts the static TLS of all libraries on each thread's stack."""
    source, library = tmp_path / "big.c", tmp_path / "big.so"
    source.write_text(BIG_TLS)
    subprocess.run(["cc", "-shared", "-fPIC", f"-DSIZE={size}", str(source), "-o", str(library)], check=True)
    done = run_child(
        """
        from arena import Arena, Reservation
        for options in ({"pages": "4K"}, {"shared": True}, {}):
            r = Reservation("64MiB", **options)
            assert r.commit(threads=4) == 64 << 20
        """,
        LD_PRELOAD=str(library),
    )
    assert done.returncode == 0, f"{done.returncode}: {done.stderr}"


AT_EXIT = """
import sys, threading, time
from arena import Reservation
def work():
    r = Reservation("1GiB", pages="4K")
    def progress(done, total): pass
    def deep(n):
        if n:
            return list(map(deep, [n - 1]))
        while True:
            try:
                r.commit("128MiB", threads=4, progress=progress)
                r.release()
            except OSError:
                pass
    deep(150)
class Slow:
    def __del__(self, sleep=time.sleep):
        sleep(0.02)
sys.kept = [Slow() for _ in range(20)]
for _ in range(2):
    threading.Thread(target=work, daemon=True).start()
time.sleep({wait})
sys.setswitchinterval(5)
end = time.perf_counter() + 0.04
while time.perf_counter() < end:
    pass
"""


def test_daemon_threads_take_their_helpers_along_at_interpreter_exit() -> None:
    """The interpreter ends them where they ask for the GIL: in a progress call, deep in C."""
    for i in range(8):
        done = run_child(AT_EXIT.format(wait=0.05 + 0.02 * i))
        assert done.returncode == 0, f"{done.returncode}: {done.stderr}"
