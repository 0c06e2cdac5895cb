"""All cases of some scenarios, in a process that was started with the library."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import machine
import pytest

import arena

from .case import Finding, in_child, run_case, run_here, warm_up
from .errors_of import Case, cases
from .library import Library
from .python_calls import make_fail
from .scenarios import Scenario, chosen_scenarios
from .steps import Places


@dataclass(frozen=True)
class Job:
    """What a worker is to do."""

    disk: str
    tmpfs: str
    only: Sequence[str] = ()
    part: int = 0
    parts: int = 1
    sample: int = 1
    """One case of so many."""
    most: int = 100
    """Calls of a kind."""
    calls: Sequence[str] = ()
    """Of these names; all, where none is given."""
    seconds: int = 15
    """How long a case may take."""
    cold: bool = False
    index: int = 0
    """This call only."""
    trace: bool = False


def _say(**what: object) -> None:
    print(json.dumps(what), flush=True)


def _chosen(scenario: Scenario, trace: list[tuple[str, int]], job: Job) -> Iterator[Case]:
    found = cases(scenario.name, trace, job.most)
    for i, case in enumerate(found):
        if i % job.sample == 0 and i // job.sample % job.parts == job.part and job.index in (0, case.index):
            if job.calls and case.name not in job.calls:
                continue
            yield case


def _run_scenario(scenario: Scenario, library: Library, places: Places, job: Job) -> None:
    """In a process of its own, so that no scenario finds what another has made."""
    if not (job.cold or scenario.cold):
        warm_up(scenario, library, places)
    gc.freeze()
    began = time.monotonic()
    found = in_child(lambda: run_here(scenario, library, places, None), job.seconds)
    library.disarm()
    trace = library.trace()
    _say(
        scenario=scenario.name,
        calls=len(trace),
        cases=sum(1 for _ in _chosen(scenario, trace, job)),
        found=[asdict(finding) for finding in found],
    )
    if job.trace:
        for i, (name, variant) in enumerate(trace, 1):
            print(f"{i:6} {name}[{variant}]", file=sys.stderr)
        return
    tried = 0
    for case in _chosen(scenario, trace, job):
        found = run_case(scenario, library, places, case, job.seconds)
        tried += 1
        if found:
            path = library.control.hit_path.decode("utf-8", "replace")
            _say(case=asdict(case), hit=library.hit(), path=path, found=[asdict(finding) for finding in found])
    _say(scenario=scenario.name, tried=tried, seconds=round(time.monotonic() - began, 1))


def run(job: Job) -> None:
    library = Library()
    library.count_calls_from(Path(arena.__file__).resolve().parent)
    make_fail(library, arena.__name__)
    places = Places(Path(job.disk), Path(job.tmpfs))
    for scenario in chosen_scenarios(job.only):
        with contextlib.ExitStack() as stack:
            try:
                if scenario.huge_pages:
                    stack.enter_context(machine.huge_pages(scenario.huge_pages))
            except pytest.skip.Exception as reason:
                _say(scenario=scenario.name, skipped=str(reason))
                continue
            _in_process(scenario, library, places, job)


def _in_process(scenario: Scenario, library: Library, places: Places, job: Job) -> None:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            _run_scenario(scenario, library, places, job)
            status = 0
        except BaseException as error:
            text = f"without a fault: {type(error).__name__}: {error}"
            _say(scenario=scenario.name, calls=0, found=[asdict(Finding("harness", text))])
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        text = f"without a fault: signal {os.WTERMSIG(status)}"
        _say(scenario=scenario.name, calls=0, found=[asdict(Finding("crash", text))])


if __name__ == "__main__":
    run(Job(**json.loads(sys.argv[1])))
