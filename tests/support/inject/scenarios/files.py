"""Arenas and reservations in files: of tmpfs and of a disk, ours and others'."""

from __future__ import annotations

import os

from ..steps import MIB, Steps, Violation, must_be_present
from .arenas import SHARED, use
from .scenario import scenario


@scenario("tmpfs")
def tmpfs(steps: Steps) -> None:
    """A new file."""
    use(steps, steps.arena("32MiB", path=steps.file("new", steps.places.tmpfs), **SHARED))


@scenario("tmpfs_private")
def tmpfs_private(steps: Steps) -> None:
    """A new file, mapped privately."""
    use(steps, steps.arena("32MiB", path=steps.file("private", steps.places.tmpfs), chunk="256KiB"))


@scenario("tmpfs_folder")
def tmpfs_folder(steps: Steps) -> None:
    """A file without a name."""
    use(steps, steps.arena("32MiB", path=steps.places.tmpfs, **SHARED))


@scenario("tmpfs_lock")
def tmpfs_lock(steps: Steps) -> None:
    """A file without a name, locked."""
    steps.all_locked = True
    use(steps, steps.arena("32MiB", path=steps.places.tmpfs, lock=True, **SHARED))


@scenario("ext4")
def ext4(steps: Steps) -> None:
    """A new file on a disk."""
    use(steps, steps.arena("32MiB", path=steps.file("new", steps.places.disk), **SHARED))


@scenario("ext4_folder")
def ext4_folder(steps: Steps) -> None:
    """A file without a name on a disk."""
    use(steps, steps.arena("32MiB", path=steps.places.disk, **SHARED))


@scenario("descriptor")
def descriptor(steps: Steps) -> None:
    """An arena in a file that was opened by somebody else."""
    with open(steps.file("fd", steps.places.tmpfs), "w+b", buffering=0) as file:
        file.truncate(16 * MIB)
        use(steps, steps.arena("16MiB", fd=file, **SHARED))
        file.tell()


@scenario("existing")
def existing(steps: Steps) -> None:
    """Another's file: what it holds is kept, but for what is discarded."""
    path = steps.file("existing", steps.places.disk)
    data = os.urandom(4 * MIB)
    with path.open("wb") as file:
        file.write(data)
        file.truncate(8 * MIB)
    reservation = steps.reservation("8MiB", path=path, shared=True)
    steps.commit(reservation, 2 * MIB, offset=3 * MIB)
    steps.release(reservation, 1 * MIB, offset=3 * MIB)
    steps.commit(reservation, 1 * MIB, offset=6 * MIB)
    steps.release(reservation, 1 * MIB, offset=6 * MIB, discard=True)
    if reservation is not None:
        steps.attempt(reservation.verify)
    readonly = steps.reservation("8MiB", path=path, readonly=True)
    if steps.commit(readonly, 2 * MIB, offset=1 * MIB, populate="read") and readonly is not None:
        got = bytearray(10_000)
        if steps.succeeds(readonly.read_into, got, offset=MIB + 5000) and got != data[MIB + 5000 : MIB + 15_000]:
            raise Violation("read_into() gave other bytes than the file's")
    if path.read_bytes() != data + bytes(4 * MIB):
        raise Violation("the file has changed")


@scenario("discard")
def discard(steps: Steps) -> None:
    """What is discarded is a hole, or was refused and is still there; what is beside it is kept."""
    path = steps.file("discard", steps.places.disk)
    data = os.urandom(3 * MIB)
    with path.open("wb") as file:
        file.truncate(3 * MIB)
    reservation = steps.reservation("3MiB", path=path, shared=True)
    if not steps.commit(reservation, 3 * MIB) or reservation is None:
        return
    reservation.view()[:] = data
    gone = steps.succeeds(reservation.release, 1 * MIB, offset=1 * MIB, discard=True)
    now = path.read_bytes()
    if now[:MIB] != data[:MIB] or now[2 * MIB :] != data[2 * MIB :]:
        raise Violation("more was discarded than was asked for")
    if gone and now[MIB : 2 * MIB].strip(b"\0"):
        raise Violation("release(discard=True) succeeded, and the bytes are still there")
    if gone and steps.succeeds(reservation.verify):
        must_be_present(reservation.address, 1 * MIB, "verify")
        must_be_present(reservation.address + 2 * MIB, 1 * MIB, "verify")
