"""One case, in a forked child with a time limit: what crashes or hangs is a finding like the others."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import select
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from arena import Reservation

from .errors_of import Case
from .judge import Belongings, check_ledger, check_what_comes_next
from .library import Library
from .scenarios import Scenario
from .steps import Places, Steps, Violation

KINDS = ("crash", "hang", "undocumented exception", "broken promise", "no way on", "leak", "harness")

# When these are refused for ever, nothing can be given back, and nobody is to blame for what is left.
GIVE_BACK = frozenset({"close", "fallocate", "madvise", "mmap", "munlock", "munmap", "syscall", "unlink"})
CHANGE_PRESENCE = frozenset({"fallocate", "madvise", "mmap"})


@dataclass(frozen=True)
class Finding:
    kind: str
    text: str


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))


def _guarded(work: Callable[[], object], broken: str) -> list[Finding]:
    try:
        work()
    except Violation as violation:
        return [Finding(broken, str(violation))]
    except BaseException as error:
        return [Finding("undocumented exception", f"{type(error).__name__}: {error} at {_where(error)}")]
    return []


def _play(scenario: Scenario, steps: Steps) -> None:
    """The kernel that the scenario wants."""
    for name, variant, error in scenario.always_fail:
        steps.library.always_fail(name, variant, error)
    if scenario.plays is not None:
        steps.library.play(*scenario.plays)


def run_here(scenario: Scenario, library: Library, places: Places, case: Case | None) -> list[Finding]:
    """Runs the scenario in this process, with the call of the case failing, and judges. No case: nothing fails."""
    before = Belongings.now()
    steps = Steps(library, places)
    _play(scenario, steps)
    library.arm(case.index, case.error, case.repeat) if case else library.arm()
    found = _guarded(lambda: scenario.run(steps), "broken promise")
    library.let_pass()
    if not scenario.always_fail:
        library.disarm()
    failed = (library.control.hit.name or b"").decode()
    given_back = case is None or case.repeat == 1 or failed not in GIVE_BACK
    exact = not steps.has_peers and (given_back or failed not in CHANGE_PRESENCE)
    judged = _guarded(lambda: check_what_comes_next(steps, exact), "no way on")
    library.disarm()
    if failed == "munmap":
        Reservation("1MiB").close()  # what could not be unmapped goes with the next
    if not judged and not found and given_back:
        judged = [Finding("leak", text) for text in Belongings.now().left_since(before, scenario)]
        if failed == "munlockall" and steps.refusals:
            judged = [finding for finding in judged if not finding.text.startswith("locked")]  # as was said
    return found + judged


def warm_up(scenario: Scenario, library: Library, places: Places) -> None:
    """What is made once for the process is made."""
    for _ in range(2):
        steps = Steps(library, places)
        _play(scenario, steps)
        library.arm()
        scenario.run(steps)
        library.let_pass()
        check_ledger(steps, not steps.has_peers)
        check_what_comes_next(steps, not steps.has_peers)
        library.disarm()


def _child(work: Callable[[], list[Finding]], to: int, seconds: int) -> None:
    faulthandler.enable()
    faulthandler.register(signal.SIGALRM, chain=True)  # says where it hangs, and dies
    signal.alarm(seconds)
    try:
        found = work()
    except BaseException as error:
        found = [Finding("harness", "".join(traceback.format_exception(error))[-1500:])]
    text = json.dumps([(finding.kind, finding.text[:2000]) for finding in found[:10]])
    os.write(to, text.encode())
    os._exit(0)


def in_child(work: Callable[[], list[Finding]], seconds: int) -> list[Finding]:
    """What the work found in a forked child, or how that ended."""
    answer, answers = os.pipe()
    complaint, complaints = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        os.dup2(complaints, 2)
        for fd in (answer, complaint, complaints):
            os.close(fd)
        _child(work, answers, seconds)
    os.close(answers)
    os.close(complaints)
    said = {answer: b"", complaint: b""}
    hung = not _read_all(said, seconds + 5)
    if hung:
        os.kill(pid, signal.SIGABRT)  # the fault handler says where
        _read_all(said, 2)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # and its own children
    _, status = os.waitpid(pid, 0)
    for fd in (answer, complaint):
        os.close(fd)
    complained = said[complaint].decode("utf-8", "replace")[-1500:]
    if hung or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM):
        return [Finding("hang", complained)]
    if os.WIFSIGNALED(status):
        return [Finding("crash", f"{signal.Signals(os.WTERMSIG(status)).name}: {complained}")]
    if status or not said[answer]:
        return [Finding("crash", f"it ended with {status}: {complained}")]
    return [Finding(kind, text) for kind, text in json.loads(said[answer])]


def _read_all(said: dict[int, bytes], seconds: float) -> bool:
    """Whether all have come to their end in time."""
    end = time.monotonic() + seconds
    open_ = set(said)
    while open_:
        ready, _, _ = select.select(list(open_), [], [], max(0.0, end - time.monotonic()))
        if not ready:
            return False
        for fd in ready:
            part = os.read(fd, 1 << 16)
            said[fd] += part
            if not part:
                open_.remove(fd)
    return True


def _overcommit_mode() -> str:
    return Path("/proc/sys/vm/overcommit_memory").read_text().strip()


_OVERCOMMIT = _overcommit_mode()
"""That of this machine, which other tests change for a while."""


def run_case(scenario: Scenario, library: Library, places: Places, case: Case, seconds: int) -> list[Finding]:
    """What is found has to be found twice: others use, and change, the same machine."""
    found: list[Finding] = []
    for _ in range(2):
        for _ in range(3):
            while _overcommit_mode() != _OVERCOMMIT:
                time.sleep(0.2)
            found = in_child(lambda: run_here(scenario, library, places, case), seconds)
            library.disarm()  # the child may have died with its hand on the trigger
            if _overcommit_mode() == _OVERCOMMIT:
                break
        if not found:
            break
    return found
