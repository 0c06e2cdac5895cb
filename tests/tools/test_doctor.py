"""The doctor on the real thing: children with limits, cgroups, mounts and kernels of their own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kernel
import machine
import pytest
from conftest import MIB, SUPPORT, run_child
from machine import MemoryCgroup

from arena import doctor
from arena.doctor.finding import USES, VERDICTS
from arena.doctor.judge import blocked

pytestmark = pytest.mark.slow  # the same on every CPython


@dataclass
class Seen:
    """What the doctor said in a child, as JSON."""

    status: int
    whole: dict[str, Any]
    said: str
    """What the child printed before."""

    def __getitem__(self, name: str) -> dict[str, Any]:
        found = {finding["name"]: finding for finding in self.whole["findings"]}
        assert name in found, sorted(found)
        return dict(found[name])

    def line(self, name: str) -> str:
        mend = self[name]["mend"]
        return "" if mend is None else str(mend["line"])


def see(setup: str = "", *, use: str | None = None, preexec: Callable[[], object] | None = None) -> Seen:
    """Runs the command in a child which has done this to itself before: with libc, kernel, os and resource."""
    code = f"""
import os, resource, sys
from arena import cli, doctor
import kernel
from kernel import libc
{textwrap.dedent(setup)}
print("---", flush=True)
sys.exit(cli.main(["doctor", "--json", *{["--for", use] if use else []!r}]))
"""
    done = run_child(code, preexec=preexec, PYTHONPATH=str(SUPPORT))
    if done.returncode == kernel.CANNOT:
        pytest.skip(done.stdout.strip())
    assert done.returncode in (0, 1) and done.stderr == "", done.stderr
    said, _, text = done.stdout.partition("---\n")
    seen = Seen(done.returncode, json.loads(text), said.strip())
    assert seen.status == seen.whole["blocked"]
    return seen


def as_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")


NO_SIGN = """
kernel.own_mounts()
kernel.root_without("/.dockerenv")
for name in ("KUBERNETES_SERVICE_HOST", "container"):
    os.environ.pop(name, None)
kernel.lay_over(f"/proc/{os.getpid()}/cgroup", "0::/user.slice/user-1000.slice/session-1.scope\\n")
"""


# Locked memory.


@pytest.mark.parametrize("limit", [64 << 10, 8 * MIB, -1])
@pytest.mark.parametrize("capable", [True, False])
def test_memlock_is_what_mlockall_answers(limit: int, capable: bool) -> None:
    as_root()
    seen = see(
        f"""
        try:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, ({limit}, {limit}))
        except ValueError:
            kernel.cannot("RLIMIT_MEMLOCK may not be raised here (no CAP_SYS_RESOURCE)")
        if not {capable}:
            kernel.drop_capabilities(14, 24)
        print(libc.mlockall(1))
        libc.munlockall()
        """,
        use="realtime",
    )
    found = seen["RLIMIT_MEMLOCK"]
    if capable or limit < 0:
        assert (seen.said, found["verdict"], found["mend"]) == ("0", "good", None)
    else:
        assert (seen.said, seen.status, found["verdict"]) == ("-1", 1, "blocks you")
        assert "without CAP_IPC_LOCK" in found["value"]
        assert re.search("memlock|IPC_LOCK|ulimit", seen.line("RLIMIT_MEMLOCK"))
        # The first thing to be said, and nothing to those who lock nothing.
        assert seen.whole["findings"][0]["name"] == "RLIMIT_MEMLOCK"
    assert ("CAP_IPC_LOCK" in seen["capabilities"]["value"].split(", ")) == capable


def test_without_realtime_memlock_is_mere_information() -> None:
    as_root()
    drop = "resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536)); kernel.drop_capabilities(14, 24)"
    for use in (None, "numpy", "sharing"):
        seen = see(drop, use=use)
        assert (seen.status, seen["RLIMIT_MEMLOCK"]["verdict"]) == (0, "information")


@pytest.mark.parametrize(
    ("flags", "words"), [(0, "off, nothing locked"), (2, "MCL_FUTURE,"), (6, "MCL_FUTURE with MCL_ONFAULT")]
)
def test_mlockall_that_is_on_is_found_out(flags: int, words: str) -> None:
    as_root()
    seen = see(f"if {flags}: kernel.check(libc.mlockall({flags}), 'mlockall')")
    assert seen["mlockall"]["value"].startswith(words)
    assert seen.status == 0


def test_all_that_is_mapped_is_locked() -> None:
    as_root()
    assert see("kernel.check(libc.mlockall(1), 'mlockall')")["mlockall"]["value"].startswith("MCL_CURRENT, ")


def test_mcl_future_with_a_small_limit_blocks_the_core_itself() -> None:
    as_root()
    seen = see(
        """
        kernel.check(libc.mlockall(2 | 4), "mlockall")
        locked = int(open("/proc/self/status").read().partition("VmLck:")[2].split()[0]) << 10
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (locked + (1 << 20),) * 2)
        kernel.drop_capabilities(14, 24)
        """
    )
    assert (seen.status, seen["mlockall"]["verdict"]) == (1, "blocks you")
    assert seen["mlockall"]["value"].startswith("MCL_FUTURE with MCL_ONFAULT, ")


def test_a_seccomp_filter_against_mlock() -> None:
    seen = see("kernel.answer(1, 'mlock')", use="realtime")
    if os.geteuid() == 0:
        assert (seen.status, seen["mlock"]["verdict"]) == (1, "blocks you")
        assert "Operation not permitted" in seen["mlock"]["value"]


# Memory.


def test_a_memory_cgroup(cgroup: MemoryCgroup) -> None:
    cgroup.limit(256 * MIB)
    # What the doctor says is what the core goes by.
    seen = see(
        """
        from arena import Arena, CommitError
        try:
            Arena("4GiB", headroom=0).alloc("1GiB")
        except CommitError as error:
            print(error.available, str(error).partition("available (")[2].partition(")")[0])
        """,
        preexec=cgroup.enter,
    )
    found = seen["memory cgroup"]
    assert (seen.status, found["verdict"]) == (0, "limits you")
    available, where = seen.said.split()
    left = re.match(r"([\d.]+) MiB left of 256 MiB$", found["value"])
    assert left and abs(float(left[1]) * MIB - int(available)) < 8 * MIB
    assert where in found["reason"] and str(cgroup.path) in found["reason"]
    assert re.search(r"--memory 1g|MemoryMax=1G|memory: 1Gi|echo \S+ >", seen.line("memory cgroup"))


def test_overcommit_mode_2(overcommit: Callable[[int], object]) -> None:
    overcommit(2)
    seen = see()
    assert seen["vm.overcommit_memory"]["verdict"] == "limits you"
    assert re.match(r"2 \(never\): [\d.]+ \wiB left of [\d.]+ \wiB", seen["vm.overcommit_memory"]["value"])
    assert seen.line("vm.overcommit_memory") == "sysctl -w vm.overcommit_memory=0"


@pytest.mark.parametrize(
    ("name", "spare", "status", "verdict"),
    [
        ("RLIMIT_AS", 1 << 30, 0, "limits you"),
        ("RLIMIT_AS", 8 * MIB, 1, "blocks you"),
        ("RLIMIT_DATA", 64 * MIB, 0, "limits you"),
        ("RLIMIT_DATA", 1 * MIB, 1, "blocks you"),
    ],
)
def test_address_space(name: str, spare: int, status: int, verdict: str) -> None:
    key = {"RLIMIT_AS": "VmSize", "RLIMIT_DATA": "VmData"}[name]
    seen = see(
        f"""
        cli.main(["doctor"])  # what it imports and keeps is there already
        used = int(open("/proc/self/status").read().partition("{key}:")[2].split()[0]) << 10
        _, hard = resource.getrlimit(resource.{name})
        resource.setrlimit(resource.{name}, (used + {spare}, hard))
        """
    )
    assert (seen.status, seen[name]["verdict"]) == (status, verdict)
    assert seen.line(name).startswith("ulimit -")  # the hard limit allows it


def test_no_more_mappings(tmp_path: Path) -> None:
    as_root()
    seen = see(
        """
        kernel.own_mounts()
        maps = sum(1 for _ in open("/proc/self/maps"))
        kernel.lay_over("/proc/sys/vm/max_map_count", f"{maps + 5}\\n")
        """
    )
    assert (seen.status, seen["vm.max_map_count"]["verdict"]) == (1, "blocks you")


def test_cgroup_v2_up_to_the_root(tmp_path: Path) -> None:
    """Where the controllers are in v1 this cannot be had for real: the files are laid beneath the child."""
    as_root()
    box = tmp_path / "my box"
    app = box / "app"
    app.mkdir(parents=True)
    for folder, limit, high, usage in ((app, 3000, 900, 600), (box, 700, None, 650)):
        for name, mib in (("max", limit), ("high", high), ("current", usage)):
            (folder / f"memory.{name}").write_text("max\n" if mib is None else f"{mib * MIB}\n")
        (folder / "memory.stat").write_text(f"anon 1\nfile 7\ninactive_file {100 * MIB}\nactive_file {100 * MIB}\n")
        (folder / "cpu.max").write_text("max 100000\n" if folder == app else "50000 100000\n")
        (folder / "hugetlb.2MB.max").write_text("max\n" if folder == app else f"{4 * MIB}\n")
        (folder / "hugetlb.2MB.current").write_text(f"{2 * MIB}\n")
    escaped = str(tmp_path).replace(" ", r"\040")
    seen = see(
        f"""
        kernel.own_mounts()
        kernel.lay_over(f"/proc/{{os.getpid()}}/cgroup", "9:name=systemd:/\\n0::/my box/app\\n")
        kernel.lay_over(f"/proc/{{os.getpid()}}/mountinfo", "30 23 0:26 / {escaped} rw,nosuid - cgroup2 cgroup2 rw\\n")
        """,
        use="realtime",
    )
    assert seen["memory cgroup"]["value"] == "250 MiB left of 700 MiB"
    assert f"({box}/memory.max)" in seen["memory cgroup"]["reason"]
    assert seen["memory.high"]["value"] == "500 MiB left of 900 MiB"
    assert seen["cpu cgroup"]["value"] == "0.5 CPUs (50000 of 100000 µs)"
    assert seen["cpu cgroup"]["verdict"] == "limits you"
    if machine.POOL.is_dir():
        assert seen["hugetlb cgroup 2 MiB"]["value"] == "2 MiB left of 4 MiB"


# Pages.


def test_a_pool_of_huge_pages() -> None:
    before = machine.free_huge_pages()
    with machine.huge_pages(4):
        seen = see(use="numpy")
    found = seen["hugetlb 2 MiB"]
    assert found["verdict"] == "good"
    match = re.match(r"(\d+) free of (\d+)", found["value"])
    assert match and int(match[1]) >= before + 4
    assert found["reason"].startswith("pages='2MiB'")


def test_the_way_to_an_empty_pool() -> None:
    if not machine.POOL.is_dir() or machine.free_huge_pages():
        pytest.skip("the pool of 2 MiB pages is not empty, or not there")
    assert seen_line(see(), "hugetlb 2 MiB") == ("information", "sysctl -w vm.nr_hugepages=512")


def seen_line(seen: Seen, name: str) -> tuple[str, str]:
    return seen[name]["verdict"], seen.line(name)


def test_a_hugetlb_cgroup(tmp_path: Path) -> None:
    with machine.hugetlb_limit(2 * MIB, machine.pool(4))(tmp_path) as place:
        seen = see(preexec=place.enter)
    assert seen["hugetlb cgroup 2 MiB"]["value"] == "2 MiB left of 2 MiB"
    assert seen["hugetlb cgroup 2 MiB"]["verdict"] == "limits you"


def test_a_process_that_is_to_have_no_huge_pages() -> None:
    setup = "kernel.check(libc.prctl(41, 1, 0, 0, 0), 'PR_SET_THP_DISABLE')"
    seen = see(setup, use="numpy")
    assert seen["PR_SET_THP_DISABLE"]["verdict"] == "limits you"
    # Its line, run in that very process.
    line = seen.line("PR_SET_THP_DISABLE")
    after = see(f"{setup}\nimport ctypes\n{line}", use="numpy")
    assert "PR_SET_THP_DISABLE" not in {finding["name"] for finding in after.whole["findings"]}


def test_transparent_huge_pages_are_off() -> None:
    as_root()
    setup = """
    kernel.own_mounts()
    thp = "/sys/kernel/mm/transparent_hugepage"
    if not os.path.isdir(thp):
        kernel.cannot("no transparent huge pages in this kernel")
    kernel.lay_over(f"{thp}/enabled", "always madvise [never]\\n")
    """
    seen = see(setup, use="numpy")
    assert seen_line(seen, "THP") == ("limits you", "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled")
    assert see(setup, use="sharing")["THP"]["verdict"] == "information"


# The kernel.


def test_a_kernel_without_populate() -> None:
    seen = see("kernel.without_populate()")
    assert (seen.status, seen["MADV_POPULATE_WRITE"]["verdict"]) == (0, "limits you")
    release = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
    assert ("seccomp" in seen["MADV_POPULATE_WRITE"]["reason"]) == (release >= (5, 14))


@pytest.mark.parametrize(
    ("call", "err", "name", "use", "status"),
    [
        ("memfd_create", 38, "memfd_create", "sharing", 1),
        ("memfd_create", 38, "memfd_create", "numpy", 0),
        ("memfd_secret", 38, "memfd_secret", "sharing", 0),
        ("perf_event_open", 13, "perf_event_open", "realtime", 0),
    ],
)
def test_calls_that_are_refused(call: str, err: int, name: str, use: str, status: int) -> None:
    seen = see(f"kernel.answer({err}, {call!r})", use=use)
    assert seen[name]["value"].startswith("no")
    assert seen[name]["verdict"] == {"memfd_secret": "information", "perf_event_open": "limits you"}.get(
        call, "blocks you" if status else "information"
    )
    if os.geteuid() == 0:
        assert seen.status == status


def test_features_that_are_not_there() -> None:
    numbers = {"MADV_DONTNEED_LOCKED": 24, "MADV_GUARD_INSTALL": 102}
    seen = see(f"kernel.answer(22, 'madvise', arg=2, values={tuple(numbers.values())})")
    assert all(seen[name]["value"].startswith("no") for name in numbers)


# Sharing.


def test_a_small_dev_shm() -> None:
    as_root()
    setup = "kernel.own_mounts(); kernel.mount_tmpfs('/dev/shm', 'size=64M')"
    seen = see(setup, use="sharing")
    assert (seen.status, seen["/dev/shm"]["verdict"]) == (0, "limits you")
    assert seen["/dev/shm"]["value"] == "64 MiB free of 64 MiB"
    assert re.search(r"--shm-size=\d+g$|remount,size=\d+G /dev/shm$|medium: Memory", seen.line("/dev/shm"))
    assert see(setup, use="numpy")["/dev/shm"]["verdict"] == "information"


def test_no_dev_shm() -> None:
    as_root()
    seen = see("kernel.own_mounts()\nwhile os.path.ismount('/dev/shm'): kernel.check(libc.umount2(b'/dev/shm', 2), '')")
    assert seen["/dev/shm"]["value"] == "no: no file system is mounted there"


def test_files_may_not_be_long() -> None:
    setup = "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))"
    # What the child prints goes to a pipe, which the limit does not count.
    seen = see(setup, use="sharing")
    assert (seen.status, seen["RLIMIT_FSIZE"]["verdict"]) == (1, "blocks you")
    assert see(setup, use="numpy").status == 0


# Scheduling.


def test_a_cpu_cgroup_with_a_quota() -> None:
    with machine.cpu_cgroup() as group:
        (group / "cpu.cfs_quota_us").write_text("50000")
        enter = lambda: (group / "cgroup.procs").write_text(str(os.getpid()))  # noqa: E731
        fifo = "print(libc.sched_setscheduler(0, 1, (1).to_bytes(4, sys.byteorder)))"
        seen = see(fifo, use="realtime", preexec=enter)
        # Where real-time threads are counted by cgroup, a new one has no time for them, whatever the capabilities.
        if (group / "cpu.rt_runtime_us").exists():
            assert (seen.said, seen["SCHED_FIFO"]["value"]) == ("-1", "no")
            assert seen.line("SCHED_FIFO") == f"echo 950000 > {group}/cpu.rt_runtime_us"
        assert seen["cpu cgroup"]["verdict"] == "limits you"
        assert seen["cpu cgroup"]["value"].startswith("0.5 CPUs")
        assert f"{group}/cpu.cfs_quota_us" in seen["cpu cgroup"]["reason"]


def test_sched_fifo_is_what_the_kernel_answers() -> None:
    as_root()
    setup = """
    kernel.drop_capabilities(23)
    resource.setrlimit(resource.RLIMIT_RTPRIO, (0, 0))
    print(libc.sched_setscheduler(0, 1, (1).to_bytes(4, sys.byteorder)))
    """
    seen = see(setup, use="realtime")
    assert (seen.said, seen["SCHED_FIFO"]["value"], seen["SCHED_FIFO"]["verdict"]) == ("-1", "no", "limits you")
    assert re.search("rtprio|SYS_NICE|RTPRIO", seen.line("SCHED_FIFO"))


# Where it is: the line that is right there.

WITHOUT_LOCK = "resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536)); kernel.drop_capabilities(14, 24)\n"


@pytest.mark.parametrize(
    ("more", "where", "line"),
    [
        ("", "login", "* - memlock unlimited"),
        (
            "os.environ['KUBERNETES_SERVICE_HOST'] = '10.0.0.1'",
            "kubernetes",
            "securityContext: {capabilities: {add: [IPC_LOCK]}}",
        ),
        ("os.environ['container'] = 'podman'", "podman", "podman run --ulimit memlock=-1 --cap-add IPC_LOCK"),
        ("open('/.dockerenv', 'w').close()", "docker", "docker run --ulimit memlock=-1 --cap-add IPC_LOCK"),
        (
            f"kernel.lay_over(f'/proc/{{os.getpid()}}/cgroup', '1:name=systemd:/docker/{'0a' * 32}\\n0::/\\n')",
            "docker",
            "docker run --ulimit memlock=-1 --cap-add IPC_LOCK",
        ),
        (
            "kernel.lay_over(f'/proc/{os.getpid()}/cgroup', '0::/system.slice/loop.service\\n')",
            "systemd: loop.service",
            "LimitMEMLOCK=infinity",
        ),
    ],
)
def test_the_line_fits_the_place(more: str, where: str, line: str) -> None:
    as_root()
    seen = see(NO_SIGN + more + "\n" + WITHOUT_LOCK, use="realtime")
    assert seen["runs in"]["value"] == where
    assert seen.line("RLIMIT_MEMLOCK") == line
    assert ("on the host" in seen["vm.compact_unevictable_allowed"].get("mend", {}).get("where", "")) == (
        where not in ("login", "systemd: loop.service")
    )


def test_a_user_namespace_is_no_way_to_lock_memory() -> None:
    seen = see(
        """
        if libc.unshare(0x10000000):
            kernel.cannot("no user namespace")
        open("/proc/self/uid_map", "w").write("0 0 1")
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
        print(libc.mlockall(1))
        """,
        use="realtime",
    )
    assert (seen.said, seen["RLIMIT_MEMLOCK"]["verdict"]) == ("-1", "blocks you")
    assert seen["user namespace"]["verdict"] == "limits you"
    assert "cap-add" not in seen.line("RLIMIT_MEMLOCK")


# What it does not do.


def test_nothing_stays_behind(child: Callable[..., str]) -> None:
    child(
        """
        import os
        from arena import doctor
        def state():
            status = open("/proc/self/status").read()
            locked = status.partition("VmLck:")[2].split()[0]
            return sorted(os.listdir("/proc/self/fd")), locked, open("/proc/self/maps").read().count("\\n")
        for use in (None, "realtime"):
            doctor.examine(use)
        before = state()
        for _ in range(5):
            doctor.examine("realtime")
        after = state()
        assert before[:2] == after[:2], (before, after)
        assert after[2] <= before[2] + 1, (before, after)    # malloc's own
        """
    )


def test_without_rights() -> None:
    as_root()
    seen = see("cli.main(['doctor']); os.setgroups([]); os.setgid(65534); os.setuid(65534)")
    assert seen.status == 0


def test_without_proc_and_sys() -> None:
    as_root()
    seen = see(
        """
        kernel.own_mounts()
        cli.main(["doctor"])
        for at in ("/proc", "/sys"):
            kernel.mount_tmpfs(at, "size=1M")
        """
    )
    assert seen.status == 0
    unread = [finding for finding in seen.whole["findings"] if finding["value"] == "cannot be read"]
    assert {"MemAvailable", "vm.overcommit_memory", "swap", "THP"} <= {finding["name"] for finding in unread}
    assert all(finding["verdict"] == "information" for finding in unread)
    assert all("No such file" in finding["reason"] for finding in unread), unread


def test_without_descriptors() -> None:
    seen = see("cli.main(['doctor'])\nresource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))")
    assert "Too many open files" in seen["MemAvailable"]["reason"]
    assert seen.status == 0


# The command and its answers.


def test_the_schema(command: Callable[..., tuple[int, str, str]]) -> None:
    for use in (None, *USES):
        status, out, err = command("doctor", "--json", *(["--for", use] if use else []))
        whole = json.loads(out)
        assert err == "" and set(whole) == {"schema", "use", "blocked", "findings"}
        assert (whole["schema"], whole["use"], whole["blocked"]) == (1, use, bool(status))
        for finding in whole["findings"]:
            assert set(finding) == {"topic", "name", "value", "verdict", "reason", "mend"}
            assert all(isinstance(finding[key], str) and finding[key] for key in finding if key != "mend"), finding
            assert finding["verdict"] in VERDICTS and finding["reason"].endswith(".")
            if finding["mend"] is not None:
                assert set(finding["mend"]) == {"how", "line", "where"} and all(finding["mend"].values())
        names = [finding["name"] for finding in whole["findings"]]
        assert len(set(names)) == len(names)


def test_the_worst_comes_first_and_then_what_matters_to_the_use() -> None:
    for use, first in ((None, "memory"), ("realtime", "locking"), ("numpy", "memory"), ("sharing", "sharing")):
        found = doctor.examine(use)  # type: ignore[arg-type]
        rank = [VERDICTS.index(finding.verdict) for finding in found]
        assert rank == sorted(rank)
        good = [finding.topic for finding in found if finding.verdict == "good"]
        assert good[0] == first
        assert len(set(good)) == sum(a != b for a, b in zip(good, ["", *good], strict=False)), good


def test_a_pipe_gets_plain_text(command: Callable[..., tuple[int, str, str]]) -> None:
    status, out, err = command("doctor", "--for", "numpy")
    assert err == "" and "\033" not in out and "\r" not in out
    assert re.match(r"For numpy, blocks you: \d+, limits you: \d+, good: \d+\.\n", out)
    assert status == int("blocks you\n" in out)
    assert doctor.report("numpy").splitlines()[1:3] == out.splitlines()[1:3]
    narrow = [line for line in out.splitlines() if "→" not in line]
    assert max(map(len, narrow)) <= 100


def test_a_terminal_gets_bold_headings() -> None:
    script = f"import pty, sys; sys.exit(pty.spawn([{sys.executable!r}, '-m', 'arena', 'doctor']) >> 8)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    assert "\033[1mgood\033[0m" in done.stdout


def test_another_use_is_an_error(command: Callable[..., tuple[int, str, str]]) -> None:
    status, _, err = command("doctor", "--for", "games")
    assert status == 2 and "realtime" in err
    with pytest.raises(ValueError, match="realtime, numpy, sharing"):
        doctor.examine("games")  # type: ignore[arg-type]


def test_the_exit_status_is_that_something_blocks() -> None:
    found = doctor.examine()
    assert not blocked(found), [finding for finding in found if finding.verdict == "blocks you"]
