from __future__ import annotations

import doctest
import functools
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from arena import Arena, cli, draw

Demo = Callable[..., tuple[int, str, str]]


@pytest.fixture
def demo(command: Demo) -> Demo:
    return functools.partial(command, "demo", "--rounds", "1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "a").write_bytes(b"a" * 3_000_000)
    (tmp_path / "deep" / "b").write_bytes(bytes(range(256)) * 1000)
    (tmp_path / "deep" / "er" / "one byte").write_bytes(b"b")
    (tmp_path / "empty").touch()
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


def test_shows_both_ways_side_by_side(demo: Demo, folder: Path) -> None:
    pytest.importorskip("numpy", reason="NumPy is not installed")
    status, out, err = demo(folder)
    assert (status, err) == (0, "")
    assert out.startswith("3 files, 3.105 MiB: ")
    assert "the most frequent byte is b'a', 92.2% - by every way" in out
    header = next(line for line in out.splitlines() if line.startswith("time"))
    assert header.split() == ["time,", "page", "faults", "arena", "faults", "bytearray", "faults", "np.empty", "faults"]
    for label in ("commit up front", "read all files", "work on them", "give back", "in all"):
        assert re.search(rf"^{label}\s+[\d.,]+ ms", out, re.MULTILINE), label
    for moment in ("during", "after"):
        for way in ("arena", "bytearray", "np.empty"):
            assert re.search(rf"^{way}, {moment} +[+-][\d.]+ MiB", out, re.MULTILINE), (way, moment)


def test_shows_that_all_was_given_back(demo: Demo, folder: Path) -> None:
    _, out, _ = demo(folder)
    lines = out.split("the arena's own picture")[1].splitlines()[2:7]
    rows = [re.split(r"  +", line) for line in lines]
    assert [row[0] for row in rows] == ["reserved", "warmed", "all files in blocks", "blocks dropped", "given back"]
    _, reserved, committed, live, resident, blocks = zip(*rows, strict=True)
    assert len(set(reserved)) == 1
    assert committed[0] == committed[-1] == resident[0] == resident[-1] == "0 bytes"
    assert committed[1] == committed[2] == resident[1] == resident[2] != "0 bytes"
    assert (live[2], live[3]) == ("3.105 MiB", "0 bytes")
    assert blocks == ("0", "0", "3", "0", "0")


def test_names_no_file_twice(demo: Demo, folder: Path) -> None:
    _, out, _ = demo(folder, folder / "a")
    assert out.startswith("3 files, ")


def test_without_numpy_there_is_a_crc_and_a_hint(demo: Demo, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)
    status, out, _ = demo(folder)
    assert status == 0
    assert "sparse-arena[numpy]" in out
    assert "CRC-32" in out
    assert "most frequent" not in out
    assert "np.empty" not in out


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("nowhere", "No such file"),
        ("pipe", "neither a file nor a folder"),
        ("empty", "no file that is not empty"),
    ],
)
def test_a_path_that_cannot_be_read_is_an_error(demo: Demo, folder: Path, path: str, complaint: str) -> None:
    status, out, err = demo(folder / path)
    assert (status, out) == (2, "")
    assert complaint in err
    assert path in err
    assert "Traceback" not in err


def test_rounds_have_to_be_positive(demo: Demo, folder: Path) -> None:
    status, _, err = demo(folder, "--rounds", "0")
    assert status == 2
    assert "1 or more" in err


def test_no_command_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main([])
    assert "COMMAND" in capsys.readouterr().err


@pytest.mark.slow
def test_the_standard_library_has_fewer_faults_by_way_of_the_arena() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "arena", "demo", "--rounds", "1"],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    row = next(line for line in done.stdout.splitlines() if line.startswith("read all files"))
    arena, bytearray_, *_ = (int(n.replace(",", "")) for n in re.findall(r" ms +([\d,]+)", row))
    assert arena * 10 < bytearray_


def test_whoever_reads_may_stop_early(folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "arena", "demo", str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
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
