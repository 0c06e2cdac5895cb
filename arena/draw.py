"""Tables and bars for a plain terminal."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from typing import TextIO

__all__ = ["ProgressBar", "bar", "table"]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format lines with aligned columns: the first to the left, all others to the right.

    >>> print(table(["", "arena"], [["time", "1 ms"], ["page faults", "0"]]))
                  arena
    time           1 ms
    page faults       0
    """
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    widths[1:] = [max(w, 6) for w in widths[1:]]
    return "\n".join(
        "  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))).rstrip()
        for line in lines
    )


def bar(part: float, whole: float, width: int) -> str:
    """Draw a part of a whole as ``###...``.

    >>> bar(1, 4, 8)
    '##......'
    """
    full = round(width * min(max(part / whole, 0.0), 1.0)) if whole else 0
    return "#" * full + "." * (width - full)


class ProgressBar:
    """A line that is drawn again and again on a terminal, and nothing at all elsewhere.

    An instance is what ``progress=`` takes: it is called with (done, total). tqdm and rich fit as they are::

        with tqdm(total=size, unit="B", unit_scale=True) as bar:
            a.warm(size, progress=lambda done, total: bar.update(done - bar.n))

        with rich.progress.Progress() as bars:
            task = bars.add_task("warming", total=size)
            a.warm(size, progress=lambda done, total: bars.update(task, completed=done))
    """

    INTERVAL = 0.05  # seconds: often enough for the eye, seldom enough to cost nothing

    def __init__(self, stream: TextIO, label: str = "") -> None:
        self.stream = stream
        self.label = label
        self.shown = stream.isatty()
        self.drawn_at = float("-inf")
        self.width = 0

    def __call__(self, done: int, total: int) -> None:
        if not self.shown or (done < total and time.monotonic() - self.drawn_at < self.INTERVAL):
            return
        self.drawn_at = time.monotonic()
        columns = shutil.get_terminal_size().columns - 1
        percent = 100 * done // total if total else 100
        line = f"{self.label} [{bar(done, total, 30)}] {percent:3}%"[:columns]
        self.stream.write("\r" + line.ljust(self.width))
        self.stream.flush()
        self.width = len(line)

    def clear(self) -> None:
        """Take the line away."""
        if self.width:
            self.stream.write("\r" + " " * self.width + "\r")
            self.stream.flush()
            self.width = 0
