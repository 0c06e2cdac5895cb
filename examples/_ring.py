"""Frames that go from thread to thread: rings of a few, and the threads, which end together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

__all__ = ["SLOTS", "Crew", "Frame", "Make", "Pixels", "Ring", "Stopped"]

Pixels = Any  # an array of u1
Make = Callable[[Sequence[int], str], Pixels]  # (shape, dtype)
SLOTS = 3  # frames of a ring: one is written, one read, and one lies between


class Stopped(Exception):
    """A stage has failed, or the viewer has left."""


@dataclass
class Frame:
    pixels: Pixels
    number: int = -1
    born: float = 0.0  # when the camera had room for it

    def stamp(self) -> None:
        for row in (0, -1):
            self.pixels[row].reshape(-1)[:8].view("<i8")[0] = self.number

    def check(self) -> None:
        found = [int(self.pixels[row].reshape(-1)[:8].view("<i8")[0]) for row in (0, -1)]
        if found != [self.number] * 2:
            raise RuntimeError(f"frame {self.number} holds rows of {found}")


class Ring:
    """Frames between one thread that fills and one that reads. ``keep=False`` makes each anew."""

    def __init__(self, make: Make, shape: Sequence[int], keep: bool) -> None:
        self.make: Callable[[], Pixels] = lambda: make(shape, "u1")
        self.keep = keep
        self.frames = [Frame(self.make() if keep else None) for _ in range(SLOTS)]
        self.shape = shape
        self.filled = self.freed = 0  # so far
        self.over = self.stopped = False
        self.changed = threading.Condition()

    @contextmanager
    def fill(self) -> Iterator[Frame]:
        """The next frame, once it is free. The reader has it afterwards, unless the block fails."""
        self._wait(lambda: self.filled - self.freed < SLOTS)
        frame = self.frames[self.filled % SLOTS]
        if not self.keep:
            frame.pixels = self.make()
        yield frame
        frame.stamp()
        self._set(filled=self.filled + 1)

    def __iter__(self) -> Iterator[Frame]:
        """Each frame in turn, which is free again when the next is asked for."""
        while True:
            self._wait(lambda: self.filled > self.freed or self.over)
            if self.filled == self.freed:
                return
            frame = self.frames[self.freed % SLOTS]
            frame.check()
            yield frame
            frame.check()
            if not self.keep:
                frame.pixels = None
            self._set(freed=self.freed + 1)

    def end(self) -> None:
        """No more frames come."""
        self._set(over=True)

    def stop(self) -> None:
        """Who waits, or comes to wait, gets Stopped."""
        self._set(stopped=True)

    def _wait(self, ready: Callable[[], object]) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.stopped or ready())
            if self.stopped:
                raise Stopped

    def _set(self, **values: int) -> None:
        with self.changed:
            vars(self).update(values)
            self.changed.notify_all()


@final
class Crew:
    """Threads that end together: when one fails, or the ``with`` block is left. The first failure comes out of it."""

    def __init__(self, rings: Sequence[Ring]) -> None:
        self.rings = rings
        self.threads: list[threading.Thread] = []
        self.failures: list[BaseException] = []

    def start(self, run: Callable[..., object], *args: object) -> None:
        def guarded() -> None:
            try:
                run(*args)
            except Stopped:
                pass
            except BaseException as error:
                self.failures.append(error)
                self.stop()

        thread = threading.Thread(target=guarded)
        thread.start()
        self.threads.append(thread)

    def stop(self) -> None:
        for ring in self.rings:
            ring.stop()

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.stop()
        for thread in self.threads:
            thread.join()
        if self.failures and (kind is None or kind is Stopped):
            # Out of the list: its traceback refers to us, and would keep the frames until the garbage collector comes.
            failure = self.failures[0]
            self.failures.clear()
            try:
                raise failure from None
            finally:
                del failure
