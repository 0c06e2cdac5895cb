"""A fork, in each mode: what the child may do works, and the parent notices nothing."""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Callable
from typing import Any

from arena import Arena, Block, Reservation

from ..steps import DOCUMENTED, KIB, MIB, Steps, Violation, must_be_present
from .scenario import Run, scenario


def in_fork(work: Callable[[], object]) -> None:
    answer, answers = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 0
        try:
            work()
        except BaseException as error:
            where = traceback.format_exc()[-600:]
            os.write(answers, f"in the fork's child: {type(error).__name__}: {error}\n{where}".encode()[:3000])
            status = 3
        os._exit(status)
    os.close(answers)
    with os.fdopen(answer, "rb") as pipe:
        said = pipe.read().decode("utf-8", "replace")
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        raise Violation(f"the fork's child died of signal {os.WTERMSIG(status)}")
    if status:
        raise Violation(said)


def may_not_allocate(arena: Arena) -> None:
    try:
        arena.alloc(10)
    except RuntimeError:
        return
    raise Violation("the child may allocate")


def child_of_copy(steps: Steps, arena: Arena, block: Block | None, reservation: Reservation | None) -> None:
    steps.check_blocks()
    steps.attempt(arena.warm, "1MiB")
    steps.free(steps.alloc(arena, 300 * KIB, zero=True))
    steps.commit(reservation, 2 * MIB)
    steps.check_blocks()
    steps.trim(arena)


def child_of_share(steps: Steps, arena: Arena, block: Block | None, reservation: Reservation | None) -> None:
    steps.check_blocks()
    committed = reservation is not None and steps.succeeds(reservation.commit, 2 * MIB)
    if committed and reservation is not None and steps.succeeds(reservation.verify):
        must_be_present(reservation.address, 2 * MIB, "commit and verify")
    steps.release(reservation, 1 * MIB, offset=1 * MIB)
    may_not_allocate(arena)


def child_of_drop(steps: Steps, arena: Arena, block: Block | None, reservation: Reservation | None) -> None:
    may_not_allocate(arena)
    if block is not None:
        with contextlib.suppress(RuntimeError):  # refused, or whatever is there: no crash
            bytes(block)


def child_of_wipe(steps: Steps, arena: Arena, block: Block | None, reservation: Reservation | None) -> None:
    with contextlib.suppress(*DOCUMENTED):
        arena.alloc(10)
    if block is not None:
        bytes(block)


CHILDREN = {"copy": child_of_copy, "share": child_of_share, "drop": child_of_drop, "wipe": child_of_wipe}


def fork(mode: str, **options: Any) -> Run:
    def run(steps: Steps) -> None:
        arena = steps.arena("32MiB", pages="4K", chunk="64KiB", fork=mode, **options)
        if arena is None:
            return
        block = steps.alloc(arena, 200 * KIB)
        reservation = steps.reservation("4MiB", fork=mode, **options)
        steps.commit(reservation, 1 * MIB)
        steps.attempt(in_fork, lambda: CHILDREN[mode](steps, arena, block, reservation))
        steps.attempt(arena.warm, "1MiB")
        steps.commit(reservation, 2 * MIB)
        steps.free(steps.alloc(arena, 300 * KIB, zero=True))
        steps.trim(arena)
        steps.check_blocks()

    run.__doc__ = f"fork={mode!r}."
    return run


scenario("fork_copy")(fork("copy"))
scenario("fork_drop")(fork("drop"))
scenario("fork_wipe")(fork("wipe"))
scenario("fork_share")(fork("share", shared=True))
scenario("fork_drop_shared")(fork("drop", shared=True))


@scenario("fork_realtime")
def fork_realtime(steps: Steps) -> None:
    """A ring, a pool and locked memory in a fork's child."""
    from arena.realtime import Ring, lock_memory, unlock_memory

    lock = steps.attempt(lock_memory, on_fault=True)
    ring = steps.attempt(Ring, "64KiB", lock=True)

    def child() -> None:
        arena = steps.attempt(Arena, "8MiB", pages="4K", chunk="64KiB")
        if arena is not None:
            steps.attempt(arena.alloc, 100 * KIB)
            arena.close()
        if ring is not None:
            with contextlib.suppress(RuntimeError, BufferError):
                ring.close()

    steps.attempt(in_fork, child)
    if ring is not None:
        ring.write(b"after the fork")
        ring.close()
    if lock is not None:
        steps.attempt(unlock_memory)
