from __future__ import annotations

import doctest
import functools
import io
import os
import re
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from arena import Arena, cli, draw

Demo = Callable[..., tuple[int, str, str]]

LABELS = (
    "commit, before the first, ms",
    "a frame, median, ms",
    "a frame, the slowest, ms",
    "all frames, and the commit, ms",
    "page faults a frame",
    "resident memory, in use, MiB",
    "resident memory, afterwards, MiB",
)


@pytest.fixture
def demo(command: Demo) -> Demo:
    return functools.partial(command, "demo", "--rounds", "1", "--size", "4MiB")


def row(said: str, label: str) -> list[float]:
    line = next(line for line in said.splitlines() if line.startswith(label + " "))
    return [float(cell.replace(",", "")) for cell in line.removeprefix(label).split()]


def test_shows_both_ways_side_by_side(demo: Demo) -> None:
    pytest.importorskip("numpy", reason="NumPy is not installed")
    status, out, err = demo()
    assert (status, err) == (0, "")
    assert out.startswith("16 frames, 64 MiB, 3 of them in use at a time\n")
    assert out.splitlines()[1].split() == ["arena", "bytearray", "np.empty"]
    for label in LABELS:
        assert len(row(out, label)) == 3, label


def test_ends_with_what_was_measured_and_what_it_means(demo: Demo) -> None:
    _, out, _ = demo("--size", "16MiB", "--frames", "6")
    *_, measured, with_commit, _, means = out.splitlines()
    ours, other, *_ = row(out, "a frame, median, ms")
    claimed = re.match(r"A frame from the arena: ([\d.]+) times as fast as with bytearray[,.]", measured)
    assert claimed
    # Both are rounded.
    assert float(claimed[1]) == pytest.approx(other / ours, rel=0.2, abs=0.1)
    assert with_commit.startswith("All of them, the commit included: ")
    assert means == "the arena's is found once, before the first frame, and goes round."
    assert max(map(len, out.splitlines())) <= 120


def test_no_verdict_on_little(demo: Demo, tmp_path: Path) -> None:
    assert "No verdict on so little (63 MiB)" in demo("--size", "63MiB", "--frames", "1")[1]
    # However many there are.
    small = tmp_path / "small"
    small.write_bytes(bytes(60_000))
    status, out, _ = demo(*[small] * 1200)
    assert status == 0 and "No verdict on so little" in out and "times as fast" not in out


def test_files_are_read(demo: Demo, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(bytes(22 << 20))
    _, out, _ = demo(large, large, large)
    assert out.startswith("3 frames, 66 MiB, ")
    assert "A frame from the arena: " in out
    assert list(tmp_path.iterdir()) == [large]


def test_works_without_numpy(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)
    status, out, err = demo()
    assert (status, err) == (0, "")
    assert "np.empty" not in out
    assert len(row(out, "a frame, median, ms")) == 2
    assert "as fast as with bytearray.\n" in out


@pytest.mark.parametrize("name", ["nowhere", "folder", "pipe", "empty"])
def test_what_is_no_file_to_read_is_an_error(demo: Demo, tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    status, out, err = demo(tmp_path / name)
    assert (status, out) == (2, "")
    assert f"there is no file {tmp_path / name}, or it is empty" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--rounds", "0"], "1 or more"),
        (["--frames", "0"], "1 or more"),
        (["--size", "large"], "is not a size"),
        (["--size", "0"], "1 byte to 1 TiB"),
        (["--size", "2TiB"], "1 byte to 1 TiB"),
    ],
)
def test_nonsense_is_refused(demo: Demo, arguments: list[str], complaint: str) -> None:
    status, out, err = demo(*arguments)
    assert (status, out) == (2, "")
    assert complaint in err


def test_more_than_there_is_of_memory_is_a_line(demo: Demo) -> None:
    status, _, err = demo("--size", "1TiB")
    assert status == 1
    assert err.startswith("python -m arena demo: ") and err.count("\n") == 1


def test_no_command_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main([])
    assert "COMMAND" in capsys.readouterr().err


@pytest.mark.slow
def test_as_it_stands_it_speaks_for_the_arena() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "arena", "demo", "--rounds", "1"],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    ours, *others = row(done.stdout, "page faults a frame")
    # Of bytearray, 16,384 and a few; of np.empty as many, or one for each of 32 huge pages where there are such.
    keeps = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))  # its own allocator keeps what a bytearray had
    assert ours < 2 and all(other >= 32 for other in others[keeps:])
    means = "kept by malloc too" if keeps else "new each time"
    assert f"That means: ordinary memory of this size is {means}" in done.stdout
    assert abs(row(done.stdout, "resident memory, afterwards, MiB")[0]) < 8


@pytest.mark.parametrize("arguments", [["--rounds", "100000"], ["--size", "1GiB", "--rounds", "100000"]])
def test_ctrl_c_is_tidy(arguments: list[str]) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "arena", "demo", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout
        first = running.stdout.readline()
        time.sleep(0.3)
        running.send_signal(signal.SIGINT)
        said, complained = running.communicate(timeout=60)
    assert first and (running.returncode, said, complained) == (130, "", "")


def test_whoever_reads_may_stop_early() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "arena", "demo", "--size", "1MiB"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    with process.stderr as complaints:
        assert complaints.read() == ""
    assert process.wait(60) == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_there_is_one_bar_and_it_only_moves_on(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    assert demo()[0] == 0
    drawn = [part for part in stream.getvalue().split("\r") if part.strip()]
    assert all(part.startswith("filling [") for part in drawn)
    percents = [int(part.rpartition("]")[2].strip(" %")) for part in drawn]
    assert percents == sorted(percents) and percents[-1] == 100
    assert stream.getvalue().split("\r")[-2].isspace() and stream.getvalue().endswith("\r")


def test_the_bar_moves_on_a_terminal_and_is_taken_away() -> None:
    stream = Terminal()
    with Arena("64MiB") as a:
        show = draw.ProgressBar(stream, "warming")
        a.warm("32MiB", progress=show)
        show.clear()
    assert f"warming [{'#' * 30}] 100%" in stream.getvalue()
    assert stream.getvalue().split("\r")[-2].isspace()


def test_no_bar_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    show = draw.ProgressBar(stream)
    show(1, 2)
    show.clear()
    assert stream.getvalue() == ""


def test_the_bar_is_not_drawn_more_often_than_the_eye_sees() -> None:
    stream = Terminal()
    show = draw.ProgressBar(stream)
    for i in range(1000):
        show(i, 1_000_000)
    assert stream.getvalue().count("\r") < 100


def test_a_bar_of_nothing() -> None:
    assert draw.bar(0, 0, 3) == "..."
    assert draw.bar(5, 4, 3) == "###"
    assert draw.bar(-1, 4, 3) == "..."


def test_the_examples_in_draw() -> None:
    assert doctest.testmod(draw).failed == 0
