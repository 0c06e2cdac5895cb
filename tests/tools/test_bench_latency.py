"""python -m arena bench latency: counts only, for a machine that others use has no latencies to speak of."""

from __future__ import annotations

import csv
import importlib.util
import json
import mmap
import os
import resource
import signal
import subprocess
import sys
import time
from array import array
from collections.abc import Callable
from pathlib import Path

import kernel
import pytest
from machine import MemoryCgroup

from arena import cli
from arena.bench import latency_report, pressure
from arena.bench.cycles import Samples
from arena.bench.latency_report import Row
from arena.bench.touch import Toucher, sleep_until

pytestmark = pytest.mark.slow  # the same on every CPython

COMMAND = [sys.executable, "-m", "arena", "bench", "latency", "--quick", "--seconds", "0.05"]


def run(
    *arguments: object, preexec: Callable[[], None] | None = None, **options: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        preexec_fn=preexec,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **options},
    )


def is_drawn_or_its_lack_is_said(path: Path, stdout: str) -> None:
    if importlib.util.find_spec("matplotlib"):
        assert path.stat().st_size > 1000
    else:
        assert "Matplotlib is not installed" in stdout
        assert not path.exists()


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(pid: int) -> bool:
    for _ in range(500):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":  # whose it is now need not wait for it
            return True
        time.sleep(0.01)
    return False


def test_the_arena_faults_on_nothing_under_any_pressure(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    picture = tmp_path / "a.svg"
    done = run("--json", tmp_path / "a.json", "--csv", tmp_path / "a.csv", "--picture", picture, TMPDIR=str(files))
    assert (done.returncode, done.stderr) == (0, "")
    assert "Wake-up latency" in done.stdout
    assert not list(files.iterdir())
    is_drawn_or_its_lack_is_said(picture, done.stdout)
    whole = json.loads((tmp_path / "a.json").read_text())
    assert set(whole) == {"benchmark", "machine", "conditions", "rows", "figures"}
    assert whole["benchmark"] == "latency"
    ours = [row for row in whole["rows"] if row["way"] == "arena"]
    assert {row["pressure"] for row in ours if row["paced"]} == {"idle", "neighbour", "page cache", "forks", "all"}
    assert {row["written"] for row in ours if not row["paced"]} == {"filled", "a byte a page"}
    for row in ours:
        assert row["buffer_faults"] == 0, row["pressure"]
        assert len(row["memory_ns"]) == row["cycles"] > 0
        if "the whole process" in whole["conditions"]:
            assert row["cycle_faults"] == 0, row["pressure"]
    assert all(figure["reached"] in ("yes", "no", "too few cycles") for figure in whole["figures"])
    lines = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    assert [line["way"] for line in lines] == [row["way"] for row in whole["rows"]]


def test_without_a_priority_there_is_still_a_loop_and_it_is_said(tmp_path: Path) -> None:
    def ordinary() -> None:
        resource.setrlimit(resource.RLIMIT_RTPRIO, (0, 0))
        kernel.drop_capabilities(23)  # SYS_NICE

    done = run("--picture", tmp_path / "a.png", preexec=ordinary)
    assert done.returncode == 0, done.stderr
    assert "the scheduler is the ordinary one" in done.stdout and "RLIMIT_RTPRIO is 0" in done.stdout
    is_drawn_or_its_lack_is_said(tmp_path / "a.png", done.stdout)


def test_a_cgroup_that_is_too_small_is_found_out_before(cgroup: MemoryCgroup) -> None:
    cgroup.limit(400 << 20)
    command = [*COMMAND[: COMMAND.index("--quick")]]
    done = subprocess.run(command, preexec_fn=cgroup.enter, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert str(cgroup.path) in done.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--seconds", "0"], "--seconds must be above 0"),
        (["--seconds", "nan"], "--seconds must be above 0"),
        (["--hz", "0"], "--hz must be 1 to 10000"),
        (["--priority", "100"], "--priority must be 0 to 99"),
        (["--picture", "a.gif"], "ends in .png or .svg"),
        (["--json", "no/such/folder/a.json"], "there is no folder"),
    ],
)
def test_nonsense_is_refused(arguments: list[str], complaint: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert complaint in done.stderr


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupt_leaves_no_process_and_no_file(tmp_path: Path, sig: signal.Signals) -> None:
    """Of Ctrl-C, and of what leaves the command no time for anything."""
    command = [
        sys.executable,
        "-m",
        "arena",
        "bench",
        "latency",
        "--seconds",
        "0.3",
        "--json",
        str(tmp_path / "a.json"),
    ]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "TMPDIR": str(tmp_path)}
    ) as loop:
        try:
            end = time.monotonic() + 60
            while not (others := children_of(loop.pid)) and time.monotonic() < end:
                time.sleep(0.01)
            assert others
            time.sleep(0.2)  # a disturber that has begun ignores Ctrl-C
            loop.send_signal(sig)
            assert loop.wait(30) == (130 if sig == signal.SIGINT else -sig)
        finally:
            loop.kill()
    assert all(gone(other) for other in others)
    assert not list(tmp_path.iterdir())


def test_the_other_processes_end_with_the_block() -> None:
    others: list[int] = []

    def fail() -> None:
        with pressure.under("all", 1 << 20) as forks:
            assert forks
            others.extend(children_of(os.getpid()))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert len(others) >= 2
    assert all(gone(other) for other in others)


def test_a_disturber_that_ended_itself_is_an_error() -> None:
    def kill_it() -> None:
        before = set(children_of(os.getpid()))
        with pressure.under("neighbour", 1 << 20):
            (other,) = set(children_of(os.getpid())) - before
            os.kill(other, signal.SIGKILL)
            os.waitid(os.P_PID, other, os.WEXITED | os.WNOWAIT)

    with pytest.raises(ChildProcessError, match="ended itself"):
        kill_it()


def test_a_buffer_is_filled_or_touched_in_each_page_and_its_faults_are_counted() -> None:
    memory, touch = bytearray(8192), Toucher(8192, 4096)
    touch.write(memory)
    assert [at for at, byte in enumerate(memory) if byte] == [0, 4096]
    assert touch.read(memory) == b"\1\1"
    touch.fill(memory)
    assert memory == b"\1" * 8192
    for way in (touch.write, touch.fill):
        with pytest.raises(TypeError):
            way(b"readonly")
        assert way(memory) == 0
    size = 64 * mmap.PAGESIZE
    for way in (Toucher(size, mmap.PAGESIZE).write, touch.fill):
        with mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as fresh:
            fresh.madvise(mmap.MADV_NOHUGEPAGE)
            assert way(fresh) == 64
            assert way(fresh) == 0


def test_sleep_until_is_never_early() -> None:
    deadline = time.monotonic_ns() + 2_000_000
    sleep_until(deadline)
    assert time.monotonic_ns() >= deadline
    with pytest.raises(ValueError, match="below 0"):
        sleep_until(-1)


def test_a_signal_handler_runs_while_it_sleeps_and_what_it_raises_is_raised() -> None:
    def handler(number: int, frame: object) -> None:
        rung.append(time.monotonic_ns())
        if len(rung) == 3:
            raise InterruptedError

    rung: list[int] = []
    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        with pytest.raises(InterruptedError):
            sleep_until(time.monotonic_ns() + 60_000_000_000)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(rung) == 3


def test_a_benchmark_has_to_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["bench"])
    assert "BENCHMARK" in capsys.readouterr().err


def test_where_the_patchs_table_is_now(command: Callable[..., tuple[int, str, str]]) -> None:
    status, out, err = command("bench", "populate", "--runs", "1")
    assert (status, out) == (2, "")
    assert "`python bench/patch2021`" in err
    assert "populate" not in command("bench", "--help")[1]


def row(way: str, memory: list[int], faults: int = 0, page: int = 4096) -> Row:
    return Row(64 << 20, page, "all", False, way, Samples(array("q", memory), array("q", memory), faults))


def test_figures_that_are_missed_are_called_missed_and_few_cycles_are_told() -> None:
    rows = [row("arena", [1000, 4000], 1), row("memset", [1000, 2000]), row("bytearray", [1000, 20000])]
    found = {name.split(",")[0]: (value, reached) for name, _, value, reached in latency_report.figures(rows)}
    assert found["faults a cycle in buffers"] == ("0.5", "no")
    # p50 by nearest rank is the second of two.
    assert found["p99.9/p50 to memset's"] == ("1.00 (max of 2)", "too few cycles")
    assert found["p99.99 of bytearray to ours"] == ("at least 5.00 (max of 2)", "too few cycles")
    rows = [row("arena", [1000, 4000] * 5000), row("memset", [1000, 2000] * 5000), row("bytearray", [9000] * 10000)]
    found = {name.split(",")[0]: (value, reached) for name, _, value, reached in latency_report.figures(rows)}
    assert found["p99.9/p50 to memset's"][1] == "yes"
    assert found["p99.99 of bytearray to ours"] == ("2.25", "no")


def test_a_percentile_of_too_few_is_what_it_is_not_below() -> None:
    """But for a chance of 1%: of the largest of 100 it is 1%, of 1,000 nearly 10%, and 0.5% of the second."""
    values = list(range(100_000))
    assert latency_report.at_least(values, 99.99) == latency_report.percentile(values, 99.99) == 99_990
    assert latency_report.at_least(values[:100], 99.99) == 99
    assert latency_report.at_least(values[:1000], 99.99) == 998
    assert latency_report.at_least(values[:9999], 99.99) == 9994
    assert latency_report.at_least([5], 99.99) == 5
    # Far slower in the few cycles there are: more of them would not change that.
    rows = [row("arena", [1000, 4000] * 5000), row("memset", [1000] * 10000), row("bytearray", [50000] * 20)]
    found = {name.split(",")[0]: (value, reached) for name, _, value, reached in latency_report.figures(rows)}
    assert found["p99.99 of bytearray to ours"] == ("at least 12.50", "yes")


def test_faults_of_whole_cycles_count_where_all_is_locked() -> None:
    samples = Samples(array("q", [1]), array("q", [1]), 0, 1)
    for locked, value in ((True, ("faults a cycle", "1", "no")), (False, ("faults a cycle in buffers", "0", "yes"))):
        one = Row(1 << 20, 0, "idle", True, "arena", samples, locked)
        ((name, _, measured, reached),) = latency_report.figures([one])
        assert (name.split(",")[0], measured, reached) == value


def test_the_histogram_has_every_cycle_once() -> None:
    assert latency_report.histogram([500, 1500, 2000, 9000]) == {0: 2, 1: 1, 2: 0, 3: 1}
