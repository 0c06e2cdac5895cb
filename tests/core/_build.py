"""What the tests of the C core share: parts of csrc/ built for cffi, and answers that are not 0 as exceptions."""

from __future__ import annotations

import errno
import re
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import cffi
import pytest

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent.parent / "csrc"
INCLUDE = [f"-I{CSRC}", f"-I{CSRC}/include"]


def declarations(header: str, numbers: Mapping[str, int] | None = None) -> str:
    """A header of csrc/ as cffi can read it. `numbers`: the lengths of arrays that it gives a name."""
    text = re.sub(r"/\*.*?\*/", "", (CSRC / header).read_text(encoding="utf-8"), flags=re.DOTALL)
    text = re.sub(r"#ifdef __cplusplus.*?#endif", "", text, flags=re.DOTALL)
    for name, value in (numbers or {}).items():
        text = text.replace(f"[{name}]", f"[{value}]")
    return "\n".join(line for line in text.splitlines() if not line.startswith("#"))


def struct(header: str, name: str) -> str:
    """One structure of a header that cffi could not read as a whole."""
    found = re.search(rf"struct {name} \{{.*?\n\}};", declarations(header), flags=re.DOTALL)
    assert found, f"there is no struct {name} in {header}"
    return found.group()


def build(ffi: cffi.FFI, target: Path, sources: Iterable[Path], extra: str, declared: str) -> Any:
    """Compiles sources of csrc/ with a few lines of C more, and opens them. `declared`: what cffi is told there is."""
    ffi.cdef(declared)
    own = target.with_suffix(".extra.c")
    own.write_text(extra, encoding="utf-8")
    flags = ["-O1", "-g", "-Wall", "-Wextra", "-Werror", "-std=gnu11", "-shared", "-fPIC", "-pthread", *INCLUDE]
    subprocess.run(["gcc", *flags, *map(str, sources), str(own), "-o", str(target)], check=True)
    return ffi.dlopen(str(target))


class Failed(Exception):
    """What a function answered instead of 0."""

    def __init__(self, rc: int) -> None:
        super().__init__(errno.errorcode.get(-rc, str(rc)))
        self.errno = -rc


def must(rc: int) -> None:
    if rc:
        raise Failed(rc)


def refused(code: int, function: Callable[..., object], *args: Any, **options: Any) -> None:
    with pytest.raises(Failed) as info:
        function(*args, **options)
    assert info.value.errno == code, str(info.value)
