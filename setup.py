"""The extension modules, each from its arena/*.pyx: _core, which holds the C core of csrc/, _realtime and _scope.

All else is in pyproject.toml."""

from __future__ import annotations

import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

if not sys.platform.startswith("linux"):
    raise SystemExit(f"sparse-arena is for Linux only (it is built on madvise): this is {sys.platform}")

from Cython.Build import cythonize

HERE = Path(__file__).resolve().parent
# The folders of csrc/ that each module holds. The core has one home; the others reach it by cimport.
CSRC = {"arena._core": ("sys", "memory", "alloc"), "arena._realtime": ("realtime",)}

# The frame pointer costs nothing that can be measured, and `perf record -g` sees through the allocator with it.
FLAGS = ["-std=c11", "-O2", "-g", "-fno-omit-frame-pointer", "-fvisibility=hidden", "-pthread"]
# Cython 3.3.1 calls tp_new by vectorcall in a way that drops references it never had where memory is short.
CYTHON_FLAGS = ["-DCYTHON_VECTORCALL_TPNEW=0"]
WARNINGS = ["-Wall", "-Wextra", "-Wshadow", "-Wvla", "-Wstrict-prototypes", "-Wmissing-prototypes"]
# A user's newer compiler may warn of something new, and that must not keep it from building.
if os.environ.get("ARENA_WERROR") == "1":
    WARNINGS.append("-Werror")


def is_current(target: Path, needed: list[str]) -> bool:
    """Whether the target is newer than all that it was made from."""
    try:
        made = target.stat().st_mtime_ns
        return all(Path(path).stat().st_mtime_ns < made for path in needed)
    except FileNotFoundError:
        return False


class BuildExt(build_ext):
    """Compiles file by file, and only what has changed: setuptools would compile Cython's 60,000 lines again for a
    change in one header. The core's own warnings can be errors; those of Cython's C are not ours."""

    def build_extension(self, ext: Extension) -> None:
        folders = CSRC.get(ext.name, ())
        own = sorted(str(path.relative_to(HERE)) for folder in folders for path in HERE.glob(f"csrc/{folder}/*.c"))
        jobs = [
            *((source, FLAGS + CYTHON_FLAGS) for source in ext.sources),
            *((source, FLAGS + WARNINGS) for source in own),
        ]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(lambda job: self.compiled(ext, *job), jobs))
        target = Path(self.get_ext_fullpath(ext.name))
        if self.force or not is_current(target, [*objects, __file__]):
            target.parent.mkdir(parents=True, exist_ok=True)
            self.compiler.link_shared_object(objects, str(target), extra_postargs=["-pthread"], target_lang="c")

    def compiled(self, ext: Extension, source: str, flags: list[str]) -> str:
        """The object of a C file; the compiler itself says what it depends on (-MMD)."""
        (name,) = self.compiler.object_filenames([source], output_dir=self.build_temp)
        depends = Path(name).with_suffix(".d")
        needed = depends.read_text().replace("\\\n", " ").split()[1:] if depends.exists() else []
        if self.force or not needed or not is_current(Path(name), [*needed, __file__]):
            self.compiler.compile(
                [source], output_dir=self.build_temp, include_dirs=ext.include_dirs, extra_postargs=[*flags, "-MMD"]
            )
        return name


class BuildPy(build_py):
    """Carries csrc/include/arena.h along as arena/include/arena.h, where arena.get_include() finds it."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            # A link and not a copy: it cannot be older than the header.
            header = HERE / "arena" / "include" / "arena.h"
            header.parent.mkdir(exist_ok=True)
            header.unlink(missing_ok=True)
            header.symlink_to(os.path.join("..", "..", "csrc", "include", "arena.h"))
        else:
            copy = self.copied()
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(HERE / "csrc" / "include" / "arena.h", copy)

    def copied(self) -> Path:
        return Path(self.build_lib, "arena", "include", "arena.h")

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        outputs: list[str] = super().get_outputs(include_bytecode)
        return outputs if self.editable_mode else [*outputs, str(self.copied())]


setup(
    cmdclass={"build_ext": BuildExt, "build_py": BuildPy},
    ext_modules=cythonize(
        [
            Extension(name, [f"{name.replace('.', '/')}.pyx"], include_dirs=["csrc", "csrc/include"])
            for name in ("arena._core", "arena._realtime", "arena._scope")
        ],
        build_dir="build/cython",
    ),
)
