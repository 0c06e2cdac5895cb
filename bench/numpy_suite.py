"""NumPy's own test-suite with an arena as its allocator (NEP 49), beside the same run with malloc and a counter.

    python bench/numpy_suite.py

Ten minutes; needs NumPy's tests, which its wheels carry, pytest and hypothesis. The arguments are parts of NumPy, as
`linalg` or `lib.tests.test_io`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import _measure as m
import numpy as np

PARTS = ("core" if np.__version__.startswith("1.") else "_core", "lib", "linalg", "ma", "random")


def run(handler: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    out = folder / f"{handler}.json"
    ini = folder / "pytest.ini"
    ini.write_text("[pytest]\n", encoding="utf-8")
    environment = {
        **os.environ,
        "SUITE_HANDLER": handler,
        "SUITE_OUT": str(out),
        "SUITE_SIZE": args.size,
        "PYTHONPATH": str(m.HERE),
    }
    # The same order, hash seeds and Hypothesis examples in both.
    command = [sys.executable, "-m", "pytest", "-c", str(ini), "--rootdir", str(folder), "-q", "--no-header"]
    command += ["-p", "_suite_plugin", "-p", "no:cacheprovider", "-p", "no:randomly", "-m", "not slow"]
    command += ["--hypothesis-seed=0", "--tb=no", "-W", "ignore", "--pyargs", *(f"numpy.{part}" for part in args.parts)]
    done = subprocess.run(command, check=False, cwd=folder, env=environment | {"PYTHONHASHSEED": "0"})
    if not out.exists():
        raise SystemExit(f"the run with {handler} ended with status {done.returncode} and no result")
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to FILE")
    parser.add_argument("--size", default="64GiB", help="of the arena's address space (default: %(default)s)")
    parser.add_argument("parts", nargs="*", default=PARTS, help=f"(default: {' '.join(PARTS)})")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = {handler: run(handler, args, Path(folder)) for handler in ("malloc", "arena")}
    theirs, ours = results["malloc"]["outcomes"], results["arena"]["outcomes"]
    lost = [test for test, outcome in theirs.items() if outcome == "passed" and ours.get(test) != "passed"]
    for test in lost:
        print(f"passes with malloc and not with the arena: {test} ({ours.get(test, 'not run')})")
    for handler, result in results.items():
        print(f"{handler}: {dict(Counter(result['outcomes'].values()))}, outstanding: {result['outstanding']}")
    print(f"NumPy {np.__version__}; the arena's peak: {results['arena']['peak'] / m.MIB:.0f} MiB live")
    print(f"the last request it refused: {results['arena']['last_error']}")
    if args.json is not None:
        args.json.write_text(json.dumps({"machine": m.machine(), **results}, indent=1) + "\n", encoding="utf-8")
    return 1 if lost or results["malloc"]["outstanding"] != results["arena"]["outstanding"] else 0


if __name__ == "__main__":
    sys.exit(main())
