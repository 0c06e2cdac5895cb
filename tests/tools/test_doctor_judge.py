"""What the doctor makes of facts: tables of machines that are not here. And is each line that mends what it claims?"""

from __future__ import annotations

import errno
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from arena import advice
from arena.advice import Mend
from arena.doctor.cgroups import CpuGroup, HugetlbGroup, MemoryGroup
from arena.doctor.facts import CAPABILITIES, Facts, Huge, Limit, Machine, Node, Pool, Process, Scheduling, Shm
from arena.doctor.files import cpus_of, fields_of
from arena.doctor.finding import USES, VERDICTS, Finding, Use
from arena.doctor.judge import blocked, judge
from arena.doctor.place import Place, Signs, place_of
from arena.doctor.render import as_json, as_text

pytestmark = pytest.mark.slow  # the same on every CPython

MIB, GIB = 1 << 20, 1 << 30
EVERY: tuple[Use | None, ...] = (None, *USES)
V1 = "/sys/fs/cgroup/memory/box/memory.limit_in_bytes"
V2 = "/sys/fs/cgroup/box/memory.max"

PERFECT = Facts(
    answers={
        **dict.fromkeys(("populate", "dontneed_locked", "pagemap_scan", "vma_names", "thp", "thp_shared"), 1),
        **dict.fromkeys(("guard", "memfd", "memfd_secret", "mlock", "mbind", "perf_event_open", "thp_disabled"), 0),
        "lock_future": 0,
    },
    machine=Machine(
        release="6.18.1",
        version="#1 SMP PREEMPT_RT",
        total=64 * GIB,
        available=60 * GIB,
        overcommit=0,
        commit_limit=32 * GIB,
        committed=GIB,
        swap_total=0,
        swap_free=0,
        swappiness=60,
        max_map_count=65530,
        numa_balancing=0,
        compact_unevictable=0,
        nodes=(Node(0, 64 * GIB, 60 * GIB),),
    ),
    process=Process(size=24 * MIB, locked=0, data=8 * MIB, mappings=200, effective=0, bounding=(1 << 41) - 1),
    huge=Huge("madvise", "madvise", "advise", {2 * MIB: "inherit"}, (Pool(2 * MIB, 512, 512, 0, 0),)),
    scheduling=Scheduling(True, (0, 1, 2, 3), (0, 1, 2, 3), (3,), 950000, 1000000, 2),
    shm=Shm(32 * GIB, 32 * GIB),
)
"""A machine on which nothing limits any use. The process has no capability, and no limits."""


def machine(**changes: Any) -> Facts:
    return replace(PERFECT, machine=replace(PERFECT.machine, **changes))


def process(**changes: Any) -> Facts:
    return replace(PERFECT, process=replace(PERFECT.process, **changes))


def limits(facts: Facts = PERFECT, **soft: int) -> Facts:
    made = {name: Limit(n, n) for name, n in soft.items()}
    return replace(facts, process=replace(facts.process, limits={**facts.process.limits, **made}))


def answers(**changes: int) -> Facts:
    return replace(PERFECT, answers={**PERFECT.answers, **changes})


def at(place: Place, facts: Facts) -> Facts:
    return replace(facts, place=place)


def named(findings: list[Finding], name: str) -> Finding:
    (found,) = (finding for finding in findings if finding.name == name)
    return found


def test_nothing_is_in_the_way_of_a_perfect_machine() -> None:
    for use in EVERY:
        bad = [finding for finding in judge(PERFECT, use) if finding.verdict in ("blocks you", "limits you")]
        assert not bad and not blocked(judge(PERFECT, use))


# Facts, the finding's name, and its verdict for the core, realtime, numpy and sharing: (b)locks, (l)imits, (g)ood,
# (i)nformation.
TABLE: list[tuple[str, Facts, str, str]] = [
    ("64 KiB may be locked", limits(RLIMIT_MEMLOCK=64 << 10), "RLIMIT_MEMLOCK", "ibii"),
    ("less than the process may be locked", limits(RLIMIT_MEMLOCK=8 * MIB), "RLIMIT_MEMLOCK", "ibii"),
    ("the process may be locked, and more", limits(RLIMIT_MEMLOCK=64 * MIB), "RLIMIT_MEMLOCK", "ilii"),
    (
        "64 KiB, and CAP_IPC_LOCK",
        limits(process(effective=1 << 14), RLIMIT_MEMLOCK=64 << 10),
        "RLIMIT_MEMLOCK",
        "gggg",
    ),
    (
        "CAP_IPC_LOCK of a user namespace",
        at(Place("podman", user_namespace=True), limits(process(effective=1 << 14), RLIMIT_MEMLOCK=64 << 10)),
        "RLIMIT_MEMLOCK",
        "ibii",
    ),
    ("the limit is used up", limits(process(locked=64 * MIB), RLIMIT_MEMLOCK=64 * MIB), "RLIMIT_MEMLOCK", "ibii"),
    ("mlock is filtered", answers(mlock=-errno.EPERM), "mlock", "ibii"),
    ("MCL_FUTURE, no limit", answers(lock_future=1), "mlockall", "gggg"),
    ("MCL_FUTURE, a limit", limits(answers(lock_future=1), RLIMIT_MEMLOCK=GIB), "mlockall", "llll"),
    ("MCL_FUTURE, no more", limits(answers(lock_future=2), RLIMIT_MEMLOCK=MIB), "mlockall", "bbbb"),
    ("MCL_FUTURE, not a page more", limits(answers(lock_future=3), RLIMIT_MEMLOCK=MIB), "mlockall", "bbbb"),
    ("MCL_FUTURE cannot be told", answers(lock_future=-errno.EPERM), "mlockall", "iiii"),
    ("locked pages are moved", machine(compact_unevictable=1), "vm.compact_unevictable_allowed", "ilii"),
    ("the machine is nearly full", machine(available=GIB), "MemAvailable", "llll"),
    ("the machine is full", machine(available=MIB), "MemAvailable", "bbbb"),
    (
        "a cgroup's limit",
        replace(PERFECT, memory_groups=(MemoryGroup(V2, GIB, GIB, GIB // 2),)),
        "memory cgroup",
        "llll",
    ),
    (
        "a cgroup that is full",
        replace(PERFECT, memory_groups=(MemoryGroup(V1, GIB, GIB, MIB),)),
        "memory cgroup",
        "bbbb",
    ),
    (
        "a cgroup that is wider than the machine",
        replace(PERFECT, memory_groups=(MemoryGroup(V1, 128 * GIB, GIB, MIB),)),
        "memory cgroup",
        "gggg",
    ),
    (
        "the tightest of three",
        replace(PERFECT, memory_groups=tuple(MemoryGroup(V2, n * GIB, GIB, 0) for n in (3, 1, 2))),
        "memory cgroup",
        "bbbb",
    ),
    ("a cgroup that cannot be seen", replace(PERFECT, unread={"memory cgroup": "no mount"}), "memory cgroup", "llll"),
    (
        "memory.high",
        replace(PERFECT, memory_groups=(MemoryGroup("/sys/fs/cgroup/memory.high", GIB, MIB, 0),)),
        "memory.high",
        "llll",
    ),
    ("overcommit mode 1", machine(overcommit=1), "vm.overcommit_memory", "gggg"),
    ("overcommit mode 2", machine(overcommit=2), "vm.overcommit_memory", "llll"),
    ("no charge is left", machine(overcommit=2, committed=32 * GIB), "vm.overcommit_memory", "bbbb"),
    ("RLIMIT_AS", limits(RLIMIT_AS=4 * GIB), "RLIMIT_AS", "llll"),
    ("RLIMIT_AS is reached", limits(RLIMIT_AS=30 * MIB), "RLIMIT_AS", "bbbb"),
    ("RLIMIT_DATA", limits(RLIMIT_DATA=4 * GIB), "RLIMIT_DATA", "llll"),
    ("RLIMIT_DATA is reached", limits(RLIMIT_DATA=9 * MIB), "RLIMIT_DATA", "bbbb"),
    ("many mappings", process(mappings=60000), "vm.max_map_count", "llll"),
    ("too many mappings", process(mappings=65530), "vm.max_map_count", "bbbb"),
    (
        "swap, and memory that may be locked",
        machine(swap_total=GIB, swap_free=GIB, swaps=("/dev/sda2",)),
        "swap",
        "iiii",
    ),
    (
        "swap, and memory that may not",
        limits(machine(swap_total=GIB, swap_free=0, swaps=("/dev/zram0",)), RLIMIT_MEMLOCK=GIB),
        "swap",
        "ilii",
    ),
    (
        "NUMA balancing",
        machine(numa_balancing=1, nodes=(Node(0, GIB, GIB), Node(1, GIB, None))),
        "kernel.numa_balancing",
        "ilii",
    ),
    (
        "mbind is filtered",
        replace(
            machine(nodes=(Node(0, GIB, GIB), Node(1, GIB, GIB))), answers={**PERFECT.answers, "mbind": -errno.EPERM}
        ),
        "mbind",
        "llli",
    ),
    ("an old kernel", replace(answers(populate=0), machine=Machine(release="5.10.0")), "MADV_POPULATE_WRITE", "llll"),
    ("DONTNEED_LOCKED", answers(dontneed_locked=0), "MADV_DONTNEED_LOCKED", "ilii"),
    ("PAGEMAP_SCAN", answers(pagemap_scan=0), "PAGEMAP_SCAN", "iiii"),
    ("no guard pages", answers(guard=-errno.EINVAL), "MADV_GUARD_INSTALL", "iiii"),
    ("no memfd", answers(memfd=-errno.ENOSYS), "memfd_create", "iiib"),
    ("no huge pages", replace(answers(thp=0), huge=Huge("never", "madvise", "never")), "THP", "lili"),
    ("huge pages for all", replace(PERFECT, huge=Huge("always", "always", "never")), "THP", "glgg"),
    ("not for this process", answers(thp_disabled=1), "PR_SET_THP_DISABLE", "lili"),
    ("where it is advised", answers(thp_disabled=3), "PR_SET_THP_DISABLE", "gggg"),
    ("no shared huge pages", answers(thp_shared=0), "THP of shared memory", "iiil"),
    (
        "a pool that is taken",
        replace(PERFECT, huge=Huge("madvise", pools=(Pool(2 * MIB, 8, 3, 3, 0),))),
        "hugetlb 2 MiB",
        "llll",
    ),
    ("no pool", replace(PERFECT, huge=Huge("madvise", pools=(Pool(GIB, 0, 0, 0, 0),))), "hugetlb 1 GiB", "iiii"),
    (
        "a pool that grows",
        replace(PERFECT, huge=Huge("madvise", pools=(Pool(2 * MIB, 0, 0, 0, 8),))),
        "hugetlb 2 MiB",
        "gggg",
    ),
    (
        "less than the pool has",
        replace(PERFECT, hugetlb_groups=(HugetlbGroup("/sys/fs/cgroup/hugetlb.2MB.max", 2 * MIB, 4 * MIB, 2 * MIB),)),
        "hugetlb cgroup 2 MiB",
        "llll",
    ),
    ("no priority", limits(RLIMIT_RTPRIO=0), "SCHED_FIFO", "ilii"),
    ("some priority", limits(RLIMIT_RTPRIO=50), "SCHED_FIFO", "gggg"),
    ("CAP_SYS_NICE", limits(process(effective=1 << 23), RLIMIT_RTPRIO=0), "SCHED_FIFO", "gggg"),
    (
        "no time for real-time threads",
        replace(PERFECT, cpu_groups=(CpuGroup("/sys/fs/cgroup/cpu/x/cpu.cfs_quota_us", None, 100000, 0),)),
        "SCHED_FIFO",
        "ilii",
    ),
    (
        "a quota",
        replace(PERFECT, cpu_groups=(CpuGroup("/sys/fs/cgroup/x/cpu.max", 20000, 100000),)),
        "cpu cgroup",
        "ilii",
    ),
    (
        "an ordinary kernel",
        machine(version="#1 SMP PREEMPT_DYNAMIC"),
        "PREEMPT_RT",
        "gggg",  # realtime_kernel says otherwise: /sys/kernel/realtime
    ),
    (
        "not a real-time kernel",
        replace(PERFECT, scheduling=replace(PERFECT.scheduling, realtime_kernel=False)),
        "PREEMPT_RT",
        "iiii",
    ),
    ("perf is forbidden", answers(perf_event_open=-errno.EACCES), "perf_event_open", "ilii"),
    ("a container's /dev/shm", replace(PERFECT, shm=Shm(64 * MIB, 64 * MIB)), "/dev/shm", "iiil"),
    ("a full /dev/shm", replace(PERFECT, shm=Shm(32 * GIB, 0)), "/dev/shm", "iiil"),
    ("no /dev/shm", replace(PERFECT, shm=Shm(), unread={"/dev/shm": "not mounted"}), "/dev/shm", "iiil"),
    ("short files", limits(RLIMIT_FSIZE=GIB), "RLIMIT_FSIZE", "iiil"),
    ("no files at all", limits(RLIMIT_FSIZE=0), "RLIMIT_FSIZE", "iiib"),
    ("gVisor", at(Place("docker", sandbox="gVisor"), answers(populate=0)), "sandbox", "lbll"),
    ("WSL 1", at(Place(sandbox="WSL1"), PERFECT), "sandbox", "lbll"),
    ("WSL 2", at(Place(sandbox="WSL2"), PERFECT), "sandbox", "ilii"),
]

PLACES = [
    Place("login"),
    Place("systemd", unit="loop.service"),
    Place("docker"),
    Place("podman"),
    Place("podman", user_namespace=True),
    Place("kubernetes"),
    Place("lxc"),
    Place("container"),
]


@pytest.mark.parametrize(("facts", "name", "verdicts"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_the_verdict_for_each_use(facts: Facts, name: str, verdicts: str) -> None:
    for use, letter in zip(EVERY, verdicts, strict=True):
        findings = judge(facts, use)
        assert named(findings, name).verdict[0] == letter, use
        assert blocked(findings) == any(finding.verdict == "blocks you" for finding in findings)
        assert [VERDICTS.index(finding.verdict) for finding in findings] == sorted(
            VERDICTS.index(finding.verdict) for finding in findings
        )
        as_text(findings, use, bold=True), json.loads(as_json(findings, use))


def test_nothing_that_is_not_known_is_a_verdict() -> None:
    for use in EVERY:
        for finding in judge(Facts(unread={"/proc/meminfo": "Permission denied"}), use):
            if finding.value == "cannot be read":
                assert finding.verdict == "information"
        assert "Permission denied" in named(judge(Facts(unread={"/proc/meminfo": "Permission denied"})), "swap").reason


def test_other_findings_stay_as_they_are() -> None:
    before = {finding.name: finding.verdict for finding in judge(PERFECT, "realtime")}
    after = {finding.name: finding.verdict for finding in judge(limits(RLIMIT_MEMLOCK=65536), "realtime")}
    assert {name for name in before if before[name] != after[name]} == {"RLIMIT_MEMLOCK"}


# Which line.


@pytest.mark.parametrize(
    ("place", "hard", "line"),
    [
        (Place("login"), None, "ulimit -l unlimited"),
        (Place("login"), 65536, "* - memlock unlimited"),
        (Place("systemd", unit="loop.service"), 65536, "LimitMEMLOCK=infinity"),
        (Place("docker"), 65536, "docker run --ulimit memlock=-1 --cap-add IPC_LOCK"),
        (Place("podman"), 65536, "podman run --ulimit memlock=-1 --cap-add IPC_LOCK"),
        (Place("podman", user_namespace=True), 65536, "podman run --ulimit memlock=-1"),
        (Place("kubernetes"), 65536, "securityContext: {capabilities: {add: [IPC_LOCK]}}"),
        (Place("lxc"), 65536, "lxc.prlimit.memlock = unlimited"),
    ],
)
def test_the_line_for_locked_memory(place: Place, hard: int | None, line: str) -> None:
    assert advice.lift_memlock(place, hard).line == line


def test_what_a_process_may_raise_itself_needs_nobody_else() -> None:
    capable = limits(process(effective=1 << CAPABILITIES["CAP_SYS_RESOURCE"]), RLIMIT_AS=GIB)
    assert named(judge(at(Place("docker"), capable)), "RLIMIT_AS").mend == Mend(
        "shell", "ulimit -v unlimited", "in the shell that starts it, which may"
    )


# Where it is.

ID = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("signs", "kind", "unit"),
    [
        (Signs(), "login", ""),
        (Signs(cgroups="0::/user.slice/user-1000.slice/session-3.scope\n"), "login", ""),
        (Signs(files=frozenset({"/.dockerenv"}), cgroups="0::/\n"), "docker", ""),
        (
            Signs(files=frozenset({"/.dockerenv"}), environment={"KUBERNETES_SERVICE_HOST": "10.0.0.1"}),
            "kubernetes",
            "",
        ),
        (Signs(files=frozenset({"/run/.containerenv"})), "podman", ""),
        (Signs(cgroups=f"4:memory:/docker/{ID}\n"), "docker", ""),
        (Signs(cgroups=f"0::/system.slice/docker-{ID}.scope\n"), "docker", ""),
        (Signs(cgroups=f"0::/machine.slice/libpod-{ID}.scope\n"), "podman", ""),
        (Signs(cgroups=f"4:memory:/kubepods/burstable/pod1/{ID}\n"), "kubernetes", ""),
        (Signs(cgroups="0::/lxc.payload.box/init.scope\n"), "lxc", ""),
        (Signs(environment={"container": "lxc"}), "lxc", ""),
        (Signs(environment={"container": "oci"}), "container", ""),
        (Signs(manager="systemd-nspawn"), "container", ""),
        (Signs(cgroups="0::/system.slice/docker.service\n"), "systemd", "docker.service"),
        (Signs(cgroups="0::/system.slice/box.service/inner\n"), "systemd", "box.service"),
        (Signs(cgroups="1:name=systemd:/system.slice/loop.service\n0::/\n"), "systemd", "loop.service"),
        (
            Signs(cgroups="0::/user.slice/user-1000.slice/user@1000.service/app.slice/loop.service\n"),
            "systemd",
            "user@.service",
        ),
    ],
)
def test_where_the_signs_say_it_is(signs: Signs, kind: str, unit: str) -> None:
    place = place_of(signs)
    assert (place.kind, place.unit) == (kind, unit)
    assert place.contained == (kind not in ("login", "systemd"))


@pytest.mark.parametrize(
    ("version", "sandbox"),
    [
        ("Linux version 4.4.0 #1 SMP Sun Jan 10 15:06:54 PST 2016", "gVisor"),
        ("Linux version 4.4.0-19041-Microsoft (Microsoft@Microsoft.com) (gcc version 5.4.0)", "WSL1"),
        ("Linux version 5.15.153.1-microsoft-standard-WSL2 (root@65c757a075e2)", "WSL2"),
        ("Linux version 4.4.0-210-generic (buildd@lgw01) #242-Ubuntu SMP Fri Apr 16", ""),
        ("Linux version 6.1.0-18-amd64 (debian-kernel@lists.debian.org) (gcc-12)", ""),
    ],
)
def test_kernels_that_are_played(version: str, sandbox: str) -> None:
    assert place_of(Signs(version=version)).sandbox == sandbox


def test_a_user_namespace_is_seen_by_its_map() -> None:
    assert not place_of(Signs(uid_map="         0          0 4294967295")).user_namespace
    assert not place_of(Signs()).user_namespace
    assert place_of(Signs(uid_map="0 1000 1\n1 100000 65536")).user_namespace


def test_the_forms_of_the_kernels_files() -> None:
    assert cpus_of("0-2,8,10-11\n") == (0, 1, 2, 8, 10, 11)
    assert cpus_of("") == cpus_of(None) == cpus_of("\n") == ()
    assert fields_of("MemTotal:  1 kB\nactive_file 5\n\nempty:\n") == {"MemTotal": "1 kB", "active_file": "5"}


# Each line is what it claims to be.


def every_mend() -> Iterator[Mend]:
    seen = set()
    for place in PLACES:
        for _, facts, _, _ in TABLE:
            for use in EVERY:
                for finding in judge(at(place, facts), use):
                    if finding.mend is not None and finding.mend not in seen:
                        seen.add(finding.mend)
                        yield finding.mend
    for line in (
        advice.allow_perf(PLACES[0], 3),
        advice.allow_perf(PLACES[1], 2),
        advice.rlimit(PLACES[5], "RLIMIT_AS", 1),
    ):
        assert line is not None
        yield line


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def check_sysctl(line: str) -> None:
    name, _, value = line.removeprefix("sysctl -w ").partition("=")
    assert re.fullmatch(r"-?\d+", value), line
    path = Path("/proc/sys", *name.split("."))
    # A kernel for one node, or without compaction, has none of these, and is not told to set them.
    assert path.exists() or name in ("kernel.numa_balancing", "vm.compact_unevictable_allowed"), line


def check_shell(line: str) -> None:
    assert run("bash", "-n", "-c", line).returncode == 0, line
    if line.startswith("ulimit"):
        # Refused it may be, but not for its form.
        assert not re.search("invalid|usage", run("bash", "-c", line).stderr), line
    elif line.startswith("echo"):
        match = re.fullmatch(r"echo \S+ > (/sys/\S+)", line)
        assert match, line
        if not match[1].startswith("/sys/fs/cgroup"):
            assert Path(match[1]).exists() or not Path("/sys/kernel/mm/transparent_hugepage").exists(), line
    else:
        assert re.match(r"(mount -o remount,size=\d+G /dev/shm|prlimit --pid PID --\w+=unlimited)$", line), line
        assert shutil.which(line.split()[0]), line


def check_docker(line: str) -> None:
    assert re.match(r"(docker|podman) run --", line), line
    for capability in re.findall(r"--cap-add (\S+)", line):
        assert f"CAP_{capability}" in CAPABILITIES
    if shutil.which("docker"):
        # The client reads all of its options before it finds that there is no such daemon.
        options = line.split()[2:]
        said = run("docker", "-H", "unix:///nonexistent/socket", "run", *options, "image").stderr
        assert not re.search("unknown|invalid", said), said


def check_kubernetes(line: str) -> None:
    key, _, value = line.partition(": ")
    words = re.sub(r"[A-Za-z_][\w.]*|\d+[A-Z]\w*", lambda word: json.dumps(word[0]), value)
    spec = {key: json.loads(words)}
    assert set(spec) <= {"securityContext", "resources", "emptyDir"}, spec


def check_systemd(line: str) -> None:
    assert re.fullmatch(r"[A-Z]\w+=\S*", line), line
    if shutil.which("systemd-analyze"):
        with tempfile.TemporaryDirectory() as folder:
            unit = Path(folder, "arena-test.service")
            unit.write_text(f"[Service]\nExecStart=/bin/true\n{line}\n")
            said = run("systemd-analyze", "verify", str(unit)).stderr
        assert not re.search(rf"{re.escape(unit.name)}:\d+:", said), said


def check_limits_conf(line: str) -> None:
    assert re.fullmatch(r"\* - (memlock|rtprio|as|data|fsize) (unlimited|\d+)", line), line


def check_lxc(line: str) -> None:
    assert re.fullmatch(r"lxc\.prlimit\.(memlock|rtprio|as|data|fsize) = (unlimited|\d+)", line), line


def check_boot(line: str) -> None:
    names = {"isolcpus", "nohz_full", "rcu_nocbs", "hugepagesz", "hugepages", "preempt"}
    assert all(re.fullmatch(r"\w+=\w+", word) and word.partition("=")[0] in names for word in line.split()), line


def check_python(line: str) -> None:
    compile(line, "<mend>", "exec")


CHECKS: dict[str, Callable[[str], None]] = {
    "sysctl": check_sysctl,
    "shell": check_shell,
    "docker": check_docker,
    "podman": check_docker,
    "kubernetes": check_kubernetes,
    "systemd": check_systemd,
    "limits.conf": check_limits_conf,
    "lxc": check_lxc,
    "boot": check_boot,
    "python": check_python,
}


@pytest.mark.parametrize("how", list(CHECKS))
def test_each_line_is_what_it_claims_to_be(how: str) -> None:
    lines = {one.line for one in every_mend() if one.how == how}
    assert lines
    for line in lines:
        assert "\n" not in line and line == line.strip()
        CHECKS[how](line)
