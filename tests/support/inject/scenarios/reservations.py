"""Reservations: commit, release, look, copy; with peers, with threads, and stopped half-way."""

from __future__ import annotations

import os
from typing import Any

from ..steps import MIB, Steps, Violation, must_be_present
from .scenario import scenario


@scenario("verify")
def verify(steps: Steps) -> None:
    """Present again, where it was not."""
    reservation = steps.reservation("8MiB", shared=True)
    if not steps.commit(reservation, 4 * MIB) or reservation is None:
        return
    if steps.succeeds(reservation.verify):
        must_be_present(reservation.address, 4 * MIB, "verify")
    steps.release(reservation, 1 * MIB)
    steps.attempt(reservation.verify)


@scenario("residency")
def residency(steps: Steps) -> None:
    """The kernel's word is the ledger's, or is refused."""
    for options in ({}, {"shared": True}, {"lock": True}, {"pages": "thp"}):
        reservation = steps.reservation("8MiB", **options)
        if reservation is None:
            continue
        steps.commit(reservation, 2 * MIB, offset=4 * MIB)
        whole = steps.attempt(reservation.residency)
        part = steps.attempt(reservation.residency, 2 * MIB, offset=2 * MIB)
        if whole is not None and whole.present != reservation.committed:
            raise Violation(f"residency() says {whole.present} present of {reservation.committed} committed")
        if part is not None and part.present != 0:
            raise Violation(f"residency() of a part says {part.present} present, of nothing that is committed")


@scenario("views")
def views(steps: Steps) -> None:
    """What is looked at can neither be released nor closed."""
    reservation = steps.reservation("4MiB")
    if not steps.commit(reservation, 2 * MIB) or reservation is None:
        return
    view = steps.attempt(reservation.view, 1 * MIB)
    if view is None:
        return
    view[:] = b"v" * MIB
    try:
        reservation.close()
        raise Violation("closed while it is looked at")
    except BufferError:
        pass
    steps.release(reservation, 1 * MIB, offset=1 * MIB)
    if bytes(view) != b"v" * MIB:
        raise Violation("what is looked at has changed")


@scenario("copies")
def copies(steps: Steps) -> None:
    """Copies through the kernel are whole, or refused."""
    kinds: list[dict[str, Any]] = [{}, {"shared": True}, {"path": steps.places.disk, "shared": True}]
    for options in kinds:
        reservation = steps.reservation("4MiB", **options)
        if not steps.commit(reservation, 1 * MIB) or reservation is None:
            continue
        data, got = os.urandom(100_000), bytearray(100_000)
        written = steps.succeeds(reservation.write_from, data, offset=5000)
        if written and steps.succeeds(reservation.read_into, got, offset=5000) and got != data:
            raise Violation("read_into() gave other bytes than write_from() was given")


@scenario("peers")
def peers(steps: Steps) -> None:
    """Two reservations of one file: what one releases and commits, the other keeps."""
    path = steps.file("peers", steps.places.tmpfs)
    steps.has_peers = True
    first = steps.reservation("8MiB", path=path, shared=True)
    second = steps.reservation("8MiB", path=path, shared=True) if first is not None else None
    filled = steps.commit(first, 1 * MIB)
    if first is not None and filled:
        first.view(1 * MIB)[:] = b"A" * MIB
    steps.commit(second, 2 * MIB)
    if second is not None and filled and second.committed == 2 * MIB and bytes(second.view(1 * MIB)) != b"A" * MIB:
        raise Violation("the peer's data is gone")
    steps.release(second, 2 * MIB)
    if first is not None and filled and bytes(first.view(1 * MIB)) != b"A" * MIB:
        raise Violation("the peer's data went with the other's release")


@scenario("peers_rollback")
def peers_rollback(steps: Steps) -> None:
    """A commit that ends half-way does not take what a peer has further on."""
    path = steps.file("rollback", steps.places.tmpfs)
    steps.has_peers = True
    peer = steps.reservation("16MiB", path=path, shared=True)
    if not steps.commit(peer, 1 * MIB, offset=2 * MIB) or peer is None:
        return
    peer.view(1 * MIB, offset=2 * MIB)[:] = b"A" * MIB
    steps.commit(steps.reservation("16MiB", path=path, shared=True), 12 * MIB)
    if bytes(peer.view(1 * MIB, offset=2 * MIB)) != b"A" * MIB:
        raise Violation("the peer's data was punched out")


class Stop(Exception):
    pass


def stop_soon(done: int, total: int) -> None:
    if done < total:
        raise Stop


@scenario("progress")
def progress(steps: Steps) -> None:
    """A commit that its progress function stops leaves what was there, and no more."""
    for options in ({}, {"shared": True}):
        reservation = steps.reservation("512MiB", **options)
        if reservation is None:
            continue
        kept = steps.commit(reservation, 1 * MIB)
        if kept:
            reservation.view(1 * MIB)[:] = b"R" * MIB
        expected = reservation.committed
        try:
            if steps.succeeds(reservation.commit, "128MiB", progress=stop_soon, threads=2):
                expected = 128 * MIB
        except Stop:
            pass
        if reservation.committed != expected:
            raise Violation(f"{reservation.committed} committed where {expected} were expected")
        if kept and bytes(reservation.view(1 * MIB)) != b"R" * MIB:
            raise Violation("what was there before the rollback is gone")
        steps.release(reservation)


@scenario("threads")
def threads(steps: Steps) -> None:
    """Commits that helpers do."""
    private = steps.reservation("64MiB", pages="4K")
    steps.commit(private, 40 * MIB, threads=4)
    steps.release(private)
    steps.commit(steps.reservation("64MiB", shared=True), 40 * MIB, threads=4)
