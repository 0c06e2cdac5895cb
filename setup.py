"""The extension modules: arena._core, from arena/_core.pyx and csrc/, and those of arena.realtime, which have files of
csrc/ of their own. All else is in pyproject.toml."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

if not sys.platform.startswith("linux"):
    raise SystemExit(f"sparse-arena is for Linux only (it is built on madvise): this is {sys.platform}")

from Cython.Build import cythonize

HERE = Path(__file__).resolve().parent
# The C of each module.
CSRC = {
    "arena.realtime._faults": ["csrc/fault_watch.c", "csrc/page_faults.c"],
    "arena.realtime._prepare": ["csrc/prefault.c"],
    "arena.realtime._ring": [
        f"csrc/{name}.c" for name in ("forks", "lock", "mirror", "os", "os_file", "populate", "preflight")
    ],
}
ELSEWHERE = {f"csrc/{name}.c" for name in ("fault_watch", "mirror", "page_faults", "prefault")}
CSRC["arena._core"] = sorted({str(path.relative_to(HERE)) for path in HERE.glob("csrc/*.c")} - ELSEWHERE)
HEADERS = sorted(str(path.relative_to(HERE)) for path in HERE.glob("csrc/*.h"))
PARTS = sorted(str(path.relative_to(HERE)) for path in HERE.glob("arena/*.px[di]"))

# The frame pointer costs nothing that can be measured, and `perf record -g` sees through the allocator with it.
FLAGS = ["-std=c11", "-O2", "-g", "-fno-omit-frame-pointer", "-fvisibility=hidden", "-pthread"]
WARNINGS = ["-Wall", "-Wextra", "-Wshadow", "-Wvla", "-Wstrict-prototypes", "-Wmissing-prototypes"]
# A user's newer compiler may warn of something new, and that must not keep it from building.
if os.environ.get("ARENA_WERROR") == "1":
    WARNINGS.append("-Werror")


class BuildExt(build_ext):
    """Compiles csrc/ by itself, so that its warnings can be errors and those of Cython's C are not."""

    def build_extension(self, ext: Extension) -> None:
        if ext.name in CSRC:
            folder = os.path.join(self.build_temp, ext.name)  # of its own, for extensions may be built at the same time
            ext.extra_objects = self.compiler.compile(
                CSRC[ext.name], output_dir=folder, include_dirs=["csrc"], extra_postargs=FLAGS + WARNINGS
            )
        super().build_extension(ext)


class BuildPy(build_py):
    """Carries csrc/arena.h along as arena/include/arena.h, where arena.get_include() finds it."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            # A link and not a copy: it cannot be older than the header.
            header = HERE / "arena" / "include" / "arena.h"
            header.parent.mkdir(exist_ok=True)
            header.unlink(missing_ok=True)
            header.symlink_to(os.path.join("..", "..", "csrc", "arena.h"))
        else:
            copy = self.copied()
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(HERE / "csrc" / "arena.h", copy)

    def copied(self) -> Path:
        return Path(self.build_lib, "arena", "include", "arena.h")

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        outputs: list[str] = super().get_outputs(include_bytecode)
        return outputs if self.editable_mode else [*outputs, str(self.copied())]


setup(
    cmdclass={"build_ext": BuildExt, "build_py": BuildPy},
    ext_modules=cythonize(
        [
            Extension(
                name,
                [f"{name.replace('.', '/')}.pyx"],
                include_dirs=["csrc"],
                extra_compile_args=FLAGS,
                extra_link_args=["-pthread"],
                depends=[*CSRC.get(name, []), *HEADERS, *(PARTS if name == "arena._core" else [])],
            )
            for name in (
                "arena._core",
                "arena.realtime._faults",
                "arena.realtime._pool",
                "arena.realtime._prepare",
                "arena.realtime._ring",
            )
        ],
        build_dir="build/cython",
    ),
)
