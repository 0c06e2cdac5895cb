"""What was tried, and what was violated."""

from __future__ import annotations

import json
import subprocess
import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TextIO

from .errors_of import Case


def call_of(case: dict[str, Any]) -> str:
    return f"{case['name']}[{case['variant']}]"


@dataclass
class Report:
    """Takes what workers say, a line at a time."""

    out: TextIO | None = None
    """Each violation is written here, a JSON object a line."""
    progress: Callable[[str], object] | None = None
    tried: Counter[str] = field(default_factory=Counter)
    skipped: dict[str, str] = field(default_factory=dict)
    violations: list[dict[str, Any]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, said: dict[str, Any]) -> None:
        scenario = said.get("scenario", "")
        if "skipped" in said:
            self.skipped[scenario] = said["skipped"]
        if "tried" in said:
            self.tried[scenario] += said["tried"]
            self._say(f"{scenario}: {said['tried']} cases in {said['seconds']} s")
        if said.get("found"):
            self.violations.append(said)
            if self.out is not None:
                print(json.dumps(said), file=self.out, flush=True)
        if "calls" in said:
            self._say(f"{scenario}: {said['calls']} calls, {said.get('cases', 0)} cases")

    def follow(self, worker: subprocess.Popen[str]) -> None:
        """To its end. Several may be followed by threads."""
        assert worker.stdout is not None
        with worker.stdout:
            for line in worker.stdout:
                with self._lock:
                    self.take(json.loads(line))
        if worker.wait():
            text = f"a worker ended with {worker.returncode}"
            with self._lock:
                self.take({"scenario": "", "calls": 0, "found": [{"kind": "harness", "text": text}]})

    def _say(self, text: str) -> None:
        if self.progress is not None:
            self.progress(text)

    def kinds(self) -> Counter[str]:
        return Counter(violation["found"][0]["kind"] for violation in self.violations)

    def summary(self) -> str:
        """The counts, and what is violated: alike ones together, with the first of them."""
        lines = [f"{scenario} was skipped: {reason}" for scenario, reason in self.skipped.items()]
        alike: defaultdict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
        for violation in self.violations:
            first, case = violation["found"][0], violation.get("case")
            call = (case["scenario"], case["name"], str(case["variant"])) if case else (violation["scenario"], "", "")
            key = (first["kind"], *call, first["text"][:40])
            alike[key].append(violation)
        for (kind, *_), violations in sorted(alike.items()):
            first = violations[0]
            case = str(Case(**first["case"])) if "case" in first else f"{first['scenario']}: without a fault"
            # Where threads and clocks have a part in it, it is not always the same call.
            hit = f", in fact {first['hit']}" if "case" in first and first["hit"] != call_of(first["case"]) else ""
            opened = f" ({first['path']})" if first.get("path") else ""
            text = " ".join(finding["text"] for finding in first["found"])
            lines.append(f"{kind}, {len(violations)} x, such as {case}{hit}{opened}\n    {text.strip()[:600]}")
        by_kind = ", ".join(f"{n} {kind}" for kind, n in self.kinds().most_common()) or "none"
        lines.append(f"{len(self.tried)} scenarios, {self.tried.total()} cases tried; violations: {by_kind}")
        return "\n".join(lines)
