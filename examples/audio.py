"""A sound through a callback, 64 frames at a time, as an audio driver asks for them: 750 times a second at 48 kHz.

The effect is a tape echo: a delay line of some seconds, of which each period reads and writes the next few hundred
bytes. np.zeros makes it of promises, so a page fault waits at every 4 KiB of tape, and of the recording, until all of
it was there once; in an arena that is locked there is none. The sink is a clock: a period that is not done when the
next is due is a missed deadline, which is a click.

    python examples/audio.py --seconds 4 --pressure
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import time
import wave
import zlib
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from _compare import command, mib, milliseconds, show, take_turns

from arena import Arena, CommitError
from arena.realtime import count_page_faults, prepare

try:
    import numpy as np
except ImportError:
    sys.exit("this example needs NumPy: pip install 'sparse-arena[numpy]'")

PERIOD = 64  # frames
REHEARSED = 50  # periods
MIB = 1 << 20

Zeros = Callable[..., Any]  # as np.zeros
Samples = Any  # float32, frames by channels


class Echo:
    """out = in + half of what was out a delay ago."""

    def __init__(self, zeros: Zeros, frames: int, channels: int) -> None:
        self.tape = zeros((frames // PERIOD * PERIOD, channels), "f4")
        self.wet = zeros((PERIOD, channels), "f4")
        self.at = 0

    def __call__(self, heard: Samples, out: Samples) -> None:
        part = self.tape[self.at : self.at + PERIOD]
        np.multiply(part, 0.5, out=self.wet)
        np.add(heard, self.wet, out=out)
        np.copyto(part, out)
        self.at = (self.at + PERIOD) % len(self.tape)


@dataclass
class Played:
    faults: int = 0
    crc: int = 0
    took: array[float] = field(default_factory=lambda: array("d"))  # seconds of each callback
    missed: int = 0
    recording: Samples = None


def play(zeros: Zeros, sound: Samples, rate: int, delay: int) -> Played:
    echo = Echo(zeros, delay, sound.shape[1])
    # An array: a list would be of new floats, for which Python takes new memory.
    played = Played(took=array("d", bytes(8 * (len(sound) // PERIOD))), recording=zeros(sound.shape, "f4"))
    counter, took, recording = count_page_faults(), played.took, played.recording
    period, clock = PERIOD / rate, time.perf_counter
    for again in range(2):  # the first time is a rehearsal, for the interpreter's own memory
        echo.at, due = 0, clock() + period
        with counter:
            for i in range(REHEARSED if again == 0 else len(took)):
                time.sleep(max(0.0, due - clock()))
                start = clock()
                part = slice(i * PERIOD, (i + 1) * PERIOD)
                echo(sound[part], recording[part])
                end = clock()
                took[i] = end - start
                due += period
                if end > due:
                    played.missed += again
                    due = end  # what is late is late; the sink begins anew
        if again == 0:
            echo.tape[: REHEARSED * PERIOD] = 0
    played.faults = counter.minor + counter.major
    played.crc = zlib.crc32(recording)
    return played


def synthetic(rate: int, seconds: float) -> Samples:
    """A plucked chord every half second."""
    at = np.arange(int(rate * seconds)) / rate
    beat = at % 0.5
    tones = sum(np.sin(2 * np.pi * hertz * at) for hertz in (220.0, 277.18, 329.63))
    return np.repeat((0.2 * tones * np.exp(-8 * beat)).astype("f4")[:, None], 2, axis=1)


def read(path: str) -> tuple[Samples, int]:
    try:
        with wave.open(path, "rb") as file:
            if file.getsampwidth() != 2:
                raise ValueError(f"it has {8 * file.getsampwidth()} bits a sample, and 16 are wanted")
            raw = np.frombuffer(file.readframes(file.getnframes()), "<i2")
            return (raw.reshape(-1, file.getnchannels()) / np.float32(32768)).astype("f4"), file.getframerate()
    except (wave.Error, EOFError, ValueError) as error:
        raise OSError(f"{path} cannot be played: {error}") from None


def write(path: str, sound: Samples, rate: int) -> None:
    with wave.open(path, "wb") as file:
        file.setnchannels(sound.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes())


def make_arena(need: int) -> tuple[Arena, str]:
    """Locked, where that is permitted; and what to say of it."""
    for lock in (True, False):
        arena = Arena(4 * need + 64 * MIB, fork="drop", lock=lock, name="audio")
        try:
            arena.warm(need)
        except CommitError as error:
            if not lock or error.op != "mlock":
                raise
            refused = error.hint
        else:
            return arena, "locked" if lock else f"not locked: {refused}"
    raise AssertionError


NEIGHBOUR = """
import mmap, os, tempfile
parent = os.getppid()
with tempfile.TemporaryFile(buffering=0) as file:
    while os.getppid() == parent:
        with mmap.mmap(-1, 64 << 20) as memory:
            for at in range(0, len(memory), mmap.PAGESIZE):
                memory[at] = 1
        for at in range(64):
            os.pwrite(file.fileno(), bytes(1 << 20), at << 20)
        os.fdatasync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
"""


@contextlib.contextmanager
def pressure() -> Iterator[None]:
    """A process beside us that uses memory and the page cache, and ends with us."""
    # A session of its own: Ctrl-C is for us.
    with subprocess.Popen([sys.executable, "-c", NEIGHBOUR], start_new_session=True) as neighbour:
        try:
            yield
        finally:
            neighbour.kill()


@command
def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--wav", metavar="FILE", help="16-bit WAV (default: a synthetic chord)")
    parser.add_argument("--seconds", type=float, default=4, help="of it (default: %(default)s)")
    parser.add_argument("--delay", type=float, default=5, help="of the echo, in seconds (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=1, help="the ways take turns (default: %(default)s)")
    parser.add_argument("--pressure", action="store_true", help="beside a process that uses memory and the page cache")
    parser.add_argument("--out", metavar="FILE", help="write what was heard as WAV")
    args = parser.parse_args()
    if not 0 < args.seconds <= 3600 or not 0.01 <= args.delay <= 3600 or args.rounds < 1:
        parser.error("--seconds must be up to 3600, --delay from 0.01 to 3600, and --rounds 1 or more")
    sound, rate = read(args.wav) if args.wav else (synthetic(48_000, args.seconds), 48_000)
    sound = np.ascontiguousarray(sound[: min(len(sound), int(args.seconds * rate)) // PERIOD * PERIOD])
    if len(sound) < 2 * REHEARSED * PERIOD:
        parser.error(f"less than {2 * REHEARSED * PERIOD} frames to play")
    delay = max(int(args.delay * rate), REHEARSED * PERIOD)
    need = (delay + len(sound) + PERIOD) * sound.shape[1] * 4 + 8192
    arena, locked = make_arena(need)
    print(f"{len(sound) / rate:.1f} s at {rate} Hz, tape and recording of {mib(need)}; the arena is {locked}")
    ways = {
        "arena": lambda: play(arena.zeros, sound, rate, delay),
        "np.zeros": lambda: play(np.zeros, sound, rate, delay),
    }
    # No heap: in this example np.zeros is to be what it is without.
    with prepare(heap=0), pressure() if args.pressure else contextlib.nullcontext():
        played = take_turns(ways, args.rounds)
    if len({one.crc for some in played.values() for one in some}) != 1:
        sys.exit("the ways do not sound the same")
    took = [[seconds for one in some for seconds in one.took] for some in played.values()]
    cuts = [[*statistics.quantiles(values, n=1000, method="inclusive"), max(values)] for values in took]
    rows = [
        ["", *ways],
        ["page faults", *(f"{sum(one.faults for one in some):,}" for some in played.values())],
        ["deadlines missed", *(f"{sum(one.missed for one in some):,}" for some in played.values())],
        *(
            [f"callback, {label}", *(milliseconds(cut[at]) for cut in cuts)]
            for label, at in (("p50", 499), ("p99", 989), ("p99.9", 998), ("max", -1))
        ),
    ]
    show(rows)
    if args.out:
        write(args.out, played["arena"][-1].recording, rate)
    return 0


if __name__ == "__main__":
    sys.exit(main())
