"""An exception from a signal handler at any moment: what was to be in force for a while is, and somebody owns it, or is
not.

Handlers run between two bytecodes, so the same exception is raised at each bytecode of the package's Python, one after
the other, and in the caller up to the beginning of its ``with``. Each operation has a child of its own.
"""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import in_child

from arena import Arena, nep49
from arena.realtime import LockError, lock_memory, locking, unlock_memory

MIB = 1 << 20

HEAD = """
import contextlib, dis, gc, os, sys
import arena
from arena import Arena, Reservation
from arena.realtime import *
from arena.realtime import _where, locking, preparing

class Stop(Exception):
    pass

a = Arena("64MiB", pages="4K", chunk="64KiB")
r = Reservation("1MiB")
r.commit()
count, counted = no_page_faults(1 << 40), count_page_faults()
FILE, MADE = (os.path.join(FOLDER, name) for name in ("old", "made"))
entered = False

def inside():  # the body of a block: from here on Python sees to it that the block is left
    global entered
    entered = True

"""

TAIL = """
state = {"n": 0, "at": 0}

def trace(frame, event, arg):
    if "/arena/" not in frame.f_code.co_filename and frame.f_code is not operation.__code__:
        return None
    frame.f_trace_opcodes, frame.f_trace_lines = True, False
    return local

def local(frame, event, arg):
    # No handler runs at a NOP, and those of `try:` are outside of the blocks around it.
    nop = frame.f_code.co_code[frame.f_lasti] == dis.opmap["NOP"]
    if event == "opcode" and not nop and not (frame.f_code is operation.__code__ and entered):
        state["n"] += 1
        if state["n"] == state["at"]:
            raise Stop
    return local

def limits():
    with open("/proc/self/status") as lines:
        return [line.split()[1] for line in lines if line.startswith("VmLck")]

def look():
    return {
        "locks": (len(locking._in_force), arena._core._probe()["lock_future"], limits()),
        "prepared": (len(preparing._off), len(preparing._frozen), len(preparing._heaps), len(preparing._mine.prepared)),
        "lines": (len(_where._recording),),
        "gc": (gc.isenabled(), gc.get_freeze_count() > 1000),
        "cpus": os.sched_getaffinity(0),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "blocks": a.stats().blocks,
        "numpy": installed(),
        "files": {name: os.path.getsize(os.path.join(FOLDER, name)) for name in os.listdir(FOLDER)},
    }

def run(at):
    global entered
    entered = False
    state.update(n=0, at=at)
    prepare_files()
    sys.settrace(trace)
    try:
        operation()
    except Stop:
        return "stopped"
    finally:
        sys.settrace(None)
    return "went through"

for _ in range(3):
    run(0)
total = state["n"]
step = max(1, total // 300)
for at in range(1, total + 1, step):
    prepare_files()
    before = look()
    how = run(at)
    after = look()
    if before != after:
        gc.collect()
        after = look()
    settle(before, after, how)
    assert before == after, (at, how, {key: (before[key], after[key]) for key in before if before[key] != after[key]})
assert how == "stopped" or step > 1
print(total)
"""

PLAIN = """
def installed():
    return None

def prepare_files():
    pass

def settle(before, after, how):
    pass
"""

NUMPY = """
import numpy as np
from arena import nep49

def installed():
    return nep49.installed()

def prepare_files():
    with contextlib.suppress(FileNotFoundError):
        os.unlink(MADE)
    with open(FILE, "wb") as file:
        file.write(b"y" * 5000)

def settle(before, after, how):
    # All of the old file, or all of the new one; no file, or all of it.
    with open(FILE, "rb") as file:
        now = file.read()
    assert now in (b"y" * 5000, bytes(70_000)), (state, len(now), now[:5], now[5000:5005], how)
    assert after["files"].get("made") in (None, 70_000)
    if how == "went through" or len(now) == 70_000:
        before["files"]["old"] = len(now)
    if "made" in after["files"]:
        before["files"]["made"] = 70_000
"""

OPERATIONS = {
    "lock_memory": (PLAIN, "with lock_memory(current=False, on_fault=True): inside()"),
    "lock_memory within another": (
        PLAIN,
        """
    with lock_memory(current=False, on_fault=True):
        with lock_memory(future=False, on_fault=True): inside()""",
    ),
    "prepare": (PLAIN, "with prepare(stack='64KiB', heap='256KiB', affinity=0, gc='off'): inside()"),
    "prepare and freeze": (PLAIN, "with prepare(stack=0, heap=0): inside()"),
    "prepare and restore": (PLAIN, "with prepare(stack=0, heap=0, gc='off'): inside(); restore()"),
    "count_page_faults": (PLAIN, "with count_page_faults(): inside()"),
    "count_page_faults of a function": (PLAIN, "counted(inside)()"),
    "no_page_faults without where": (PLAIN, "with no_page_faults(1 << 40, where=False): inside()"),
    "no_page_faults": (PLAIN, "with count: inside()"),
    "no_page_faults of a function": (PLAIN, "count(inside)()"),
    "no_page_faults with lines": (PLAIN, "with no_page_faults(1 << 40, where='lines'): inside()"),
    "Arena": (PLAIN, "with Arena('1MiB'): inside()"),
    "Reservation": (PLAIN, "with Reservation('1MiB', shared=True): inside()"),
    "Block": (PLAIN, "with a.alloc(100): inside()"),
    "Pool": (PLAIN, "with Pool(a, 100, 8): inside()"),
    "Ring": (PLAIN, "with Ring('64KiB'): inside()"),
    "numpy_allocations": (NUMPY, "with a.numpy_allocations(): inside()"),
    "numpy_allocations of a function": (NUMPY, "a.numpy_allocations()(inside)()"),
    "carried": (NUMPY, "nep49.carried(inside)()"),
    "arrays": (NUMPY, "a.full((10, 10), 3), a.array([1, 2]), a.empty_like(np.ones((2, 3)).T)"),
    "memmap": (NUMPY, "arena.memmap(FILE, 'u1')"),
    "memmap of a copy": (NUMPY, "arena.memmap(FILE, 'u1', 'c')"),
    "memmap of a new file": (NUMPY, "arena.memmap(MADE, 'u1', 'w+', shape=70_000)"),
    "memmap over an old file": (NUMPY, "arena.memmap(FILE, 'u1', 'w+', shape=70_000)"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_exception_at_each_bytecode_leaves_nothing_behind(
    name: str, child: Callable[..., str], tmp_path: Path
) -> None:
    if "NUMPY" in OPERATIONS[name][0]:
        pytest.importorskip("numpy")
    around, body = OPERATIONS[name]
    head = f"FOLDER = {str(tmp_path)!r}\n{HEAD}{around}"
    child(f"{head}\ndef operation():\n    {body}\n{TAIL}", timeout=120)


def test_a_signal_between_the_call_and_the_with() -> None:
    """The function has returned, and the handler raises before anybody has what it returned."""
    from arena import _scope

    ended: list[int] = []

    class Stop(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stop

    def interrupt(number: int) -> int:
        os.kill(os.getpid(), number)
        return number

    def made() -> _scope.Owner:
        scope = _scope.Scope()
        scope.at_end(lambda: ended.append(1))
        return _scope.Owner(scope)

    before = signal.signal(signal.SIGUSR1, stop)
    try:
        with pytest.raises(Stop):
            print(made(), interrupt(signal.SIGUSR1))
        assert ended == [1]
    finally:
        signal.signal(signal.SIGUSR1, before)
    made()  # and one that is dropped on purpose stays in force
    assert ended == [1]


def test_the_first_error_is_the_one_that_is_seen() -> None:
    from arena import _scope

    undone: list[str] = []

    def fails(what: str) -> Callable[[], None]:
        def step() -> None:
            undone.append(what)
            raise OSError(what)

        return step

    def leave(owner: _scope.Owner, raises: type[Exception] | None) -> None:
        with owner:
            if raises is not None:
                raise raises

    unraisable: list[Any] = []
    hook, sys.unraisablehook = sys.unraisablehook, unraisable.append
    try:
        for raises in (None, KeyError):
            undone.clear()
            unraisable.clear()
            owner = _scope.Owner()
            for what in ("a", "b"):
                owner.scope.at_end(fails(what))
            with pytest.raises(raises or OSError) as caught:
                leave(owner, raises)
            assert undone == ["b", "a"] and owner.scope.ended
            if raises is None:
                assert str(caught.value) == "b" and [str(each.exc_value) for each in unraisable] == ["a"]
            else:
                assert [str(each.exc_value) for each in unraisable] == ["a", "b"]
    finally:
        sys.unraisablehook = hook


def test_a_lock_that_the_kernel_refuses_to_keep_is_its_owners_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of mlockall is seen, and not "no lock_memory() is in force"."""
    ledger = locking._in_force

    def refuses(wishes: list[Any], fewer: bool) -> None:
        if wishes:
            raise LockError(1, "refused")

    from arena import _scope

    refused: Any = _scope.Ledger(refuses, inherited=False)
    monkeypatch.setattr(locking, "_in_force", refused)
    with pytest.raises(LockError, match="refused"):
        lock_memory()
    assert len(refused) == 0
    kept: Any = _scope.Ledger(lambda wishes, fewer: refuses(wishes, fewer) if fewer else None, inherited=False)
    monkeypatch.setattr(locking, "_in_force", kept)
    lock_memory()
    with pytest.raises(LockError, match="refused"), lock_memory():
        pass
    assert len(kept) == 1, "the outer one is another's"
    unlock_memory()
    assert len(kept) == len(ledger) == 0


def test_numpys_allocator_is_left_in_any_order() -> None:
    np = pytest.importorskip("numpy")
    a, b = Arena("64MiB"), Arena("64MiB")

    def block(arena: Arena) -> Any:
        with arena.numpy_allocations():
            while True:
                yield np.ones(10)

    for first, second in ((0, 1), (1, 0)):
        blocks = block(a), block(b)
        assert [nep49.arena_of(next(each)) for each in blocks] == [a, b]
        blocks[first].close()
        assert nep49.installed() is (b, a)[first]
        blocks[second].close()
        assert nep49.installed() is None
    three = [block(a), block(b), block(a)]
    for each in three:
        next(each)
    three[1].close()
    assert nep49.installed() is a
    three[2].close()
    assert nep49.installed() is a, "the first one is still open"
    three[0].close()
    assert nep49.installed() is None


def test_a_forks_child_has_its_own_threads_wishes(child: Callable[..., str]) -> None:
    """What another thread of the parent has prepared does not bind its child, whatever that thread holds."""
    child(
        """
        import gc, os, threading
        from arena.realtime import no_page_faults, prepare, restore
        ready, go = threading.Event(), threading.Event()
        def other():
            with prepare(stack=0, heap="1MiB"), no_page_faults(1 << 40, where="lines"):
                ready.set()
                go.wait()
        thread = threading.Thread(target=other)
        thread.start()
        ready.wait()
        assert not gc.isenabled()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                with prepare(stack=0, heap=0):
                    assert not gc.isenabled()
                assert gc.isenabled() and gc.get_freeze_count() < 1000
                with no_page_faults(1 << 40, where="lines"):
                    pass
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert not gc.isenabled()
        go.set()
        thread.join()
        assert gc.isenabled()
        """
    )


def test_the_callers_file_stays_where_it_is(tmp_path: Path) -> None:
    """memmap looks for holes, which moves a position: another than the caller's."""
    pytest.importorskip("numpy")
    path = tmp_path / "file"
    path.write_bytes(b"x" * 5000)
    code = f"""
import os, arena
moved = []
seek = os.lseek
with open({str(path)!r}, "r+b") as file:
    file.seek(123)
    os.lseek = lambda fd, *where: (moved.append(fd), seek(fd, *where))[1]
    for mode in ("r", "c", "r+", "w+"):
        arena.memmap(file, "u1", mode, shape=3000)
    assert moved and file.fileno() not in moved
    assert file.tell() == seek(file.fileno(), 0, 1) == 123
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_a_block_whose_memory_fails_leaves_numpys_allocator_as_it_was() -> None:
    """Each allocation of the interpreter's fails in its turn, in a child of its own."""
    memory = pytest.importorskip("_testcapi", reason="this Python has no _testcapi")
    pytest.importorskip("numpy")
    a = Arena("64MiB")

    def block() -> None:
        with a.numpy_allocations():
            pass

    block()
    block()

    def failing(k: int) -> None:
        nep49.uninstall()
        try:
            memory.set_nomemory(k, k + 1)
            block()
        except MemoryError:
            pass
        finally:
            memory.remove_mem_hooks()
        assert nep49.installed() is None

    for k in range(1, 50):
        in_child(functools.partial(failing, k))
