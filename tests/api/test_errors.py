"""What cannot be had is an exception that says what to do, and leaves all as it was: the table is in refusals.py.

Each case has a child of its own, which must end by itself: no SIGBUS, no SIGKILL.
"""

from __future__ import annotations

import errno
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SUPPORT
from kernel import CANNOT
from refusals import CASES, Case

import arena
from arena import advice, realtime

pytestmark = pytest.mark.slow  # the same on every CPython


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_error(case: Case, tmp_path: Path) -> None:
    with case.machine(tmp_path) as place:
        done = subprocess.run(
            [sys.executable, str(SUPPORT / "refusals.py"), case.name, str(place.path)],
            capture_output=True,
            text=True,
            timeout=60,
            preexec_fn=place.enter,
            check=False,
        )
    if done.returncode == CANNOT:
        pytest.skip(done.stdout.strip())
    if done.returncode:
        end = signal.Signals(-done.returncode).name if done.returncode < 0 else f"exit {done.returncode}"
        pytest.fail(f"{end}\n{done.stdout}{done.stderr}", pytrace=False)


def test_every_case_has_its_own_name() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("err", "op", "words"),
    [
        (errno.EINVAL, "release", "locked by somebody else's.*munlock"),
        (errno.EPERM, "release", "F_SEAL_WRITE"),
        (errno.EPERM, "discard", "F_SEAL_FUTURE_WRITE"),
        (errno.EACCES, "discard", "reading only"),
        (errno.ENOMEM, "release", "release the rest again"),
        (errno.EPERM, "mlock", "RLIMIT_MEMLOCK.*--cap-add IPC_LOCK"),
        (errno.ENOMEM, "mlock", "max_map_count"),
    ],
)
def test_the_sentence_for(err: int, op: str, words: str) -> None:
    assert re.search(words, advice.for_commit(err, op, "", None))


def test_the_errors_are_where_they_are_raised() -> None:
    assert realtime.PageFaultError is arena.PageFaultError and realtime.LockError is arena.LockError
