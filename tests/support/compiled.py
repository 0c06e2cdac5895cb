"""Extension modules that a test builds, as a reader would build them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

SETUP = """
import os

import arena
from Cython.Build import cythonize
from setuptools import Extension, setup

setup(
    ext_modules=cythonize(
        [Extension("NAME", ["NAME.pyx"], include_dirs=[arena.get_include()])],
        # For an editable installation only, which Cython does not find by itself.
        include_path=[os.path.dirname(os.path.dirname(arena.__file__))],
    ),
)
"""


def need_a_compiler() -> None:
    compiler = (sysconfig.get_config_var("CC") or "gcc").split()[0]
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no {compiler}")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        pytest.skip("Python's headers are not installed")


def load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cython(folder: Path, name: str, source: str) -> ModuleType:
    """The module of this Cython source, built in the folder.

    It is loaded here and not in a child: a warning is an error, of types whose size is another than the .pxd's for one,
    and of a module that switches the GIL on.
    """
    pytest.importorskip("Cython", reason="there is no Cython here")
    pytest.importorskip("setuptools", reason="there is no setuptools here")
    need_a_compiler()
    (folder / f"{name}.pyx").write_text(source, encoding="utf-8")
    (folder / "setup.py").write_text(SETUP.replace("NAME", name), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "CFLAGS": "-O0"},  # three times as fast to compile
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob(f"{name}.*.so")
    return load(name, built)
