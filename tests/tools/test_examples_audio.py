"""The audio example: what faults, what is heard, and what is refused."""

from __future__ import annotations

import resource
import subprocess
import sys
import wave
from pathlib import Path

import kernel
import pytest
from example import EXAMPLES, row, run_example

pytestmark = pytest.mark.slow  # the same on every CPython

pytest.importorskip("numpy", reason="NumPy is not installed")


def test_no_faults_in_the_arena_and_the_same_sound(tmp_path: Path) -> None:
    out = tmp_path / "out.wav"
    status, said, complained = run_example("audio", "--seconds", 1, "--out", out)
    assert (status, complained) == (0, "")
    ours, ordinary = row(said, "page faults")
    assert ours <= 2 and ordinary > 50  # the interpreter's own, if any
    with wave.open(str(out), "rb") as file:
        assert (file.getnchannels(), file.getframerate()) == (2, 48000)
        assert file.getnframes() == 48000
    again = tmp_path / "again.wav"
    status, said, complained = run_example("audio", "--wav", out, "--seconds", 0.5, "--delay", 0.1, "--out", again)
    assert (status, complained) == (0, "")
    assert again.stat().st_size > 90_000


def test_a_process_that_may_not_lock_says_so(tmp_path: Path) -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (64 * 1024, 64 * 1024))
        kernel.drop_capabilities(14)  # IPC_LOCK

    done = subprocess.run(
        [sys.executable, EXAMPLES / "audio.py", "--seconds", "0.3"],
        preexec_fn=limited,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "not locked: raise RLIMIT_MEMLOCK" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        (["--seconds", 0], 2, "--seconds"),
        (["--delay", 0], 2, "--delay"),
        (["--seconds", 0.01], 2, "frames to play"),
        (["--wav", "/dev/null"], 1, "/dev/null cannot be played"),
        (["--wav", "/no/such.wav"], 1, "No such file"),
    ],
)
def test_what_cannot_be_played(arguments: list[object], status: int, complaint: str) -> None:
    found, _, complained = run_example("audio", *arguments)
    assert found == status and complaint in complained


def test_pressure_leaves_no_process_and_no_file(tmp_path: Path) -> None:
    status, said, complained = run_example("audio", "--seconds", 0.5, "--pressure", TMPDIR=tmp_path)
    assert (status, complained) == (0, "")
    assert "page faults" in said
    assert not list(tmp_path.iterdir())
