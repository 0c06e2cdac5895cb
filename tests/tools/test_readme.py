"""What the README shows runs as it stands."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[2] / "README.md"
BLOCKS: list[tuple[str, str]] = (
    re.findall(r"^```(\w*)[^\n]*\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    if README.exists()
    else []
)
PYTHON = [code for language, code in BLOCKS if language == "python"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not README.exists(), reason="there is no README beside these tests"),
]


def missing_packages(code: str) -> list[str]:
    names = {match[1] for match in re.finditer(r"^\s*(?:import|from)\s+(\w+)", code, re.MULTILINE)}
    return sorted(name for name in names if importlib.util.find_spec(name) is None)


@pytest.mark.parametrize("code", PYTHON, ids=[f"block {i + 1}" for i in range(len(PYTHON))])
def test_python_blocks_run(code: str, tmp_path: Path) -> None:
    if missing := missing_packages(code):
        pytest.skip(f"{', '.join(missing)} not installed")
    # In a folder of its own: what a block writes goes nowhere else. What is importable here is importable there.
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env=env,
        check=False,
    )
    if "lock" in code and "RLIMIT_MEMLOCK" in done.stderr:
        pytest.skip(f"this process may not lock so much: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, f"{code}\n{done.stdout}{done.stderr}"


def command_with(words: str) -> str:
    return next(code for language, code in BLOCKS if language != "python" and words in code)


@pytest.mark.parametrize("words", ["demo", "pytest"])
def test_the_commands_are_one_line_and_set_themselves_up(words: str) -> None:
    lines = command_with(words).strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("python3 -m venv .venv && .venv/bin/pip install")
    assert words in lines[0]


def test_there_is_an_example() -> None:
    assert PYTHON
