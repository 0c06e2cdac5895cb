"""arena.memmap: what np.memmap gives, with its pages present, and exceptions where that has SIGBUS."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import pickle
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import machine
import pytest
from conftest import in_child, run_child
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from machine import HUGE, MIB
from measure import PAGE, PRESENT, allocated, faults_at, faults_writing, pagemap

import arena
from arena import CommitError

pytestmark = pytest.mark.slow  # the same on every CPython

np: Any = pytest.importorskip("numpy", reason="NumPy is not installed")
memmap: Any = arena.memmap


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 16 MiB."""
    with machine.tmpfs(16 * MIB)(tmp_path) as place:
        yield place.path


@pytest.fixture(params=["tmpfs", "ext4", "ext2"])
def volume(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A tmpfs, a disk, and a disk that allocates nothing ahead: 16 MiB each."""
    kind = machine.tmpfs(16 * MIB) if request.param == "tmpfs" else machine.disk(16 * MIB, request.param)
    with kind(tmp_path) as place:
        yield place.path


def filled(path: Path, size: int = 5 * PAGE + 100) -> Path:
    path.write_bytes(bytes(i % 251 for i in range(min(size, 251 * PAGE))).ljust(size, b"\x07"))
    return path


def room(path: Path) -> int:
    there = os.statvfs(path)
    return there.f_bfree * there.f_frsize


def fill(path: Path) -> None:
    """A file that takes all there is left."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(64 * 1024))
        except OSError as error:
            assert error.errno == errno.ENOSPC


def descriptors() -> list[str]:
    gc.collect()
    return os.listdir("/proc/self/fd")


def mapped(path: Path) -> bool:
    gc.collect()
    return str(path) in Path("/proc/self/maps").read_text()


# As np.memmap.


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.sampled_from(["u1", "<i2", ">f8", "S3", "?", "M8[s]", [("a", "u1"), ("b", "<f4")], "(2,)u2"]),
    st.sampled_from(["r", "c", "r+", "readonly", "copyonwrite", "readwrite"]),
    st.integers(0, 3 * PAGE),
    st.one_of(st.none(), st.integers(1, 500), st.lists(st.integers(1, 8), min_size=1, max_size=3)),
    st.sampled_from("CF"),
)
def test_the_same_array(tmp_path: Path, dtype: Any, mode: str, offset: int, shape: Any, order: str) -> None:
    path = tmp_path / "file"
    if not path.exists():
        filled(path)
    if shape is None:
        offset -= (offset - path.stat().st_size) % np.dtype(dtype).itemsize
        offset = max(offset, path.stat().st_size % np.dtype(dtype).itemsize)
    elif not isinstance(shape, int):
        shape = tuple(shape)  # NumPy 1 takes no lists
    theirs = np.memmap(path, dtype, mode, offset, shape, order)
    ours = memmap(path, dtype, mode, offset, shape, order)
    assert (ours.dtype, ours.shape, ours.strides) == (theirs.dtype, theirs.shape, theirs.strides)
    assert ours.tobytes() == theirs.tobytes()
    assert ours.flags.writeable == theirs.flags.writeable
    assert (ours.filename, ours.offset, ours.mode) == (theirs.filename, theirs.offset, theirs.mode)
    ours.flush()


def test_what_is_made_of_it_is_as_what_is_made_of_a_memmap(tmp_path: Path) -> None:
    path = filled(tmp_path / "file", 120)
    both = [make(path, "u1", "r+", 0, (4, 30)) for make in (np.memmap, memmap)]
    makes: list[Callable[[Any], Any]] = [
        lambda x: x[1:], lambda x: x[0], lambda x: x[0, 0], lambda x: x[[1, 2]], lambda x: x[..., 0], lambda x: x.T,
        lambda x: x + 1, lambda x: x.sum(), lambda x: x.sum(axis=0), lambda x: x.copy(), lambda x: np.sqrt(x),
        lambda x: np.add(x, 1, out=x), lambda x: x.astype("f8"), lambda x: x.view("i2"), lambda x: x.ravel(),
        lambda x: np.asarray(x), lambda x: pickle.loads(pickle.dumps(x)), lambda x: x > 3, lambda x: x.max(),
    ]  # fmt: skip
    for i, make in enumerate(makes):
        theirs, ours = (make(x) for x in both)
        assert type(ours) is type(theirs), i
        assert np.array_equal(ours, theirs)
        if isinstance(theirs, np.memmap):
            for name in ("filename", "offset", "mode"):
                assert getattr(ours, name) == getattr(theirs, name), (i, name)
            assert (ours._mmap is None) == (theirs._mmap is None)
    assert isinstance(both[1], np.memmap)
    assert repr(both[1]) == repr(both[0])


def test_what_may_name_a_file(tmp_path: Path) -> None:
    path = filled(tmp_path / "file")
    data = path.read_bytes()
    for name in (path, str(path), os.fsencode(path), os.path.relpath(path)):
        x = memmap(name)
        assert x.tobytes() == data
        assert x.filename == np.memmap(name).filename
    with path.open("r+b") as file:
        assert file.read(7) == data[:7]
        for mode in ("r", "c", "r+"):
            x = memmap(file, mode=mode)
            assert x.tobytes() == data and x.filename == str(path)
        assert file.tell() == 7 and file.read(3) == data[7:10]
        file.seek(0)
        file.write(b"pending")
        assert memmap(file)[:7].tobytes() == b"pending"
    assert x.tobytes()[7:] == data[7:]  # it has a descriptor of its own
    with tempfile.TemporaryFile() as unnamed:
        unnamed.write(b"abc")
        x = memmap(unnamed)
        assert x.tobytes() == b"abc" and x.filename is None
        x = memmap(unnamed, "u2", "w+", shape=5)
        assert os.fstat(unnamed.fileno()).st_size == 10 and not x.any()
    with pytest.raises(TypeError):
        memmap(3)
    with pytest.raises(ValueError, match="closed"):
        memmap(file)


def test_the_modes(tmp_path: Path) -> None:
    path = filled(tmp_path / "file")
    before = path.read_bytes()
    x = memmap(path)
    assert x.mode == "r"
    with pytest.raises(ValueError, match="read-only"):
        x[0] = 1
    c = memmap(path, mode="c")
    c[:] = 1
    assert (c == 1).all() and path.read_bytes() == before == x.tobytes()
    c.flush()
    w = memmap(path, mode="r+", offset=3)
    w[0] = 99
    assert x[3] == 99 and path.read_bytes()[3] == 99
    for mode in ("r", "c"):  # these need no right to write, which nobody has to a program that runs
        assert memmap("/proc/self/exe", mode=mode)[:4].tobytes() == b"\x7fELF"


def test_a_copy_is_made_at_opening(tmp_path: Path) -> None:
    path = filled(tmp_path / "file")
    data = path.read_bytes()
    x = memmap(path, mode="c")
    with path.open("r+b") as file:
        file.write(bytes(len(data)))
    assert x.tobytes() == data
    assert faults_writing(x.data[: 5 * PAGE]) == 0


def test_others_see_what_is_written(tmp_path: Path) -> None:
    path = filled(tmp_path / "file")
    x = memmap(path, mode="r+")

    def child() -> None:
        x[5] = 77
        y = memmap(path, mode="r+")
        y[6] = 78
        assert x[6] == 78

    in_child(child)
    assert x[5:7].tolist() == [77, 78]


@pytest.mark.parametrize("mode", ["r", "c", "r+", "w+"])
def test_arrays_of_nothing(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "file"
    path.touch()
    x = memmap(path, "f4", mode, shape=(0, 3))
    assert isinstance(x, np.memmap) and x.shape == (0, 3) and x.mode == mode
    assert x.flags.writeable == (mode != "r")
    x.flush()
    assert path.stat().st_size == 0
    if mode != "w+":
        assert memmap(path, mode=mode).shape == (0,)


# What is no file of that size.


@pytest.mark.parametrize("mode", ["r", "c", "r+"])
def test_a_short_file_is_an_exception_and_stays_short(tmp_path: Path, mode: str) -> None:
    path = filled(tmp_path / "file", 1000)
    for offset, shape in ((0, 1001), (1000, 1), (1, (10, 100)), (1 << 40, 1), (0, 1 << 61)):
        with pytest.raises(ValueError, match=r"1000 bytes long.*'w\+'"):
            memmap(path, "u1", mode, offset, shape)
    with pytest.raises(ValueError, match="nothing at offset 1001"):
        memmap(path, mode=mode, offset=1001)
    with pytest.raises(ValueError, match="no multiple of the 8"):
        memmap(path, "f8", mode, 1)
    assert path.stat().st_size == 1000


@pytest.mark.parametrize("mode", ["r", "c", "r+", "w+"])
def test_what_is_no_file(tmp_path: Path, mode: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(tmp_path / "socket"))
        for name in (tmp_path, tmp_path / "pipe", tmp_path / "socket", "/dev/null", "/dev/tty"):
            before = descriptors()
            with pytest.raises(OSError):
                memmap(name, "u1", mode, 0, 100)
            assert descriptors() == before
    with pytest.raises(FileNotFoundError):
        memmap(tmp_path / "none" / "none", "u1", mode, 0, 100)
    if mode != "w+":
        with pytest.raises(FileNotFoundError):
            memmap(tmp_path / "none", "u1", mode, 0, 100)
        with pytest.raises(ValueError, match="device"):
            memmap("/dev/null", mode=mode)
    assert sorted(os.listdir(tmp_path)) == ["pipe", "socket"]


def test_a_device(tmp_path: Path) -> None:
    x = memmap("/dev/zero", "u1", "c", shape=3 * PAGE)
    assert not x.any()
    x[:] = 1


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"dtype": object}, ValueError, "count their references"),
        ({"dtype": [("a", "O")]}, ValueError, "count their references"),
        ({"dtype": "U"}, ValueError, "no size"),
        ({"dtype": "V0"}, ValueError, "no size"),
        ({"dtype": "nonsense"}, TypeError, None),
        ({"mode": "w"}, ValueError, "mode"),
        ({"mode": "rb"}, ValueError, "mode"),
        ({"mode": None}, ValueError, "mode"),
        ({"order": "K"}, ValueError, "order"),
        ({"offset": -1}, ValueError, "negative"),
        ({"offset": 1.5}, TypeError, None),
        ({"shape": -1}, ValueError, "negative"),
        ({"shape": (2, -3)}, ValueError, "negative"),
        ({"shape": 1.5}, TypeError, None),
        ({"mode": "w+", "shape": None}, ValueError, "shape must be given"),
        ({"mode": "w+", "shape": 1 << 63}, ValueError, "too big"),
        ({"mode": "w+", "shape": (1 << 40, 1 << 40)}, ValueError, "too big"),
        ({"mode": "w+", "shape": (1,) * 65}, ValueError, "dimension|too large|ndim"),
    ],
)
def test_nonsense_harms_no_file(tmp_path: Path, arguments: Any, error: type[Exception], says: str | None) -> None:
    path = filled(tmp_path / "file")
    data = path.read_bytes()
    before = descriptors()
    for name in (path, tmp_path / "none"):
        if name == path or arguments.get("mode") == "w+":
            with pytest.raises(error, match=says):
                memmap(name, **{"shape": 10, **arguments})
    assert descriptors() == before
    assert path.read_bytes() == data and os.listdir(tmp_path) == ["file"]


def test_strings_of_variable_width_are_refused(tmp_path: Path) -> None:
    if not hasattr(np, "dtypes") or not hasattr(np.dtypes, "StringDType"):
        pytest.skip("StringDType is in NumPy 2")
    with pytest.raises(ValueError, match="fixed width"):
        memmap(filled(tmp_path / "file"), np.dtypes.StringDType())


# Memory that is there.


@pytest.mark.parametrize("mode", ["r", "c", "r+", "w+"])
def test_only_what_was_asked_for_is_present_and_all_of_it(tmp_path: Path, mode: str) -> None:
    path = filled(tmp_path / "file", 64 * PAGE)
    x = memmap(path, "u1", mode, 32 * PAGE + 10, 8 * PAGE)
    at = x.ctypes.data - 10
    assert all(entry & PRESENT for entry in pagemap(at, 9 * PAGE))
    assert not any(entry & PRESENT for entry in pagemap(at - 32 * PAGE, 32 * PAGE))
    # (What is touched next to a page of a file may be mapped with it, but it was not touched.)


@pytest.mark.parametrize("mode", ["r", "c", "r+", "w+"])
def test_no_fault_after_opening(tmp_path: Path, mode: str) -> None:
    path = filled(tmp_path / "file", 8 * MIB)

    other = np.ones(8 * MIB, "u1")

    def faults(x: Any) -> int:
        return faults_at(x.ctypes.data, x.nbytes, lambda: x[:: 256 * PAGE].max(), lambda: other[:: 256 * PAGE].max())

    assert faults(np.memmap(path, "u1", "r+" if mode == "w+" else mode)) > 0
    x = memmap(path, "u1", mode, 0, 8 * MIB)
    assert faults(x) == 0
    if mode != "r":
        assert faults_writing(x.data) == 0


def dirty(path: Path) -> int:
    """Bytes of it that are mapped here and modified."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key = line.split(maxsplit=1)[0]
        if not key.endswith(":"):
            inside = line.endswith(str(path))
        elif inside and key in ("Shared_Dirty:", "Private_Dirty:"):
            total += int(line.split()[1]) * 1024
    return total


def test_flush_writes_back(tmp_path: Path) -> None:
    with machine.disk(16 * MIB)(tmp_path) as place:
        path = filled(place.path / "file", 4 * MIB)
        os.sync()
        assert dirty(path) == 0
        x = memmap(path, "u1", "r")
        assert dirty(path) == 0
        x = memmap(path, "u1", "r+", 100)
        x[:] = 5
        assert dirty(path) == 4 * MIB
        x[10:20].flush()
        assert dirty(path) == 0
        del x


def test_flush_says_when_it_cannot_be_written(child: Callable[..., str], tmp_path: Path) -> None:
    """A disk whose own memory is full: its blocks are allocated, and cannot be written."""
    with machine.tmpfs(8 * MIB)(tmp_path) as under, machine.disk(32 * MIB)(under.path) as place:
        path = place.path / "file"
        x = memmap(path, "u1", "w+", shape=16 * MIB)
        x[:] = 1
        with pytest.raises(OSError, match="cannot write the mapping back") as caught:
            x.flush()
        assert caught.value.errno in (errno.EIO, errno.ENOSPC)
        del x


def test_the_mapping_goes_with_the_last_view(tmp_path: Path) -> None:
    path = filled(tmp_path / "file")
    for mode in ("r", "c", "r+", "w+"):
        before = descriptors()
        x = memmap(path, "u1", mode, 5, 100)
        views = [x[3:], x.T, x.view(np.ndarray)[1:], memoryview(x), np.lib.stride_tricks.as_strided(x), x[4:].base]
        del x
        while views:
            views.pop()
            assert mapped(path) == bool(views)
        assert descriptors() == before


# Making and overwriting.


def test_a_new_file_is_of_that_size_zero_and_allocated(volume: Path) -> None:
    path = volume / "file"
    x = memmap(path, "<u4", "w+", 1000, (10, 1000))
    assert path.stat().st_size == 41000 and not x.any()
    assert allocated(path) >= 40000
    x[:] = 7
    x.flush()
    assert path.read_bytes() == bytes(1000) + b"\x07\0\0\0" * 10000
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()
    os.symlink("elsewhere", volume / "link")
    memmap(volume / "link", "u1", "w+", shape=5)
    assert (volume / "elsewhere").stat().st_size == 5


def umask() -> int:
    os.umask(now := os.umask(0))
    return now


@pytest.mark.parametrize("size", [100, 5 * PAGE, 9 * PAGE + 5])
@pytest.mark.parametrize("offset", [0, 10, 2 * PAGE + 1, 12 * PAGE])
@pytest.mark.parametrize("nbytes", [0, 1, 3 * PAGE, 8 * PAGE + 7])
def test_an_old_file_is_overwritten(tmp_path: Path, size: int, offset: int, nbytes: int) -> None:
    path = filled(tmp_path / "file", size)
    node = path.stat().st_ino
    x = memmap(path, "u1", "w+", offset, nbytes)
    assert path.stat().st_ino == node
    assert path.read_bytes() == bytes(offset + nbytes)
    x[:] = 3
    assert path.read_bytes() == bytes(offset) + b"\3" * nbytes


def test_it_is_overwritten_in_place_on_every_file_system(volume: Path) -> None:
    path = filled(volume / "file", 12 * MIB)  # not twice in 16 MiB
    with path.open("r+b") as file:
        file.truncate(13 * MIB)
    x = memmap(path, "u1", "w+", 5000, 12 * MIB)
    assert not x.any() and path.stat().st_size == 12 * MIB + 5000
    assert faults_writing(x.data) == 0
    assert path.read_bytes()[:5000] == bytes(5000)


def refused(call: Callable[[], object], *errnos: int) -> OSError:
    with pytest.raises(OSError) as caught:
        call()
    assert caught.value.errno in errnos, caught.value
    return caught.value


def test_a_full_file_system_leaves_nothing_of_a_new_file(volume: Path) -> None:
    before, open_before = room(volume), descriptors()
    error = refused(lambda: memmap(volume / "file", "u1", "w+", shape=32 * MIB), errno.ENOSPC)
    assert isinstance(error, CommitError)
    assert str(volume) in str(error) and "full" in str(error)
    assert os.listdir(volume) in ([], ["lost+found"])
    assert room(volume) == before
    del error
    assert descriptors() == open_before


@pytest.mark.parametrize("nbytes", [15 * MIB, 32 * MIB])
def test_a_full_file_system_leaves_an_old_file_as_it_was(volume: Path, nbytes: int) -> None:
    path = filled(volume / "file", 3 * MIB + 5)
    (volume / "other").write_bytes(bytes(2 * MIB))
    os.sync()
    data, before = path.read_bytes(), room(volume)
    for offset in (0, 7 * PAGE + 3):
        refused(lambda offset=offset: memmap(path, "u1", "w+", offset, nbytes), errno.ENOSPC)  # type: ignore[misc]
        assert path.read_bytes() == data
        os.sync()
        assert room(volume) >= before - 64 * 1024  # metadata


def test_holes_that_were_filled_before_it_was_full_are_holes_again(small: Path) -> None:
    path = small / "file"
    with path.open("wb") as file:
        file.seek(8 * MIB)
        file.write(b"x" * 6 * MIB)
    (small / "other").write_bytes(bytes(8 * MIB))
    data, before = path.read_bytes(), (room(small), allocated(path))
    refused(lambda: memmap(path, "u1", "w+", shape=8 * MIB), errno.ENOSPC)
    assert path.read_bytes() == data
    assert (room(small), allocated(path)) == before


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_a_hole_in_a_full_file_system(volume: Path, mode: str) -> None:
    """np.memmap is killed there, if not at the first touch then at the first write."""
    path = volume / "file"
    with path.open("wb") as file:
        file.truncate(8 * MIB)
    fill(volume / "other")
    code = f"""
        import numpy as np
        import arena
        try:
            x = arena.memmap({str(path)!r}, "u1", {mode!r})
        except OSError as error:
            print("refused", error)
        else:
            x[:: 4096].max()
            if {mode!r} != "r":
                x[:: 4096] = 1
            print("works")
    """
    done = run_child(code)
    assert done.returncode == 0, done.stderr
    # Of a disk a hole is read as zeros, and a private copy is in memory.
    may_work = volume.name == "disk" and mode != "r+"
    assert ("works" if may_work else "refused") in done.stdout, done.stdout
    if not may_work:
        assert "full" in done.stdout or "cannot allocate ahead" in done.stdout
        theirs = run_child(code.replace("arena.memmap", "np.memmap"))
        assert theirs.returncode == -signal.SIGBUS


def test_numpys_own_new_file_in_a_full_file_system_is_a_sigbus(small: Path) -> None:
    code = f"""
        import numpy as np
        x = np.memmap({str(small / "file")!r}, "u1", "w+", shape=32 << 20)
        x[:] = 1
    """
    assert run_child(code).returncode == -signal.SIGBUS


def test_a_limit_on_the_length_of_files(tmp_path: Path, child: Callable[..., str]) -> None:
    path = filled(tmp_path / "file", 1000)
    child(
        f"""
        import resource, os, errno
        from pathlib import Path
        import arena
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        for name in ("file", "new"):
            path = Path({str(tmp_path)!r}) / name
            try:
                arena.memmap(path, "u1", "w+", shape=2 << 20)
            except OSError as error:
                assert error.errno == errno.EFBIG and "RLIMIT_FSIZE" in str(error), error
            else:
                raise AssertionError
        """
    )
    assert path.stat().st_size == 1000 and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("old", [True, False])
def test_an_exception_from_a_signal_leaves_all_as_it_was(tmp_path: Path, old: bool) -> None:
    class Enough(Exception):
        pass

    def enough(*_: object) -> None:
        raise Enough

    with machine.tmpfs(512 * MIB)(tmp_path) as place:
        path = place.path / "file"
        if old:
            filled(path, 3 * MIB + 7)
        data, before, open_before = path.read_bytes() if old else b"", room(place.path), descriptors()
        handler = signal.signal(signal.SIGALRM, enough)
        try:
            for n in range(1, 50, 4):
                try:
                    signal.setitimer(signal.ITIMER_REAL, n / 1000)
                    x = memmap(path, "u1", "w+", 100, 400 * MIB)
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    pytest.skip(f"400 MiB in less than {n} ms: {x.size}")
                except Enough:
                    assert path.exists() == old
                    assert not old or path.read_bytes() == data
                gc.collect()
                assert room(place.path) == before
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, handler)
        assert descriptors() == open_before


def test_copies_past_a_cgroups_limit_are_an_exception(cgroup: machine.MemoryCgroup, tmp_path: Path) -> None:
    path = filled(tmp_path / "file", 96 * MIB)
    cgroup.limit(64 * MIB)
    done = run_child(
        f"""
        import arena
        try:
            arena.memmap({str(path)!r}, mode="c")
        except arena.CommitError as error:
            print(error)
        """,
        preexec=cgroup.enter,
    )
    assert done.returncode == 0 and "memory cgroup's limit" in done.stdout, (done.returncode, done.stdout, done.stderr)


def test_huge_pages(tmp_path: Path) -> None:
    with machine.hugetlbfs(8)(tmp_path) as place:
        path = place.path / "file"
        x = memmap(path, "u1", "w+", shape=2 * HUGE)
        assert faults_writing(x.data) == 0
        x[:] = 6
        assert memmap(path, "u1", "r", 100, HUGE)[HUGE - 1] == 6
        c = memmap(path, "u1", "c", HUGE)
        c[:] = 1
        x.flush()
        assert (x == 6).all()
        refused(lambda: memmap(path, "u1", "w+", shape=HUGE + 1), errno.EINVAL)
        refused(lambda: memmap(place.path / "odd", "u1", "w+", shape=5), errno.EINVAL)
        refused(lambda: memmap(place.path / "large", "u1", "w+", shape=64 * HUGE), errno.ENOSPC, errno.ENOMEM)
        assert os.listdir(place.path) == ["file"] and (x == 6).all()
        del x, c


def test_a_sealed_file() -> None:
    import fcntl

    fd = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    os.write(fd, b"abc")
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
    with os.fdopen(fd, "r+b") as file:
        assert memmap(file).tobytes() == b"abc"
        refused(lambda: memmap(file, mode="r+"), errno.EPERM, errno.EACCES)
        for shape in (2, 3, 4):
            refused(lambda shape=shape: memmap(file, "u1", "w+", shape=shape), errno.EPERM, errno.EACCES)  # type: ignore[misc]
        assert os.pread(fd, 9, 0) == b"abc"


def test_a_file_opened_for_reading_only(tmp_path: Path) -> None:
    path = filled(tmp_path / "file")
    data = path.read_bytes()
    with path.open("rb") as file:
        refused(lambda: memmap(file, mode="r+"), errno.EACCES)
        for shape in (2, path.stat().st_size, 1 << 20):
            refused(lambda shape=shape: memmap(file, "u1", "w+", shape=shape), errno.EACCES, errno.EINVAL)  # type: ignore[misc]
    assert path.read_bytes() == data


if TYPE_CHECKING:
    import numpy as n  # noqa: ICN001  (np is Any above)
    from typing_extensions import assert_type

    def types(path: Path, dtype: n.dtype[n.int16]) -> None:
        assert_type(arena.memmap(path), n.memmap[Any, n.dtype[n.uint8]])
        assert_type(arena.memmap(path, n.float32, "r+", 8, (3, 4)), n.memmap[Any, n.dtype[n.float32]])
        assert_type(arena.memmap(path.open("rb"), dtype, shape=[3]), n.memmap[Any, n.dtype[n.int16]])
        assert_type(arena.memmap(str(path), "f4"), n.memmap[Any, n.dtype[Any]])


# What fails late.


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("call", ["fstat", "fstatvfs", "ftruncate", "lseek", "pread", "close", "pwrite"])
def test_a_call_that_fails_late_leaves_all_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, old: bool
) -> None:
    """Each time that it is made, one after the other: what was there is kept, or the file is a new one."""
    real, path = getattr(os, call), tmp_path / "file"
    for k in range(1, 20):
        path.unlink(missing_ok=True)
        if old:
            filled(path, 9000)
        data, open_before, made = path.read_bytes() if old else b"", descriptors(), 0

        def fails(*args: Any, k: int = k) -> Any:
            nonlocal made
            made += 1
            if made == k:
                if call == "close":
                    real(*args)  # the descriptor is gone all the same
                raise OSError(errno.EIO, "injected")
            return real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, fails)
            try:
                x = memmap(path, "u1", "w+", 0, 20_000)
            except OSError as error:
                assert error.errno == errno.EIO
                assert path.exists() == old
                assert not old or path.read_bytes() == data
            else:
                assert path.read_bytes() == bytes(20_000) and x.size == 20_000
                del x
        assert descriptors() == open_before
        if made < k:
            break
    else:
        raise AssertionError("it does not end")


def test_a_file_that_cannot_be_shortened_is_as_it_was(tmp_path: Path) -> None:
    fd = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    with open(fd, "r+b") as file:
        file.write(b"x" * 9000)
        file.flush()
        fcntl.fcntl(fd, 1033, 2)  # F_ADD_SEALS, F_SEAL_SHRINK
        with pytest.raises(PermissionError, match="its size is sealed"):
            memmap(file, "u1", "w+", 100, 5000)
        assert os.pread(fd, 9001, 0) == b"x" * 9000
