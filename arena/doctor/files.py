"""Reads the kernel's small files. Never raises: what cannot be read is None, and why is remembered."""

from __future__ import annotations

import os

__all__ = ["Files", "cpus_of", "fields_of"]


class Files:
    def __init__(self) -> None:
        self.unread: dict[str, str] = {}
        """Why a file could not be read, by its path."""

    def text(self, path: str) -> str | None:
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                return file.read()
        except (OSError, ValueError) as error:
            self.unread[path] = getattr(error, "strerror", None) or str(error)
            return None

    def word(self, path: str) -> str | None:
        """Return the whole file, without the end of the line."""
        text = self.text(path)
        return None if text is None else text.strip()

    def number(self, path: str) -> int | None:
        """Return the number in a file; None also for "max", and for what is no number."""
        try:
            return int(self.text(path) or "")
        except ValueError:
            return None

    def chosen(self, path: str) -> str | None:
        """Return the word in brackets of a line like ``always [madvise] never``."""
        text = self.text(path)
        return None if text is None else text.partition("[")[2].partition("]")[0]

    def names(self, path: str) -> list[str]:
        """Return the names in a folder, sorted."""
        try:
            return sorted(os.listdir(path))
        except OSError as error:
            self.unread[path] = error.strerror or str(error)
            return []


def fields_of(text: str | None) -> dict[str, str]:
    """Parse lines of ``Key: value`` or ``key value``, as /proc/meminfo, /proc/self/status and memory.stat have them."""
    pairs = (line.replace(":", " ", 1).split(None, 1) for line in (text or "").splitlines())
    return {pair[0]: pair[1].strip() for pair in pairs if len(pair) == 2}


def cpus_of(text: str | None) -> tuple[int, ...]:
    """Parse a list of CPUs or nodes.

    >>> cpus_of("0-2,8")
    (0, 1, 2, 8)
    """
    found: list[int] = []
    for part in (text or "").strip().split(","):
        first, _, last = part.partition("-")
        if first.isdigit() and (last.isdigit() or not last):
            found += range(int(first), int(last or first) + 1)
    return tuple(found)
