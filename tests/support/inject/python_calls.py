"""System calls that the package makes by Python's module os: they fail as those of its C code do."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from .errors_of import FROM_PYTHON, Instead
from .library import Library

CALLS = (
    "close",
    "fstat",
    "fstatvfs",
    "ftruncate",
    "lseek",
    "memfd_create",
    "open",
    "pread",
    "pwrite",
    "sched_getaffinity",
    "sched_setaffinity",
    "sched_setscheduler",
    "unlink",
)


class FailingOs:
    """Stands for the module os in a module of the package."""

    def __init__(self, library: Library) -> None:
        for name in CALLS:
            setattr(self, name, self._failing(library, name, getattr(os, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    @staticmethod
    def _failing(library: Library, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        label = f"{FROM_PYTHON}{name}".encode()  # kept by the closure, as long as the trace that points to it

        def call(*args: Any, **kwargs: Any) -> Any:
            error = library.inject(label)
            if error == 0:
                return real(*args, **kwargs)
            if error == Instead.NOTHING:
                return b"" if name == "pread" else 0
            if error == Instead.FEW and name == "pwrite":
                fd, data, *rest = args
                return real(fd, memoryview(data)[:8], *rest)
            if error == Instead.FEW:
                fd, nbytes, *rest = args
                return real(fd, min(nbytes, 8), *rest)
            if name == "close":
                real(*args)  # Linux closes the file in any case
            raise OSError(error, os.strerror(error))

        return call


def make_fail(library: Library, package: str) -> None:
    """In each module of the package that was imported."""
    stand_in = FailingOs(library)
    for name, module in list(sys.modules.items()):
        if name.startswith(f"{package}.") and getattr(module, "os", None) is os:
            module.os = stand_in  # type: ignore[attr-defined]
