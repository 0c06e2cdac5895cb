"""Files behind a reservation, ours and others', shared and private, against a model: a byte for each page of the file,
and one for each private copy."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from measure import PAGE

from arena import Reservation

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
        assert freed == PAGE * sum(self.is_for[page] > 0 for page in whole)
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
