"""python bench/patch2021: on this machine, with small sizes."""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from patch2021 import calls, claims, command, huge_pages, mappings, report, table
from patch2021.mappings import ARENA, MIB, TYPES, Machine, MappingType, NotHereError
from patch2021.table import Row, Table

from arena.bench.machine import machine as about_machine

pytestmark = [
    pytest.mark.slow,  # the same on every CPython
    pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc"))), reason="there is no C compiler"),
]

Bench = Callable[..., tuple[int, str, str]]

PRIVATE_4K = MappingType("private", "Anon 4 KiB")


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str]) -> Bench:
    """In this process: the exit status, and what it printed and complained of."""

    def run(*arguments: object) -> tuple[int, str, str]:
        try:
            status = command.main(["--runs", "1", "--size", "4MiB", *map(str, arguments)])
        except SystemExit as end:
            status = int(end.code or 0)
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


@pytest.fixture
def pool() -> Iterator[Path]:
    """The size of the huge page pool, which has to be the same afterwards."""
    if not huge_pages.SIZE.exists():
        pytest.skip("this kernel has no huge pages of 2 MiB")
    if not os.access(huge_pages.SIZE, os.W_OK) or os.geteuid() != 0:
        pytest.skip("huge pages can only be added as root")
    before = huge_pages.SIZE.read_text()
    yield huge_pages.SIZE
    assert eventually(lambda: huge_pages.SIZE.read_text() == before)


def eventually(what: Callable[[], bool], seconds: float = 5) -> bool:
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def mounts() -> str:
    return Path("/proc/self/mountinfo").read_text()


def made_up(ms: dict[str, float], kind: MappingType = PRIVATE_4K, size: int = 4 * MIB) -> Table:
    return Table(Row(size, kind, method, (value,)) for method, value in ms.items())


# --- the published figures --------------------------------------------------------------------------------------------


def test_the_published_table_is_whole() -> None:
    then = table.published()
    assert then.sizes == [2 * MIB, 4096 * MIB]
    for size in then.sizes:
        for kind in TYPES:
            methods = [method for method in kind.methods if method != ARENA]
            there = [method for method in methods if then.ms(size, kind, method) is not None]
            assert there == ([] if str(kind) == "private Anon 2 MiB" else methods)
    assert then.ratio(4096 * MIB, PRIVATE_4K, "POPULATE_WRITE") == pytest.approx(572.582 / 708.409)


def test_all_that_the_patch_says_holds_in_its_own_figures() -> None:
    for claim in claims.judge(table.published()):
        assert claim.verdict == claims.HOLDS, claim
        assert claim.cases


def test_a_size_is_held_against_the_published_one_that_is_like_it() -> None:
    then = table.published()
    assert (then.like(2 * MIB), then.like(4 * MIB), then.like(8192 * MIB)) == (2 * MIB, 4096 * MIB, 4096 * MIB)


# --- the claims -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("populate_write", "verdict", "speaks"),
    [
        (8.0, claims.HOLDS, "for"),
        (9.8, claims.FAILS, "neither"),
        (10.4, claims.FAILS, "neither"),
        (11.0, claims.FAILS, "against"),
    ],
)
def test_a_claim_needs_a_difference_beyond_noise(populate_write: float, verdict: str, speaks: str) -> None:
    here = made_up({"Write": 10.0, "Read/Write": 12.0, "POPULATE_WRITE": populate_write})
    (claim,) = [c for c in claims.judge(here) if c.sentence.startswith("Private: POPULATE_WRITE")]
    assert claim.verdict == verdict
    (case,) = claim.cases
    assert case.speaks == speaks
    assert case.value == pytest.approx(populate_write / 10)


def test_what_was_not_measured_says_nothing() -> None:
    verdicts = {claim.sentence: claim.verdict for claim in claims.judge(made_up({"Read": 4.0, "POPULATE_READ": 2.0}))}
    assert verdicts.pop("Private: POPULATE_READ is faster than reading") == claims.HOLDS
    assert set(verdicts.values()) == {claims.CANNOT_SAY}


def test_the_best_names_who_is_better() -> None:
    kind = MappingType("shared", "tmpfs")
    times = dict.fromkeys(kind.methods, 10.0) | {"FALLOCATE": 1.0, "POPULATE_READ": 7.0, ARENA: 2.0}
    here = made_up(times, kind)
    (claim,) = [c for c in claims.judge(here) if c.sentence.startswith("Shared, memory with a descriptor")]
    assert claim.verdict == claims.FAILS
    assert [case.note for case in claim.cases] == ["POPULATE_READ"]
    best = here.best(4 * MIB, kind)
    assert best is not None and best.method == "POPULATE_READ"


def test_one_mapping_against_it_outweighs_those_for_it() -> None:
    rows = []
    for backing, ms in (("Anon 4 KiB", 5.0), ("tmpfs", 12.0)):
        kind = MappingType("private", backing)
        rows += [Row(4 * MIB, kind, "Read", (10.0,)), Row(4 * MIB, kind, "POPULATE_READ", (ms,))]
    claim = claims.judge(Table(rows))[0]
    assert claim.verdict == claims.FAILS
    assert [case.speaks for case in claim.cases] == ["for", "against"]


# --- the table, made here ---------------------------------------------------------------------------------------------


def test_every_row_is_there_or_says_why_not(bench: Bench, tmp_path: Path) -> None:
    before = mounts()
    status, out, err = bench("--csv", tmp_path / "t.csv", "--json", tmp_path / "t.json")
    assert (status, err) == (0, "")
    assert mounts() == before
    head, _, rest = out.partition("\n\n")
    assert head.startswith(about_machine()["cpu"])
    assert max(map(len, rest.splitlines())) <= 100
    rows = list(csv.DictReader(io.StringIO((tmp_path / "t.csv").read_text())))
    wanted = [
        (size, kind.sharing, kind.backing, method) for size in ("2", "4") for kind in TYPES for method in kind.methods
    ]
    assert [(row["size_mib"], row["mapping"], row["backing"], row["method"]) for row in rows] == wanted
    for row in rows:
        assert bool(row["ms"]) != bool(row["missing"]), row
        if row["backing"] in ("Anon 4 KiB", "Memfd 4 KiB") and row["method"] != ARENA:
            assert float(row["ms"]) > 0
            assert 0.02 < float(row["ratio_to_write"]) < 20
    whole = json.loads((tmp_path / "t.json").read_text())
    assert [row["missing"] or "" for row in whole["rows"]] == [row["missing"] for row in rows]
    assert all(len(row["samples_ms"]) == (0 if row["missing"] else 1) for row in whole["rows"])
    assert {claim["verdict"] for claim in whole["claims"]} <= {claims.HOLDS, claims.FAILS, claims.CANNOT_SAY}
    assert set(whole["best"]) == {str(kind) for kind in TYPES}
    assert whole["machine"]["kernel"] == os.uname().release


def test_the_published_columns_are_those_of_the_published_table(bench: Bench, tmp_path: Path) -> None:
    bench("--only", "private anon 4", "--csv", tmp_path / "t.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "t.csv").read_text())))
    of = {(row["size_mib"], row["method"]): (row["published_size_mib"], row["published_ms"]) for row in rows}
    assert of["2", "Write"] == ("2", "0.222")
    assert of["4", "Write"] == ("4096", "708.409")
    assert of["4", ARENA] == ("4096", "")


def test_the_arena_is_a_method(bench: Bench, tmp_path: Path) -> None:
    _, out, _ = bench("--only", "private anon 4", "--json", tmp_path / "t.json")
    rows = json.loads((tmp_path / "t.json").read_text())["rows"]
    assert all(row["ms"] for row in rows if row["method"] == ARENA)
    assert "  arena  " in out


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_the_arena_on_every_mapping(kind: MappingType, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        if kind.huge:
            request.getfixturevalue("pool")
            stack.enter_context(huge_pages.added(24))
        machine = stack.enter_context(Machine(tmp_path))
        try:
            machine.check(kind, 4 * MIB)
            memory = stack.enter_context(machine.reservation(kind, 4 * MIB))
        except NotHereError as error:
            pytest.skip(str(error))
        assert memory.commit(threads=1) == 4 * MIB
        assert memory.page_size == kind.page


def test_huge_pages_are_added_and_put_back(bench: Bench, pool: Path, tmp_path: Path) -> None:
    before = pool.read_text(), mounts()
    status, out, _ = bench("--only", "2 MiB", "--only", "hugetlbfs", "--reserve-hugepages", "--csv", tmp_path / "t.csv")
    assert status == 0
    assert (pool.read_text(), mounts()) == before
    if "huge pages added for this run\n" not in out:
        pytest.skip("this machine has not enough memory in one piece")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "t.csv").read_text())))
    assert not [row for row in rows if row["missing"] and row["method"] != ARENA]


def test_pages_that_others_add_meanwhile_stay(pool: Path) -> None:
    before = int(pool.read_text())
    with huge_pages.added(2) as got:
        if got < 2:
            pytest.skip("no memory in one piece")
        assert int(pool.read_text()) == before + 2
        pool.write_text(str(before + 3))
    assert int(pool.read_text()) == before + 1
    pool.write_text(str(before))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_stays_whatever_ends_it(number: int, pool: Path) -> None:
    before = pool.read_text()
    before_mounts = mounts()
    program = [sys.executable, os.path.dirname(command.__file__), "--reserve-hugepages", "--runs", "1000"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        assert eventually(lambda: pool.read_text() != before, 20)
        time.sleep(0.3)
        process.send_signal(number)
        assert process.wait(20) == (130 if number == signal.SIGINT else -number)
        assert "Traceback" not in process.stderr.read()
    assert eventually(lambda: pool.read_text() == before)
    assert mounts() == before_mounts


# --- what this machine has not ----------------------------------------------------------------------------------------


def test_no_huge_pages_is_a_row_that_says_how_to_get_them(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_pages, "free", lambda: 0)
    status, out, _ = bench("--only", "2 MiB")
    assert status == 0
    said = " ".join(out.split())
    assert "2 huge pages of 2 MiB are wanted and 0 are free: run it as root with --reserve-hugepages" in said
    assert "echo 2 > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages" in said
    assert "CANNOT BE SAID HERE: With huge pages" in said


def test_a_kernel_without_huge_pages(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huge_pages, "POOL", tmp_path)
    status, out, _ = bench("--only", "private anon 2")
    assert (status, "this kernel has no huge pages of 2 MiB" in out) == (0, True)


def test_pages_cannot_be_added_without_permission(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(huge_pages, "SIZE", tmp_path / "none")
    status, out, _ = bench("--only", "private anon 2", "--reserve-hugepages")
    assert (status, "no huge pages could be added (No such file" in out) == (0, True)


def test_files_in_memory_are_no_files(bench: Bench) -> None:
    if mappings.mounted_at("/dev/shm").kind != "tmpfs":
        pytest.skip("/dev/shm is no tmpfs here")
    status, out, _ = bench("--only", "file", "--dir", "/dev/shm")
    assert (status, "/dev/shm is on tmpfs, which is memory" in " ".join(out.split())) == (0, True)


def test_without_mounts_of_its_own_it_uses_what_is_there(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(kind: str, options: dict[str, str]) -> int:
        raise PermissionError(1, "not permitted")

    monkeypatch.setattr(mappings, "mount_detached", refuse)
    status, out, _ = bench("--only", "tmpfs", "--only", "hugetlbfs")
    assert status == 0
    assert "tmpfs: tmpfs at /dev/shm" in out or "there is no tmpfs at /dev/shm" in out
    assert "hugetlbfs at" in out or "none may be mounted" in " ".join(out.split())


def test_a_full_file_system_is_a_row_and_no_sigbus(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(mappings, "MARGIN", 1 << 60)
    status, out, _ = bench("--only", "private file", "--dir", tmp_path)
    if "which is memory" in out:
        pytest.skip(f"{tmp_path} is not on a disk")
    assert (status, "too little for 2 MiB: name another folder with --dir" in " ".join(out.split())) == (0, True)


def test_more_than_there_is_of_memory_is_a_row(bench: Bench) -> None:
    status, out, _ = bench("--only", "private anon 4", "--size", "1TiB")
    assert status == 0
    said = " ".join(out.split())
    assert said.count("not here: cannot commit 1 TiB") == 1
    assert "on mappings of 4 MiB" in said


def test_without_matplotlib_there_is_no_picture_but_all_else(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delitem(sys.modules, "patch2021.picture", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, out, _ = bench("--only", "private anon 4", "--picture", tmp_path / "t.png", "--csv", tmp_path / "t.csv")
    assert status == 0
    assert "pip install 'sparse-arena[bench]'" in out
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


@pytest.mark.parametrize(("name", "start"), [("t.png", b"\x89PNG"), ("t.svg", b"<?xml")])
def test_a_picture(bench: Bench, tmp_path: Path, name: str, start: bytes) -> None:
    pytest.importorskip("matplotlib", reason="Matplotlib is not installed")
    status, _, _ = bench("--only", "anon", "--picture", tmp_path / name)
    assert status == 0
    assert (tmp_path / name).read_bytes().startswith(start)


# --- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--runs", "0"], "1 or more"),
        (["--size", "3MiB"], "multiple of 2 MiB"),
        (["--size", "0"], "multiple of 2 MiB"),
        (["--size", "much"], "is not a size"),
        (["--only", "floppy"], "private Anon 4 KiB"),
        (["--picture", "t.gif"], ".png or .svg"),
        (["--csv", "/nowhere/t.csv"], "no folder /nowhere"),
    ],
)
def test_arguments_that_make_no_sense(bench: Bench, arguments: list[str], complaint: str) -> None:
    status, out, err = bench(*arguments)
    assert (status, out) == (2, "")
    assert complaint in err
    assert "Traceback" not in err


def test_sizes_are_sorted_and_never_twice() -> None:
    args = argparse.Namespace(size=["8MiB", "2MiB", "4MiB", "8388608"])
    assert command.sizes_of(args) == [2 * MIB, 4 * MIB, 8 * MIB]


# --- the calls --------------------------------------------------------------------------------------------------------


def test_what_is_timed_really_happens() -> None:
    kind = MappingType("shared", "Memfd 4 KiB")
    with Machine() as machine, machine.fresh(kind, 4 * MIB) as (mapping, fd):
        assert os.fstat(fd).st_blocks == 0
        mapping.madvise(mappings.MADV_NOHUGEPAGE)
        assert calls.allocate(fd, 2 * MIB) > 0
        assert os.fstat(fd).st_blocks * 512 == 2 * MIB
        assert calls.populate(mapping, writing=True) > 0
        assert os.fstat(fd).st_blocks * 512 == 4 * MIB
        mapping[4096] = 7
        assert calls.touch(mapping, 4096, reading=True, writing=True) > 0
        assert mapping[4096] == 7
        assert calls.touch(mapping, 4096, reading=False, writing=True) > 0
        assert mapping[4096] == 0


def test_calls_that_fail_say_so() -> None:
    with Machine() as machine, machine.fresh(PRIVATE_4K, 2 * MIB) as (mapping, _):
        with pytest.raises(OSError, match="fallocate"):
            calls.allocate(-1, 4096)
        with pytest.raises(ValueError, match="page"):
            calls.touch(mapping, 0, reading=True, writing=False)
        with pytest.raises(OSError, match="fsopen"):
            calls.mount_detached("no such file system", {})


def test_a_table_of_more_than_two_sizes_stays_in_the_width() -> None:
    kind = MappingType("shared", "tmpfs")
    sizes = [2 * MIB, 64 * MIB, 4096 * MIB]
    here = Table(Row(size, kind, method, (12345.678,)) for size in sizes for method in kind.methods)
    text = report.as_text(here, table.published())
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("÷ Write") == 3
