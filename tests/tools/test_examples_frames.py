"""The image pipeline: no frame is lost or mixed up, and it ends however it ends."""

from __future__ import annotations

import contextlib
import re
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
from example import no_thread_is_left, row, run_example

from arena import Arena

np = pytest.importorskip("numpy", reason="NumPy is not installed")

import frames  # noqa: E402  (it ends the program where there is no NumPy)
from _ring import SLOTS  # noqa: E402

pytestmark = pytest.mark.slow  # the same on every CPython

SHAPE = (32, 48)  # height and width


def play(arena: Arena, *, source: Any = None, works: Any = None, count: int = 40, keep: bool = True) -> frames.Seen:
    return frames.play(
        arena.empty, keep, source or frames.synthetic(*SHAPE), SHAPE, works or frames.stages(*SHAPE), count
    )


@pytest.fixture
def arena() -> Arena:
    return Arena("256MiB")


def test_the_arena_faults_on_nothing_and_a_new_array_each_does() -> None:
    status, said, complained = run_example("frames", "--size", "320x240", "--frames", 60, "--rounds", 2, "--show")
    assert (status, complained) == (0, "")
    ours, each, _ = row(said, "page faults a frame")
    assert ours < 2  # the threads' own
    assert each > 50  # a colour frame has 56 pages
    warmed, used = re.findall(r"([\d.]+) MiB", next(line for line in said.splitlines() if line.startswith("of ")))
    assert float(used) <= float(warmed)
    assert "*" in said.partition("time, to the arena's")[2]  # the square has moved


def expected(count: int) -> Any:
    """The last picture, by NumPy in one thread and without out=."""
    source = frames.synthetic(*SHAPE)

    def small(number: int) -> Any:
        rgb = np.empty((*SHAPE, 3), "u1")
        source(number, rgb)
        wide = rgb.astype("u2")
        grey = (wide[..., 0] + 2 * wide[..., 1] + wide[..., 2]) >> 2
        soft = grey.copy()
        soft[1:-1, 1:-1] = (grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]) >> 2
        return ((soft[::2, ::2] + soft[::2, 1::2] + soft[1::2, ::2] + soft[1::2, 1::2]) >> 2).astype("i2")

    return abs(small(count - 1) - small(count - 2)).astype("u1")


@pytest.mark.parametrize("keep", [True, False])
def test_the_pictures_are_right(arena: Arena, keep: bool) -> None:
    with no_thread_is_left():
        last = play(arena, keep=keep, count=20).last
    # The rows that carry timecodes, and what is made of them, aside.
    assert (last[2:-2] == expected(20)[2:-2]).all() and last[2:-2].any()
    assert arena.stats().blocks == 0


class Broken(Exception):
    pass


def failing_source(number: int, pixels: Any) -> None:
    if number == 7:
        raise Broken("the camera")


def failing_work(image: Any, out: Any, wide: Any) -> None:
    if image.any():
        raise Broken("a stage")


@pytest.mark.parametrize("stage", [None, 0, 1, 3])
@pytest.mark.parametrize("keep", [True, False])
def test_what_a_thread_raises_ends_all_and_comes_out(arena: Arena, stage: int | None, keep: bool) -> None:
    works = frames.stages(*SHAPE)
    if stage is not None:
        works = [*works[:stage], (failing_work, works[stage][1]), *works[stage + 1 :]]
    caught = ""
    with no_thread_is_left():
        try:
            play(arena, source=failing_source if stage is None else None, works=works, keep=keep)
        except Broken as error:
            trace = error.__traceback__
            while trace and trace.tb_next:
                trace = trace.tb_next
            caught = trace.tb_frame.f_code.co_name if trace else ""
            del trace
    assert caught == ("failing_source" if stage is None else "failing_work")
    assert arena.stats().blocks == 0  # at once, without the garbage collector


def test_a_viewer_that_leaves_ends_all(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(zlib, "crc32", leave)
    with no_thread_is_left(), contextlib.suppress(KeyboardInterrupt):
        play(arena, count=10_000)
    assert arena.stats().blocks == 0


def test_a_frame_that_is_written_to_meanwhile_does_not_pass(arena: Arena) -> None:
    def vandal(image: Any, out: Any, wide: Any) -> None:
        image[-1] += 1

    with no_thread_is_left(), pytest.raises(RuntimeError, match="frame 0 holds rows of"):
        play(arena, works=[(frames.grey, SHAPE), (vandal, SHAPE)])


def test_the_camera_waits_for_a_slow_viewer(arena: Arena) -> None:
    made, seen, lead = [0], [0], [0]
    source = frames.synthetic(*SHAPE)

    def counting(number: int, pixels: Any) -> None:
        made[0] = number + 1
        source(number, pixels)

    def slow(image: Any, out: Any, wide: Any) -> None:
        time.sleep(0.002)
        lead[0] = max(lead[0], made[0] - seen[0])
        seen[0] += 1

    works = [*frames.stages(*SHAPE), (slow, (16, 24))]
    play(arena, source=counting, works=works, count=60)
    assert seen == [60]
    assert SLOTS < lead[0] <= SLOTS * len(works)


def test_raw_video_and_one_that_becomes_shorter(arena: Arena, tmp_path: Path) -> None:
    path = tmp_path / "video.rgb"
    source, nbytes = frames.synthetic(*SHAPE), 3 * SHAPE[0] * SHAPE[1]
    pixels = np.empty((*SHAPE, 3), "u1")
    with path.open("wb") as video:
        for number in range(30):
            source(number, pixels)
            video.write(pixels)
    with path.open("r+b") as video:
        raw = frames.raw(video.fileno(), nbytes)
        assert play(arena, source=raw, count=30).crc == play(arena, count=30).crc
        video.truncate(29 * nbytes + 100)
        with no_thread_is_left(), pytest.raises(OSError, match=r"became shorter.*frame 29 "):
            play(arena, source=raw, count=30)

    status, said, _ = run_example("frames", "--raw", path, "--size", "48x32", "--rounds", 1)
    assert status == 0 and said.startswith("29 frames of 48x32")
    status, _, complained = run_example("frames", "--raw", path, "--size", "480x320")
    assert status == 2 and "no two frames" in complained
    status, _, complained = run_example("frames", "--raw", tmp_path / "nowhere")
    assert status == 1 and "No such file" in complained and "Traceback" not in complained


@pytest.mark.parametrize("nonsense", [["--size", "15x16"], ["--size", "big"], ["--frames", "1"], ["--rounds", "0"]])
def test_nonsense_is_refused(nonsense: list[str]) -> None:
    status, _, complained = run_example("frames", *nonsense)
    assert status == 2 and nonsense[0] in complained
