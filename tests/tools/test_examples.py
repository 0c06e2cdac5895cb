"""The worked examples run, and say what they should."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import SUPPORT, run_child
from example import EXAMPLES, run_example

pytestmark = pytest.mark.slow  # the same on every CPython

BALLOON = ("--limit", "64MiB", "--seconds", "1", "--seed", "5")


def refused(output: str) -> int:
    found = re.search(r"plugs refused +(\d+)", output)
    assert found, output
    return int(found[1])


@pytest.mark.parametrize("arguments", [[], ["--shared"]])
def test_the_balloon_survives_every_failed_plug(arguments: list[str]) -> None:
    status, said, complained = run_example("balloon", *BALLOON, *arguments)
    assert status == 0, complained
    if "RLIMIT_DATA" in said and arguments:
        pytest.skip("no memory cgroup here, and RLIMIT_DATA does not count shared memory")
    assert refused(said) > 0
    assert "the first refusal: [Errno" in said


def test_the_balloon_where_it_may_make_no_cgroup(child: Callable[..., str]) -> None:
    if os.geteuid() != 0:
        pytest.skip("the same as the test above, for who is not root")
    code = """
import sys
from pathlib import Path
sys.path[:0] = EXAMPLES, HERE
import balloon
from machine import mounted
sys.argv[1:] = ARGUMENTS
with mounted("tmpfs", "arena-test", Path("/sys/fs/cgroup"), "ro"):
    sys.exit(balloon.main())
"""
    said = child(
        code.replace("EXAMPLES", repr(str(EXAMPLES)))
        .replace("HERE", repr(str(SUPPORT)))
        .replace("ARGUMENTS", repr(BALLOON))
    )
    assert "by RLIMIT_DATA" in said
    assert refused(said) > 0


def test_nonsense_is_refused() -> None:
    status, _, complained = run_example("balloon", "--size", "1MiB")
    assert status == 2 and "--size" in complained


@pytest.mark.parametrize("name", ["audio", "bigsum", "frames", "prefetch"])
def test_those_that_need_numpy_say_so(name: str) -> None:
    done = run_child(f"import sys; sys.modules['numpy'] = None; sys.path.insert(0, {str(EXAMPLES)!r}); import {name}")
    assert done.returncode == 1
    assert done.stderr == "this example needs NumPy: pip install 'sparse-arena[numpy]'\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["frames", "--size", "320x240", "--rounds", "100000"],
        ["bigsum", "--size", "16MiB", "--rounds", "100000"],
        ["prefetch", "--samples", "200", "--epochs", "100000"],
        ["balloon", "--limit", "64MiB", "--seconds", "1000"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_ctrl_c_stops_every_thread(arguments: list[str], tmp_path: Path) -> None:
    pytest.importorskip("numpy", reason="NumPy is not installed")
    # Unbuffered, so that the first line, after which there is something to stop, comes when it is printed.
    with subprocess.Popen(
        [sys.executable, EXAMPLES / f"{arguments[0]}.py", *arguments[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"},
    ) as running:
        assert running.stdout and running.stderr
        first = running.stdout.readline()
        running.send_signal(signal.SIGINT)
        said, complained = running.communicate(timeout=60)
    assert first and (running.returncode, said, complained) == (130, "", "stopped\n")
    assert not list(tmp_path.iterdir())


NEIGHBOURS = """
import runpy, sys
sys.argv[1:], absent = ARGUMENTS, ABSENT
sys.modules.update(dict.fromkeys(absent))  # None: as if it were not installed
runpy.run_path(PATH, run_name="__main__")
"""


def neighbours(*arguments: str, absent: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return run_child(
        NEIGHBOURS.replace("ARGUMENTS", repr(arguments))
        .replace("ABSENT", repr(absent))
        .replace("PATH", repr(str(EXAMPLES / "neighbours.py")))
    )


def test_the_neighbours() -> None:
    done = neighbours()
    assert done.returncode == 0, done.stderr
    said = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert len(said) == 18
    assert said.pop("and") == "0 blocks are left of them"
    assert "(7, 1.5)" in said["structs"] and "7 in a cast view" in said["structs"]
    assert said["sockets"].startswith("1000 bytes")
    assert "is the receiver's block" in said["pickle5"]
    expected = {"numpy": "1500.0", "torch": "1500", "arrow_ipc": "1000 rows", "numba": "499500", "h5py": "999"}
    for name, words in expected.items():
        assert words in said[name] or said[name].startswith("not installed: ")


def test_neighbours_that_are_not_installed() -> None:
    done = neighbours("numpy", "cffi", "structs", absent=("numpy", "cffi"))
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["structs", "cffi", "numpy", "and"]
    assert done.stdout.count("not installed") == 2


def test_an_unknown_neighbour() -> None:
    done = neighbours("nix")
    assert done.returncode == 2 and "nix" in done.stderr
