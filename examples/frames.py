"""An image pipeline over rings of frames: a camera, stages of NumPy work, a viewer, and a thread for each.

A ring is a few frames between two threads: one fills them in turn, the other reads them and frees them. Where none is
free the writer waits, and with it all that is upstream. Beside it are the ordinary ways: a new array for each frame,
and rings of np.empty, which fault in their first round only. What is gained in the mean is little where the work on a
pixel takes longer than its share of a page fault, as here; it is more in the worst latency, that of the first frames.

    python examples/frames.py --size 1920x1080 --frames 60

Each frame carries its number in its first row and in its last, as a video's timecode does. Every thread looks at both
before its work and after it: a frame that was lost, mixed up or used again too early does not pass.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from _compare import Spent, command, mib, milliseconds, show, take_turns
from _ring import SLOTS, Crew, Make, Pixels, Ring

from arena import Arena

try:
    import numpy as np
except ImportError:
    sys.exit("this example needs NumPy: pip install 'sparse-arena[numpy]'")

Source = Callable[[int, Pixels], object]  # fills the frame of this number
Work = Callable[[Pixels, Pixels, Pixels], object]  # input, output, and 16 bits of scratch for each pixel of the output
Stages = Sequence[tuple[Work, tuple[int, int]]]  # each with the shape of what it makes


# --- the work: each pixel is written where it was asked for, so that no temporaries of a frame's size are made --------


def grey(rgb: Pixels, out: Pixels, wide: Pixels) -> None:
    np.add(rgb[..., 0], rgb[..., 2], out=wide, dtype="u2")
    wide += rgb[..., 1]
    wide += rgb[..., 1]
    np.right_shift(wide, 2, out=out, casting="unsafe")


def blur(image: Pixels, out: Pixels, wide: Pixels) -> None:
    """The mean of four neighbours; the edge stays."""
    inner = wide[1:-1, 1:-1]
    np.add(image[:-2, 1:-1], image[2:, 1:-1], out=inner, dtype="u2")
    inner += image[1:-1, :-2]
    inner += image[1:-1, 2:]
    np.copyto(out, image)
    np.right_shift(inner, 2, out=out[1:-1, 1:-1], casting="unsafe")


def halve(image: Pixels, out: Pixels, wide: Pixels) -> None:
    np.add(image[::2, ::2], image[1::2, 1::2], out=wide, dtype="u2")
    wide += image[::2, 1::2]
    wide += image[1::2, ::2]
    np.right_shift(wide, 2, out=out, casting="unsafe")


class Motion:
    """How much each pixel differs from that of the frame before."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.before = np.zeros(shape, "u1")

    def __call__(self, image: Pixels, out: Pixels, wide: Pixels) -> None:
        signed = wide.view("i2")
        np.subtract(image, self.before, out=signed, dtype="i2")
        np.abs(signed, out=signed)
        np.copyto(out, signed, casting="unsafe")
        np.copyto(self.before, image)


def stages(height: int, width: int) -> Stages:
    whole, half = (height, width), (height // 2, width // 2)
    return [(grey, whole), (blur, whole), (halve, half), (Motion(half), half)]


# --- the threads ------------------------------------------------------------------------------------------------------


def camera(source: Source, outlet: Ring, count: int) -> None:
    for number in range(count):
        with outlet.fill() as frame:
            frame.number, frame.born = number, time.perf_counter()
            source(number, frame.pixels)
    outlet.end()


def stage(work: Work, inlet: Ring, outlet: Ring, make: Make) -> None:
    kept = make(outlet.shape, "u2") if outlet.keep else None
    for frame in inlet:
        with outlet.fill() as out:
            out.number, out.born = frame.number, frame.born
            work(frame.pixels, out.pixels, make(outlet.shape, "u2") if kept is None else kept)
    outlet.end()


@dataclass
class Seen:
    """What the viewer has seen. Faults and seconds are from the first frame to the last, of all threads."""

    spent: Spent
    latencies: list[float]
    crc: int = 0
    last: Pixels = None


def play(make: Make, keep: bool, source: Source, shape: tuple[int, int], works: Stages, count: int) -> Seen:
    rings = [Ring(make, shape, keep) for shape in ((*shape, 3), *(shape for _, shape in works))]
    seen = Seen(Spent(), [])
    with Crew(rings) as crew:
        crew.start(camera, source, rings[0], count)
        for (work, _), inlet, outlet in zip(works, rings, rings[1:], strict=False):
            crew.start(stage, work, inlet, outlet, make)
        for number, frame in enumerate(rings[-1]):
            if frame.number != number:
                raise RuntimeError(f"frame {number} is lost: here is {frame.number}")
            if number == 0:
                seen.spent.begin()
            seen.latencies.append(time.perf_counter() - frame.born)
            seen.crc = zlib.crc32(frame.pixels, seen.crc)
            seen.last = frame.pixels
        seen.spent.end()
        seen.last = seen.last.copy()
    return seen


def synthetic(height: int, width: int) -> Source:
    """A bright square that moves over a picture which does not."""
    still = np.random.default_rng(1).integers(0, 100, (height, width, 3), "u1")
    side = max(height // 8, 1)

    def fill(number: int, pixels: Pixels) -> None:
        np.copyto(pixels, still)
        y, x = number * 3 % (height - side), number * 5 % (width - side)
        pixels[y : y + side, x : x + side] = 200

    return fill


def raw(fd: int, nbytes: int) -> Source:
    """Frames of raw RGB, as of ``ffmpeg -pix_fmt rgb24 -f rawvideo``."""

    def fill(number: int, pixels: Pixels) -> None:
        at, view = 0, memoryview(pixels).cast("B")
        while at < nbytes:
            got = os.preadv(fd, [view[at:]], number * nbytes + at)
            if not got:
                raise OSError(f"the video became shorter while it was read: frame {number} is not there")
            at += got

    return fill


def picture(image: Pixels) -> str:
    """For a plain terminal."""
    y, x = max(image.shape[0] // 20, 1), max(image.shape[1] // 72, 1)
    rows, columns = image.shape[0] // y, image.shape[1] // x
    small = image[: rows * y, : columns * x].reshape(rows, y, columns, x).max((1, 3))
    return "\n".join("".join(" .:-=+*#%@"[value * 10 // 256] for value in row) for row in small.tolist())


@command
def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", default="1920x1080", help="of a frame, in pixels (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=60, help="in each round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="the ways take turns (default: %(default)s)")
    parser.add_argument("--raw", metavar="FILE", help="raw RGB video instead of a synthetic one")
    parser.add_argument("--show", action="store_true", help="the last frame: what moved")
    args = parser.parse_args()
    match = re.fullmatch(r"(\d+)x(\d+)", args.size)
    width, height = map(int, match.groups()) if match else (0, 0)
    if width < 16 or height < 16 or width % 2 or height % 2:
        parser.error("--size must be WIDTHxHEIGHT, both even and 16 or more")
    if args.frames < 2 or args.rounds < 1:
        parser.error("--frames must be 2 or more, and --rounds 1 or more")

    with ExitStack() as files:
        source, count, nbytes = synthetic(height, width), args.frames, height * width * 3
        if args.raw:
            file = files.enter_context(open(args.raw, "rb"))
            source, count = raw(file.fileno(), nbytes), min(count, os.stat(args.raw).st_size // nbytes)
            if count < 2:
                parser.error(f"{args.raw} has no two frames of {args.size}")
        # The rings, and 16 bits a pixel of scratch for each stage.
        works = stages(height, width)
        need = SLOTS * nbytes + sum((SLOTS + 2) * h * w + 4096 for _, (h, w) in works)
        # Without `with`: an arena goes with its last frame, also where an error's traceback holds one.
        arena = Arena(2 * need + (64 << 20), fork="drop", name="frames")
        arena.warm(need)
        print(f"{count} frames of {args.size}, {len(works)} stages: rings and scratch of {mib(need)}", flush=True)

        def way(make: Make, keep: bool) -> Callable[[], Seen]:
            return lambda: play(make, keep, source, (height, width), stages(height, width), count)

        ways = {
            "arena": way(arena.empty, True),
            "np.empty each": way(np.empty, False),
            "rings of np.empty": way(np.empty, True),
        }
        seen = take_turns(ways, args.rounds)
    if len({one.crc for some in seen.values() for one in some}) != 1:
        sys.exit("the ways do not agree on the pictures")
    total = args.rounds * (count - 1)
    faults = [sum(one.spent.faults for one in some) / total for some in seen.values()]
    times = [statistics.median(one.spent.seconds for one in some) / (count - 1) for some in seen.values()]
    latencies = [[value for one in some for value in one.latencies] for some in seen.values()]
    cuts = [[*statistics.quantiles(values, n=100, method="inclusive"), max(values)] for values in latencies]
    rows = [
        ["", *ways],
        ["page faults a frame", *(f"{value:,.1f}" for value in faults)],
        ["time a frame", *map(milliseconds, times)],
        *(
            [f"latency, {label}", *(milliseconds(cut[at]) for cut in cuts)]
            for label, at in (("p50", 49), ("p99", 98), ("max", -1))
        ),
        ["time, to the arena's", *(f"{value / times[0]:.2f} x" for value in times)],
    ]
    show(rows)
    print(f"of {mib(need)} warmed the arena had at most {mib(arena.stats().peak_live)} in use")
    if args.show:
        print(picture(seen["arena"][-1].last))
    return 0


if __name__ == "__main__":
    sys.exit(main())
