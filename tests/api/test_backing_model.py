"""Files behind a reservation, ours and others', shared and private, against a model: a byte for each page of the file,
and one for each private copy. And commits that fail half-way, in a file in which peers have data everywhere."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from pathlib import Path
from typing import Any

import machine
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from machine import MIB
from measure import PAGE

from arena import CommitError, Reservation

pytestmark = pytest.mark.slow  # the same on every CPython

N = 24  # pages
places = st.integers(0, N * PAGE)
pages = st.integers(0, N - 1)
bytes_ = st.integers(1, 255)


class FileMachine(RuleBasedStateMachine):
    kind: tuple[bool, bool]  # shared, and ours

    @initialize(data=st.binary(min_size=N, max_size=N), holes=st.sets(pages))
    def begin(self, data: bytes, holes: set[int]) -> None:
        self.shared, self.ours = self.kind
        if self.ours:
            self.r = Reservation(N * PAGE, backing="memfd", shared=self.shared, pages="4K")
            self.fd = os.dup(self.r.fileno())
            self.file = [0] * N
        else:
            with tempfile.TemporaryFile() as file:
                os.ftruncate(file.fileno(), N * PAGE)
                self.file = [0 if page in holes else data[page] for page in range(N)]
                for page in set(range(N)) - holes:
                    os.pwrite(file.fileno(), bytes([self.file[page]]) * PAGE, page * PAGE)
                self.r = Reservation(N * PAGE, fd=file, shared=self.shared)
                self.fd = os.dup(file.fileno())
        self.copy: list[int | None] = [None] * N
        self.is_for = [0] * N  # 0 nothing, 1 reading, 2 writing

    def teardown(self) -> None:
        if hasattr(self, "r"):
            self.r.close()
            # What a file of somebody else holds is not ours to change.
            assert [os.pread(self.fd, 1, page * PAGE)[0] for page in range(N)] == self.file
            os.close(self.fd)

    def shown(self, page: int) -> int:
        copy = self.copy[page]
        return self.file[page] if copy is None else copy

    @rule(a=places, b=places, write=st.booleans(), threads=st.sampled_from([1, 3]))
    def commit(self, a: int, b: int, write: bool, threads: int) -> None:
        start, end = min(a, b), max(a, b)
        touched = range(start // PAGE, -(-end // PAGE)) if end > start else range(0)
        newly = sum(self.is_for[page] == 0 for page in touched)
        how = "write" if write else "read"
        assert self.r.commit(end - start, offset=start, populate=how, threads=threads) == newly * PAGE  # type: ignore[arg-type]
        for page in touched:
            if write and not self.shared and self.is_for[page] < 2:
                self.copy[page] = self.file[page]
            self.is_for[page] = max(self.is_for[page], 1 + write)

    @rule(a=places, b=places, discard=st.booleans())
    def release(self, a: int, b: int, discard: bool) -> None:
        start, end = min(a, b), max(a, b)
        whole = range(-(-start // PAGE), end // PAGE)
        freed = self.r.release(end - start, offset=start, discard=discard)
        # What the machine gets: where the file keeps what it has, a private mapping's copies.
        least = 1 if discard or (self.ours and self.shared) else 3 if self.shared else 2
        assert freed == PAGE * sum(self.is_for[page] >= least for page in whole)
        for page in whole:
            # A file that others know of is left alone by a private mapping, which has put nothing there.
            if (self.ours and self.shared and self.is_for[page]) or (discard and not (self.ours and self.shared)):
                self.file[page] = 0
            self.is_for[page], self.copy[page] = 0, None

    @rule(page=pages, byte=bytes_, through_the_kernel=st.booleans())
    def write(self, page: int, byte: int, through_the_kernel: bool) -> None:
        if self.is_for[page] < 2:
            with pytest.raises(ValueError, match="commit"):
                self.r.view(PAGE, offset=page * PAGE)
            return
        if through_the_kernel:
            assert self.r.write_from(bytes([byte]) * PAGE, offset=page * PAGE) == PAGE
        else:
            with self.r.view(PAGE, offset=page * PAGE) as view:
                view[:] = bytes([byte]) * PAGE
        if self.shared:
            self.file[page] = byte
        else:
            self.copy[page] = byte

    @rule(page=pages, byte=bytes_)
    def somebody_else_writes(self, page: int, byte: int) -> None:
        os.pwrite(self.fd, bytes([byte]) * PAGE, page * PAGE)
        self.file[page] = byte

    @precondition(lambda self: self.shared)
    @rule(page=pages)
    def somebody_else_punches(self, page: int) -> None:
        self.r.verify()
        peer = Reservation(N * PAGE, fd=self.fd, shared=True)
        peer.release(PAGE, offset=page * PAGE, discard=True)
        peer.close()
        self.file[page] = 0
        self.r.verify()

    @rule(a=places, b=places)
    def verify(self, a: int, b: int) -> None:
        self.r.verify(abs(a - b), offset=min(a, b))

    @rule(page=pages)
    def read(self, page: int) -> None:
        into = bytearray(PAGE)
        if self.shared or self.is_for[page]:
            assert self.r.read_into(into, offset=page * PAGE) == PAGE
            assert into == bytes([self.shown(page)]) * PAGE
        else:
            with pytest.raises(ValueError, match="committed"):
                self.r.read_into(into, offset=page * PAGE)

    @invariant()
    def what_is_committed_shows(self) -> None:
        if not hasattr(self, "r"):
            return
        assert self.r.committed == PAGE * sum(state > 0 for state in self.is_for)
        for page in range(N):
            if self.is_for[page]:
                with self.r.view(PAGE, offset=page * PAGE, readonly=True) as view:
                    assert view[0] == view[PAGE - 1] == self.shown(page), page
        assert self.r.residency().present >= self.r.committed


@pytest.mark.parametrize("shared", [False, True], ids=["private", "shared"])
@pytest.mark.parametrize("ours", [False, True], ids=["theirs", "ours"])
def test_files_are_as_a_model_says(shared: bool, ours: bool) -> None:
    machine: Any = type("Machine", (FileMachine,), {"kind": (shared, ours)})
    check = settings(max_examples=20, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck))
    machine.TestCase.settings = check
    machine.TestCase().runTest()


UNITS = 40  # of 1 MiB: a commit takes them in pieces of 8
units = st.integers(0, UNITS - 1)


class FullMachine(RuleBasedStateMachine):
    """A file that we have made, on a tmpfs that is full now and then. Peers, who take the locks or do not, have pages
    all over it."""

    folder: Path
    shared: bool

    @initialize()
    def begin(self) -> None:
        self.path = self.folder / "ours"
        self.ours = Reservation(UNITS * MIB, path=self.path, shared=self.shared, pages="4K")
        self.peer = Reservation(UNITS * MIB, path=self.path, shared=True, pages="4K")
        self.fd = os.open(self.path, os.O_RDWR)
        self.data: dict[int, int] = {}  # page: byte
        self.peers: set[int] = set()  # units that it has committed
        self.mine: set[int] = set()
        self.filler = (self.folder / "filler").open("wb")

    def teardown(self) -> None:
        if hasattr(self, "ours"):
            self.filler.close()
            self.ours.close()
            self.peer.close()
            os.close(self.fd)
            for name in ("ours", "filler"):
                (self.folder / name).unlink()

    @rule(unit=units, page=st.integers(0, MIB // PAGE - 1), byte=bytes_)
    def somebody_writes(self, unit: int, page: int, byte: int) -> None:
        try:
            os.pwrite(self.fd, bytes([byte]) * PAGE, unit * MIB + page * PAGE)
        except OSError as error:
            assert error.errno == errno.ENOSPC
        else:
            self.data[unit * MIB // PAGE + page] = byte

    @rule(unit=units, n=st.integers(1, 4), byte=bytes_)
    def a_peer_commits(self, unit: int, n: int, byte: int) -> None:
        n = min(n, UNITS - unit)
        with contextlib.suppress(CommitError):
            self.peer.commit(n * MIB, offset=unit * MIB)
            self.peer.verify(n * MIB, offset=unit * MIB)  # a release of ours may have taken it
            self.peers |= set(range(unit, unit + n))
            with self.peer.view(PAGE, offset=unit * MIB) as view:
                view[:] = bytes([byte]) * PAGE
            self.data[unit * MIB // PAGE] = byte

    @rule(room=st.integers(0, 30 * MIB // PAGE))
    def the_mount_is_filled(self, room: int) -> None:
        left = os.statvfs(self.folder).f_bavail - room
        if left > 0:
            end = os.fstat(self.filler.fileno()).st_size
            os.posix_fallocate(self.filler.fileno(), end, left * PAGE)

    @rule()
    def the_mount_has_room(self) -> None:
        self.filler.truncate(0)

    @rule(a=units, b=units, threads=st.sampled_from([1, 3]), write=st.booleans())
    def commit(self, a: int, b: int, threads: int, write: bool) -> None:
        start, end = min(a, b), max(a, b) + 1
        before = os.fstat(self.fd).st_blocks
        try:
            self.ours.commit(
                (end - start) * MIB, offset=start * MIB, threads=threads, populate="write" if write else "read"
            )
        except CommitError:
            assert os.fstat(self.fd).st_blocks == before  # all of what it had made, and only that, was given back
        else:
            self.mine |= set(range(start, end))

    @rule(a=units, b=units)
    def release(self, a: int, b: int) -> None:
        start, end = min(a, b), max(a, b) + 1
        self.ours.release((end - start) * MIB, offset=start * MIB)
        gone = set(range(start, end)) & self.mine
        self.mine -= gone
        if self.shared:  # which is a peer's too, and he has lost it: that is what a release of one's own file does
            self.peers -= gone
            self.data = {page: byte for page, byte in self.data.items() if page * PAGE // MIB not in gone}

    @invariant()
    def everybody_has_what_he_had(self) -> None:
        if not hasattr(self, "ours"):
            return
        for page, byte in self.data.items():
            assert os.pread(self.fd, PAGE, page * PAGE) == bytes([byte]) * PAGE, page
        for unit in self.peers:
            assert os.lseek(self.fd, unit * MIB, os.SEEK_HOLE) >= (unit + 1) * MIB, unit
        assert self.ours.committed == len(self.mine) * MIB


@pytest.mark.parametrize("shared", [False, True], ids=["private", "shared"])
def test_a_commit_that_fails_leaves_the_file_as_it_was(shared: bool, tmp_path: Path) -> None:
    with machine.tmpfs(64 * MIB)(tmp_path) as place:
        model: Any = type("Machine", (FullMachine,), {"folder": place.path, "shared": shared})
        check = settings(
            max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        )
        model.TestCase.settings = check
        model.TestCase().runTest()
