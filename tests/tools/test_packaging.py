"""What is built: the sdist, the wheel made from it, and what an installation of that has."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="the source tree is not here"),
]


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=cwd, check=False)
    said = done.stdout + done.stderr
    if done.returncode and re.search(r"No matching distribution|Connection|Temporary failure in name", said):
        pytest.skip("the build back end cannot be had: no package index can be reached")
    assert done.returncode == 0, f"{command}\n{said}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel that was built from it."""
    for needed in ("build", "Cython", "setuptools"):
        pytest.importorskip(needed, reason=f"{needed!r} is not installed")
    out: Path = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    return out


@pytest.fixture(scope="module")
def sdist(built: Path) -> set[str]:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        return {name.split("/", 1)[1] for name in tar.getnames() if "/" in name}


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (archive,) = built.glob("*.whl")
    return archive


def test_the_sdist_has_all_sources(sdist: set[str]) -> None:
    sources = {
        str(path.relative_to(ROOT))
        for folder, pattern in (
            ("csrc", "*/*.[ch]"),
            ("arena", "*.p*"),
            ("arena/bench", "*"),
            ("arena/doctor", "*"),
            ("arena/realtime", "*"),
            ("tests", "**/*.[cp]*"),
            ("tests/core", "*"),
            ("bench", "*.[cp]*"),
            ("bench/patch2021", "*"),
            ("examples", "*"),
        )
        for path in ROOT.glob(f"{folder}/{pattern}")
        if path.is_file() and path.suffix not in (".pyc", ".so")
    }
    assert sources <= sdist
    assert {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "setup.py"} <= sdist


def test_the_sdist_has_nothing_that_was_built(sdist: set[str]) -> None:
    built = {
        name
        for name in sdist
        if re.search(r"\.(so|o|pyc)$|^arena/(_core\.c|realtime/\w+\.c|include)|__pycache__|^build/", name)
    }
    assert not built


def test_the_wheel_has_what_its_users_compile_and_check_against(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        header = archive.read("arena/include/arena.h")
        metadata = archive.read(next(name for name in names if name.endswith("/METADATA"))).decode()
    assert header == (ROOT / "csrc" / "include" / "arena.h").read_bytes()
    assert {"arena/_core.pxd", "arena/__init__.pxd", "arena/py.typed"} <= names
    for module in ("arena/_core", "arena/_realtime", "arena/_scope"):
        assert f"{module}.pyi" in names
        assert len([name for name in names if re.fullmatch(rf"{module}\..*\.so", name)]) == 1
    assert not [name for name in names if name.endswith((".pyx", ".c"))]
    assert not [name for name in names if not re.match(r"arena/(?!examples)|pytest_arena\.py$|sparse_arena-", name)]
    assert "License-Expression: MIT" in metadata
    assert "Requires-Python: >=3.10" in metadata
    needed = [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert not needed


def test_an_installation_of_the_wheel_works(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--no-index", "--no-deps", "--disable-pip-version-check", wheel, cwd=tmp_path)
    code = """
import os, arena
assert os.path.isfile(os.path.join(arena.get_include(), "arena.h")), arena.get_include()
with arena.Arena("1GiB") as a:
    b = a.alloc(100)
    b[:5] = b"hello"
    print(bytes(b[:5]).decode(), arena.__file__)
    b.free()
"""
    said = run(python, "-I", "-c", code, cwd=tmp_path)
    assert said.startswith(f"hello {tmp_path}")
    assert run(tmp_path / "venv" / "bin" / "sparse-arena", "--version", cwd=tmp_path).startswith("sparse-arena ")


@pytest.mark.parametrize(("compiler", "standard", "name"), [("gcc", "c11", "use.c"), ("g++", "c++17", "use.cc")])
def test_the_header_is_enough_for_a_compiler(
    compiler: str, standard: str, name: str, wheel: Path, tmp_path: Path
) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no {compiler}")
    with zipfile.ZipFile(wheel) as archive:
        archive.extract("arena/include/arena.h", tmp_path)
    (tmp_path / name).write_text("#include <arena.h>\nstruct arena_block b;\n")
    flags = ("-Wall", "-Wextra", "-Wpedantic", "-Werror", "-Iarena/include")
    run(compiler, f"-std={standard}", *flags, "-c", name, cwd=tmp_path)


def test_the_tools_are_of_one_version_everywhere() -> None:
    pins = re.compile(r"\"([\w-]+==[\w.]+)\"")
    here, there = (ROOT / "pyproject.toml").read_text(), (ROOT / ".pre-commit-config.yaml").read_text()
    assert set(pins.findall(here)) == set(pins.findall(there))
