"""Each system call and each allocation of the package fails, one after the other: a sample of the cases, always the
same one. The whole is run by hand, in the folder tests/support:

    python -m inject                              every case of every scenario
    python -m inject --part 0/2 --out FILE        a half of them, and what is violated in a file
    python -m inject --only memmap,ring           of some scenarios
    python -m inject --help                       the rest
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from inject.scenarios import all_scenarios
from inject.session import Session, session
from inject.worker import Job

pytestmark = pytest.mark.slow  # the same on every CPython


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Session]:
    with session(tmp_path) as made:
        yield made


@pytest.mark.timeout(900)  # a case that hangs takes half a minute, and does not end the run
def test_whatever_fails_is_said_and_nothing_else_is_harmed(machine: Session) -> None:
    report = machine.run(Job(str(machine.disk), str(machine.tmpfs), most=1, sample=3), at_once=2)
    assert not report.violations, report.summary()
    assert len(report.tried) + len(report.skipped) == len(all_scenarios())
    assert report.tried.total() > 1500, report.summary()


def test_what_is_wrong_is_found(machine: Session) -> None:
    job = Job(str(machine.disk), str(machine.tmpfs), only=("self_test",), most=1, seconds=2)
    report = machine.run(job)
    assert {"crash", "hang", "leak", "broken promise", "undocumented exception", "no way on"} <= {*report.kinds()}, (
        report.summary()
    )
