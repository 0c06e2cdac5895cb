"""arena.realtime: rings, pools, locked memory, preparation, and page faults that are counted. And the doctor."""

from __future__ import annotations

import contextlib
import gc
import io
import os
from typing import Literal

from arena import PageFaultError, cli
from arena.realtime import (
    Pool,
    Ring,
    count_page_faults,
    lock_memory,
    no_page_faults,
    prepare,
    unlock_memory,
)

from ..steps import DOCUMENTED, KIB, MIB, PAGE, Steps, Violation, must_be_present
from .scenario import scenario


@scenario("ring")
def ring(steps: Steps) -> None:
    """Rings, locked and not."""
    for lock in (False, True):
        made = steps.attempt(Ring, "256KiB", lock=lock, name="ring")
        if made is None:
            continue
        must_be_present(made.address, 512 * KIB, "Ring")
        for _ in range(4):
            got = bytearray(200 * KIB)
            made.write(b"x" * (100 * KIB))
            if made.readinto(got) != 100 * KIB or got[: 100 * KIB] != b"x" * (100 * KIB):
                raise Violation("a ring gave other bytes than it was given")
        made.close()


@scenario("ring_large")
def ring_large(steps: Steps) -> None:
    """A ring that is made step by step."""
    made = steps.attempt(Ring, "130MiB")
    if made is not None:
        must_be_present(made.address, 260 * MIB, "Ring")
        made.close()


@scenario("pool")
def pool(steps: Steps) -> None:
    """A pool of blocks."""
    arena = steps.arena("64MiB", pages="4K", chunk="64KiB")
    made = None if arena is None else steps.attempt(Pool, arena, "64KiB", 16)
    if made is None:
        return
    must_be_present(made.blocks[0].address, 64 * KIB * 16, "Pool")
    block = made.take()
    block[:3] = b"abc"
    made.put(block)
    made.close()


@scenario("lock_memory")
def memory_locked(steps: Steps) -> None:
    """All memory of the process, now and later, beside an arena that grows and shrinks."""
    arena = steps.arena("64MiB", pages="4K", chunk="64KiB")
    steps.alloc(arena, 100 * KIB)
    later = steps.attempt(lock_memory, on_fault=True)
    steps.alloc(arena, 200 * KIB)
    reservation = steps.reservation("1GiB")
    steps.commit(reservation, 1 * MIB)
    now = steps.attempt(lock_memory, future=False, on_fault=True)
    steps.release(reservation, 512 * KIB)
    for lock in (now, later):
        if lock is not None:
            steps.attempt(unlock_memory)


@scenario("lock_memory_with")
def memory_locked_with(steps: Steps) -> None:
    """The same as a context, with a ring in it."""
    try:
        with lock_memory(on_fault=True):
            steps.commit(steps.reservation("64MiB"), 1 * MIB)
            with Ring("64KiB") as made:
                made.write(b"abc")
    except DOCUMENTED as error:
        steps.refused(error)


@scenario("prepare")
def prepared(steps: Steps) -> None:
    """Stack, heap and CPU of a loop that must not wait; all is as before afterwards."""

    def state() -> tuple[object, ...]:
        return os.sched_getscheduler(0), os.sched_getaffinity(0), gc.isenabled(), gc.get_freeze_count() > 0

    gc.unfreeze()  # the driver's
    before = state()
    try:
        with prepare(stack="64KiB", heap="1MiB", sched=1, affinity=0):
            pass
    except DOCUMENTED as error:
        steps.refused(error)
        if steps.library.control.hit.name == b"os.sched_setscheduler":
            return  # what was asked for may be what could not be put back
    if steps.library.control.hit.name != b"os.sched_setaffinity" and state() != before:
        raise Violation(f"prepare() has left {state()} of {before}")


@scenario("page_faults", keeps=("anon_inode:[perf_event]", 2 * PAGE))
def page_faults(steps: Steps) -> None:
    """Faults are counted, forbidden, and found."""
    try:
        with count_page_faults() as count:
            bytearray(1000)
        if count.minor < 0:
            raise Violation("fewer faults than none")
    except DOCUMENTED as error:
        steps.refused(error)
    places: tuple[Literal[True, "lines"], ...] = (True, "lines")
    for where in places:
        try:
            with no_page_faults(where=where):
                bytearray(3 * MIB)
        except (PageFaultError, *DOCUMENTED) as error:
            steps.refused(error)


@scenario("doctor")
def doctor(steps: Steps) -> None:
    """The doctor has an answer on every machine."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        for use in ("realtime", "numpy", "sharing"):
            for style in (["--json"], []):
                try:
                    cli.main(["doctor", "--for", use, *style])
                except SystemExit:
                    pass
                except DOCUMENTED as error:
                    steps.refused(error)
