"""Reading from files, disks and sockets straight into a block: no bytes object in between, and no page fault."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import MIB
from machine import disk
from measure import minor_faults
from neighbour import faults_into, faults_of_the_device, python_bytes

from arena import Arena

DATA = os.urandom(MIB) * 4


@pytest.fixture
def a() -> Arena:
    return Arena("64MiB")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "data").write_bytes(DATA)
    return tmp_path / "data"


def test_what_these_tests_count(path: Path) -> None:
    """The same into ordinary memory."""
    with path.open("rb", buffering=0) as file, mmap.mmap(-1, len(DATA)) as memory:
        before = minor_faults()
        assert file.readinto(memory) == len(DATA)
        assert minor_faults() > before


@pytest.mark.parametrize("buffering", [0, -1])
def test_readinto(a: Arena, path: Path, buffering: int) -> None:
    block = a.alloc(len(DATA))
    file: Any
    with path.open("rb", buffering) as file:
        assert python_bytes(lambda: file.readinto(block)) < MIB // 4
        assert bytes(block) == DATA

        def read(view: memoryview) -> None:
            file.seek(0)
            file.readinto(view)

        assert faults_into(a, read) == 0
    block.free()


def test_a_view_of_a_part(a: Arena, path: Path) -> None:
    block = a.alloc(100, zero=True)
    with path.open("rb") as file:
        assert file.readinto(block[10:20]) == 10
    assert bytes(block[:30]) == bytes(10) + DATA[:10] + bytes(10)


def test_preadv_gathers_into_blocks(a: Arena, path: Path) -> None:
    header, body = a.alloc(100), a.alloc(len(DATA) - 100)
    with path.open("rb", buffering=0) as file:
        assert os.preadv(file.fileno(), [header, body], 0) == len(DATA)
    assert bytes(header) + bytes(body) == DATA
    header.free()
    body.free()


def read_from_disk() -> int:
    """Bytes that this process had the disk fetch."""
    for line in Path("/proc/self/io").read_text().splitlines():
        name, _, value = line.partition(": ")
        if name == "read_bytes":
            return int(value)
    raise AssertionError("no read_bytes in /proc/self/io")


def test_o_direct(a: Arena, tmp_path: Path) -> None:
    with disk(32 * MIB)(tmp_path) as place:
        path = place.path / "data"
        path.write_bytes(DATA)
        os.sync()
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        try:
            block = a.alloc(len(DATA), align=4096)
            assert block.address % 4096 == 0
            before = read_from_disk()
            assert python_bytes(lambda: os.preadv(fd, [block], 0)) < MIB // 4
            assert read_from_disk() - before >= len(DATA)
            assert bytes(block) == DATA
            # The disk writes into the pages that we had made present: it has none to ask the kernel for.
            assert faults_of_the_device(a, lambda view: os.preadv(fd, [view], 0)) == 0
            # And why the block is aligned.
            with pytest.raises(OSError, match="Invalid argument"):
                os.preadv(fd, [block[1 : 1 + 4096]], 0)
            block.free()
        finally:
            os.close(fd)


@contextlib.contextmanager
def talker() -> Iterator[socket.socket]:
    """A socket at whose other end somebody says DATA again and again."""
    here, there = socket.socketpair()

    def talk() -> None:
        with contextlib.suppress(OSError):
            while True:
                there.sendall(DATA)

    thread = threading.Thread(target=talk)
    thread.start()
    try:
        yield here
    finally:
        here.close()
        thread.join()
        there.close()


def test_recv_into(a: Arena) -> None:
    block = a.alloc(len(DATA))
    with talker() as peer:
        assert python_bytes(lambda: peer.recv_into(block, 0, socket.MSG_WAITALL)) < MIB // 4
        assert bytes(block) == DATA
        assert peer.recvmsg_into([block], 0, socket.MSG_WAITALL)[0] == len(DATA)
    with talker() as peer:
        assert faults_into(a, lambda view: peer.recv_into(view, 0, socket.MSG_WAITALL)) == 0
    block.free()


def test_a_call_that_waits_holds_an_export(a: Arena) -> None:
    block = a.alloc(2, zero=True)
    here, there = socket.socketpair()
    with here, there:
        reader = threading.Thread(target=lambda: here.recv_into(block, 0, socket.MSG_WAITALL))
        reader.start()
        there.send(b"x")
        while block[0] == 0:  # it has the first byte, and waits for the second
            time.sleep(0.001)
        with pytest.raises(BufferError):
            block.free()
        there.send(b"y")
        reader.join()
    assert bytes(block) == b"xy"
    block.free()


def test_written_from_a_block(a: Arena, tmp_path: Path) -> None:
    block = a.alloc(len(DATA))
    block[:] = DATA
    with (tmp_path / "out").open("wb") as file:
        assert python_bytes(lambda: file.write(block)) < MIB // 4
    assert (tmp_path / "out").read_bytes() == DATA
    assert ctypes.string_at(block.address, len(DATA)) == DATA
    block.free()
