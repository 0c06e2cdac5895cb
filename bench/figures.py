"""All the figures: runs every benchmark, one after the other, and prints one table.

    python bench/figures.py --json figures.json

A few minutes on an idle machine, and about 10 GiB of memory. --quick takes fewer rounds and less memory, to see that
everything runs; its figures mean nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import _measure as m

# Each with the options that make it quick.
BENCHMARKS = {
    "faults.py": ["--seconds", "1", "--blocks", "20000"],
    "populate.py": ["--repeat", "2", "--size", "64MiB"],
    "backings.py": ["--repeat", "1", "--size", "16MiB"],
    "stall.py": ["--repeat", "2", "--size", "64MiB"],
    "alloc.py": ["--repeat", "2", "--blocks", "20000"],
    "numpy_arrays.py": ["--repeat", "2", "--size", "64MiB"],
    "zero.py": ["--repeat", "2", "--size", "4MiB"],
    "utilisation.py": [],
    "realtime.py": ["--repeat", "2"],
}


def run(script: Path, options: list[str]) -> dict[str, Any] | None:
    """What the benchmark wrote; None if it failed."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        code = subprocess.run([sys.executable, str(script), "--json", str(out), *options], check=False).returncode
        if code or not out.exists():
            print(f"{script.name} failed with status {code}", file=sys.stderr)
            return None
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return found


def main() -> int:
    parser, parse = m.arguments(__doc__)
    parser.set_defaults(repeat=None)
    parser.add_argument("--quick", action="store_true", help="only see that everything runs")
    parser.add_argument("only", nargs="*", metavar="BENCHMARK", help="names, e.g. populate alloc (default: all)")
    args = parse()
    results: dict[str, Any] = {}
    failed = False
    for name, quick in BENCHMARKS.items():
        script = m.HERE / name
        if args.only and script.stem not in args.only:
            continue
        if not script.exists():
            print(f"{name} is not here", file=sys.stderr)
            failed = True
            continue
        options = quick if args.quick else []
        if args.repeat is not None and script.stem != "utilisation":
            options = [*options, "--repeat", str(args.repeat)]
        print(f"\n=== {name} {' '.join(options)}".rstrip(), flush=True)
        result = run(script, options)
        failed = failed or result is None
        if result is not None:
            results[script.stem] = result
    print("\n=== all the figures\n")
    found = [figure for result in results.values() for figure in result["figures"]]
    m.print_table([m.Figure(**figure) for figure in found])
    missed = [figure for figure in found if figure["reached"] not in ("", "yes")]
    print(f"\n{len([f for f in found if f['reached']]) - len(missed)} figures reached, {len(missed)} not")
    if args.json is not None:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
