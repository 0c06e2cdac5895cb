"""The library of inject.h: how it is built, and how it is told what to fail."""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = ("inject.c", "calls.c", "contents.c")
ENVIRONMENT = "ARENA_INJECT"
"""The path of the built library, for a process that was started with it."""

TRACE_MAX, STANDING_MAX, EVERY_VARIANT = 200_000, 4, -1


class Call(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("variant", ctypes.c_long)]

    name: bytes | None
    variant: int


class Standing(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char * 24), ("variant", ctypes.c_long), ("error", ctypes.c_int)]

    name: bytes
    variant: int
    error: int


class Control(ctypes.Structure):
    """struct control of inject.h."""

    _fields_ = [
        ("armed", ctypes.c_int),
        ("index", ctypes.c_long),
        ("error", ctypes.c_int),
        ("repeat", ctypes.c_long),
        ("calls", ctypes.c_long),
        ("hits", ctypes.c_long),
        ("hit", Call),
        ("hit_path", ctypes.c_char * 256),
        ("standing", Standing * STANDING_MAX),
        ("played_path", ctypes.c_char * 64),
        ("played_text", ctypes.c_char * 16),
        ("trace", Call * TRACE_MAX),
    ]

    armed: int
    index: int
    error: int
    repeat: int
    calls: int
    hits: int
    hit: Call
    hit_path: bytes
    standing: ctypes.Array[Standing]
    played_path: bytes
    played_text: bytes
    trace: ctypes.Array[Call]


def build(folder: Path) -> Path:
    """The library, built in this folder."""
    path = folder / "libinject.so"
    warnings = ["-Wall", "-Wextra", "-Wshadow", "-Wstrict-prototypes", "-Wmissing-prototypes", "-Werror"]
    # Fortified headers define some of the functions themselves.
    command = ["gcc", "-std=gnu11", "-O1", "-g", *warnings, "-U_FORTIFY_SOURCE", "-fPIC", "-shared", "-pthread"]
    subprocess.run([*command, *(str(HERE / name) for name in SOURCES), "-o", str(path), "-ldl"], check=True)
    return path


class Library:
    """The library that this process was started with."""

    def __init__(self) -> None:
        library = ctypes.CDLL(os.environ[ENVIRONMENT])
        library.inject_control.restype = ctypes.POINTER(Control)
        library.inject_from_python.argtypes = [ctypes.c_char_p]
        library.inject_control_size.restype = ctypes.c_ulong
        assert library.inject_control_size() == ctypes.sizeof(Control), "struct control is another one in inject.h"
        self.control: Control = library.inject_control().contents
        self._library = library

    def count_calls_from(self, folder: Path) -> None:
        """Only what the extension modules of this folder call is counted, and fails."""
        assert self._library.inject_calls_from(f"{folder}/".encode()) > 0, f"no module of {folder} is loaded"

    def disarm(self) -> None:
        """Nothing fails any more, and the files are what they are."""
        self.control.armed = 0
        self.control.played_path = b""
        for standing in self.control.standing:
            standing.name = b""

    def arm(self, index: int = 0, error: int = 0, repeat: int = 0) -> None:
        """The index-th call from now on fails with this error, and those like it after it, `repeat` in all."""
        control = self.control
        control.calls = control.hits = 0
        control.hit = Call(None, 0)
        control.hit_path = b""
        control.index, control.error, control.repeat = index, error, repeat
        control.armed = 1

    def let_pass(self) -> None:
        """No further call fails but for what always does, and what is played is played on."""
        self.control.index = 0

    def inject(self, name: bytes) -> int:
        """The error that a call of Python code is to fail with, or 0."""
        return int(self._library.inject_from_python(name))

    def always_fail(self, name: str, variant: int, error: int) -> None:
        for standing in self.control.standing:
            if not standing.name:
                standing.name, standing.variant, standing.error = name.encode(), variant, error
                return
        raise AssertionError("too many standing faults")

    def play(self, path: str, text: str) -> None:
        """This file has other words in it."""
        self.control.played_text, self.control.played_path = text.encode(), path.encode()

    def hit(self) -> str:
        """The call that failed: another than in the trace, where threads or clocks have a part in it."""
        hit = self.control.hit
        return f"{(hit.name or b'none').decode()}[{hit.variant}]"

    def trace(self) -> list[tuple[str, int]]:
        """The calls since arm(), by name and variant."""
        n = min(self.control.calls, TRACE_MAX)
        return [((self.control.trace[i].name or b"?").decode(), self.control.trace[i].variant) for i in range(n)]
