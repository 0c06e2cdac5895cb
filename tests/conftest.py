"""What the tests share: child processes, and fixtures of the real things in support/."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from machine import MemoryCgroup, memory_cgroup
from measure import faults_writing as faults_writing
from measure import minor_faults as minor_faults
from measure import rss as rss

from arena import cli

SUPPORT = Path(__file__).resolve().parent / "support"
MIB = 1 << 20
GIB = 1 << 30


def run_child(
    code: str, *, timeout: float = 120, preexec: Callable[[], object] | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    """Runs Python code in a child of its own."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=timeout,
        preexec_fn=preexec,
        env={**os.environ, **env},
        check=False,
    )


@pytest.fixture
def child() -> Callable[..., str]:
    """Runs code in a child that has to exit with 0, and gives what it printed."""

    def run(code: str, **options: object) -> str:
        done = run_child(code, **options)  # type: ignore[arg-type]
        assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run


def in_child(work: Callable[[], object]) -> None:
    """Runs work in a fork; what it raises fails the test."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException as error:
            os.write(write, repr(error).encode()[:4000])
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read().decode()
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"the child ended with {status}: {said}"


@pytest.fixture
def cgroup() -> Iterator[MemoryCgroup]:
    with memory_cgroup() as group:
        yield group


@pytest.fixture
def overcommit() -> Iterator[Callable[[int], object]]:
    """Sets vm.overcommit_memory, and restores it."""
    knob = Path("/proc/sys/vm/overcommit_memory")
    before = knob.read_text()
    if not os.access(knob, os.W_OK) or os.geteuid() != 0:
        pytest.skip("vm.overcommit_memory may not be set here")
    try:
        yield lambda mode: knob.write_text(str(mode))
    finally:
        knob.write_text(before)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs ``python -m arena`` in this process: the exit status, and what it printed and complained of."""

    def run(*args: object) -> tuple[int, str, str]:
        try:
            status = cli.main([*map(str, args)])
        except SystemExit as end:
            status = int(end.code or 0)
        said = capsys.readouterr()
        return status, said.out, said.err

    return run
