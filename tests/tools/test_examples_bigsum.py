"""The sum of a file by O_DIRECT: right to the last byte, or an exception."""

from __future__ import annotations

import contextlib
import math
import os
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import SUPPORT
from example import EXAMPLES, no_thread_is_left, row, run_example
from machine import disk

np = pytest.importorskip("numpy", reason="NumPy is not installed")

import bigsum  # noqa: E402  (it ends the program where there is no NumPy)

pytestmark = pytest.mark.slow  # the same on every CPython

MIB = 1 << 20
WAYS = [bigsum.by_arena, bigsum.by_fromfile, bigsum.by_memmap]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bigsum, "PIECE", 1 << 16)


def write(path: Path, nbytes: int, dtype: str = "f8") -> tuple[bigsum.File, Any]:
    """A file, and what is in it."""
    numbers = np.random.default_rng(2).random(nbytes // np.dtype(dtype).itemsize).astype(dtype)
    numbers.tofile(path)
    return bigsum.File(str(path), nbytes, np.dtype(dtype)), numbers


def descriptors() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


def test_what_it_costs(tmp_path: Path) -> None:
    with disk(256 * MIB)(tmp_path) as place:
        status, said, complained = run_example("bigsum", "--size", "64MiB", "--rounds", 3, "--dir", place.path)
    assert (status, complained) == (0, "")
    assert "arena, O_DIRECT" in said
    ours, fromfile, memmap = row(said, "after the first piece")
    assert ours < 16 and fromfile > ours and memmap > 100  # of 15 pieces; what there is is the interpreter's own
    ours, fromfile, memmap = row(said, "of the file in the page cache")
    assert ours == 0 and fromfile == memmap == 64 * MIB
    ours, _, memmap = row(said, "resident memory, at most")
    assert ours < 32 * MIB and memmap > 60 * MIB


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("nbytes", [8, 4096, (1 << 16) - 8, 1 << 16, (1 << 16) + 8, 3 * (1 << 16) + 4096, 1_000_016])
def test_all_ways_have_every_number_once(tmp_path: Path, nbytes: int, dtype: str) -> None:
    file, numbers = write(tmp_path / "numbers", nbytes, dtype)
    for way in WAYS:
        total = bigsum.Total()
        for piece in way(file):
            total.add(piece)
        assert total.count == len(numbers)
        assert math.isclose(total.sum, math.fsum(numbers.tolist()), rel_tol=1e-12)
        assert (total.min, total.max) == (numbers.min(), numbers.max())


@pytest.mark.parametrize("at_most", [4096, 3 * 4096])
def test_short_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_most: int) -> None:
    """A device that gives less than was asked for."""
    file, numbers = write(tmp_path / "numbers", 300_000)
    real = os.preadv

    def short(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        return real(fd, [memoryview(buffers[0])[:at_most]], offset)

    monkeypatch.setattr(os, "preadv", short)
    assert np.concatenate([piece.copy() for piece in bigsum.by_arena(file)]).tobytes() == numbers.tobytes()


@pytest.mark.parametrize("way", WAYS[:2])  # np.memmap has no way to say so: SIGBUS
@pytest.mark.parametrize("left", [0, 8 << 16, (8 << 16) + 4096, (8 << 16) + 104])
def test_a_file_that_becomes_shorter_is_an_error(tmp_path: Path, way: Callable[..., Any], left: int) -> None:
    file, numbers = write(tmp_path / "numbers", 20 << 16)
    before = descriptors()
    total = bigsum.Total()

    def add() -> None:
        for piece in way(file):
            total.add(piece)
            os.truncate(file.path, left)

    with no_thread_is_left(), pytest.raises(OSError, match="became shorter"):
        add()
    # What came before the error was right.
    assert total.count < len(numbers) and total.sum == pytest.approx(numbers[: total.count].sum())
    assert descriptors() == before


def test_who_stops_early_leaves_nothing(tmp_path: Path) -> None:
    file, _ = write(tmp_path / "numbers", 20 << 16)
    before = descriptors()
    with no_thread_is_left(), contextlib.closing(bigsum.by_arena(file)) as pieces:
        next(pieces)
    assert descriptors() == before


def test_where_there_is_no_o_direct(child: Callable[..., str], tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounts need root")
    said = child(
        textwrap.dedent("""
        import sys
        from pathlib import Path
        sys.path[:0] = EXAMPLES, HERE
        import bigsum
        from machine import mounted
        with mounted("ramfs", "arena-test", Path(AT), "mode=777"):
            sys.argv = ["bigsum", "--size", "8MiB", "--rounds", "1", "--dir", AT]
            bigsum.main()
        """)
        .replace("EXAMPLES", repr(str(EXAMPLES)))
        .replace("HERE", repr(str(SUPPORT)))
        .replace("AT", repr(str(tmp_path / "ramfs")))
    )
    assert "has no O_DIRECT" in said and "arena, preadv" in said


def test_nonsense_is_refused(tmp_path: Path) -> None:
    odd, empty = tmp_path / "odd", tmp_path / "empty"
    odd.write_bytes(b"x" * 4097)
    empty.touch()
    for arguments, words in (
        ([odd], "4,097 bytes"),
        ([empty], "0 bytes"),
        (["--size", "large"], "is not a size"),
        (["--rounds", 0], "--rounds"),
        (["--dtype", "O"], "--dtype"),
    ):
        status, _, complained = run_example("bigsum", *arguments)
        assert status == 2 and words in complained, complained
    for path, words in ((tmp_path / "nowhere", "No such file"), (tmp_path, "directory")):
        status, _, complained = run_example("bigsum", path)
        assert status in (1, 2) and words in complained and "Traceback" not in complained, complained
