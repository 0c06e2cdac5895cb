"""Pickle: out of band from protocol 5 on, a copy in band, and a TypeError that helps elsewhere."""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
from multiprocessing.reduction import ForkingPickler
from typing import Any

import pytest
from conftest import MIB
from neighbour import holds_an_export, python_bytes

from arena import Arena


@pytest.fixture
def a() -> Arena:
    return Arena("64MiB")


def test_out_of_band_nothing_is_copied(a: Arena) -> None:
    block = a.alloc(16 * MIB)
    sent: list[pickle.PickleBuffer] = []
    stream: list[bytes] = []
    peak = python_bytes(lambda: stream.append(pickle.dumps({"frame": block}, protocol=5, buffer_callback=sent.append)))
    assert peak < MIB
    assert len(stream[0]) < 200
    (buffer,) = sent
    assert buffer.raw().obj is block


def test_a_picklebuffer_holds_an_export(a: Arena) -> None:
    def pickled(block: Any) -> list[pickle.PickleBuffer]:
        sent: list[pickle.PickleBuffer] = []
        pickle.dumps(block, protocol=5, buffer_callback=sent.append)
        return sent

    holds_an_export(a, pickled)
    block = a.alloc(100)
    sent = pickled(block)
    sent[0].release()
    block.free()


def test_the_receivers_own_buffer_comes_out(a: Arena) -> None:
    there = Arena("64MiB")
    sent: list[pickle.PickleBuffer] = []
    stream = pickle.dumps((a.alloc(100), a.alloc(200)), protocol=5, buffer_callback=sent.append)
    mine = [there.alloc(buffer.raw().nbytes) for buffer in sent]
    first, second = pickle.loads(stream, buffers=mine)
    assert first is mine[0] and second is mine[1]
    other: Any
    for other in (b"bytes", bytearray(3), memoryview(b"view")):
        stream = pickle.dumps(a.alloc(100), protocol=5, buffer_callback=lambda buffer: None)
        assert pickle.loads(stream, buffers=[other]) is other


def test_in_band_it_is_a_copy(a: Arena) -> None:
    block = a.alloc(1000)
    block[:] = bytes(range(250)) * 4
    for protocol in (5, pickle.HIGHEST_PROTOCOL, -1):
        received = pickle.loads(pickle.dumps(block, protocol=protocol))
        assert type(received) is bytearray
        assert received == bytes(range(250)) * 4
    received[0] = 99
    assert block[0] == 0
    block.free()  # no export is left behind
    assert a.stats().blocks == 0


def test_the_same_block_twice_is_one(a: Arena) -> None:
    block = a.alloc(100)
    first, second = pickle.loads(pickle.dumps([block, block], protocol=5))
    assert first is second


@pytest.mark.parametrize("protocol", range(5))
def test_lower_protocols_say_what_to_do(a: Arena, protocol: int) -> None:
    block = a.alloc(100)
    with pytest.raises(TypeError, match=r"protocol=5.*bytes\(block\).*shared=True"):
        pickle.dumps(block, protocol=protocol)
    block.free()


@pytest.mark.skipif(pickle.DEFAULT_PROTOCOL >= 5, reason="multiprocessing uses protocol 5 here")
def test_what_users_of_multiprocessing_are_told(a: Arena) -> None:
    with pytest.raises(TypeError, match="multiprocessing"):
        ForkingPickler.dumps(a.alloc(100))


def test_the_copy_module_is_refused(a: Arena) -> None:
    for function in (copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="copy module"):
            function(a.alloc(100))
    assert a.stats().blocks == 0


def test_a_freed_block(a: Arena) -> None:
    block = a.alloc(100)
    block.free()
    with pytest.raises(BufferError, match="freed"):
        pickle.dumps(block, protocol=5)


def test_nothing_is_left_of_ten_thousand(a: Arena) -> None:
    sent: list[pickle.PickleBuffer] = []
    for _ in range(10_000):
        stream = pickle.dumps(a.alloc(100), protocol=5, buffer_callback=sent.append)
        pickle.loads(stream, buffers=sent)
        sent.clear()
        pickle.loads(pickle.dumps(a.alloc(100), protocol=5))
    gc.collect()
    assert a.stats().blocks == 0


RECEIVER = """
import pickle, sys
from arena import Arena
read = sys.stdin.buffer
stream = read.read(int(read.readline()))
with Arena("64MiB") as a:
    block = a.alloc(int(read.readline()))
    assert read.readinto(block) == len(block)
    received = pickle.loads(stream, buffers=[block])
    assert received["frame"] is block
    print(received["number"], sum(block[:1000]), block[-1], len(block))
    del received, block
"""


def test_to_another_process_and_into_a_block_of_its_own(a: Arena) -> None:
    block = a.alloc(4 * MIB, zero=True)
    block[:1000] = b"\x01" * 1000
    block[-1] = 7
    sent: list[pickle.PickleBuffer] = []
    stream = pickle.dumps({"number": 5, "frame": block}, protocol=5, buffer_callback=sent.append)
    with subprocess.Popen([sys.executable, "-c", RECEIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as receiver:
        assert receiver.stdin is not None and receiver.stdout is not None
        receiver.stdin.write(b"%d\n%b%d\n" % (len(stream), stream, len(block)))
        receiver.stdin.write(sent[0])
        receiver.stdin.close()
        assert receiver.stdout.read() == b"5 1000 7 %d\n" % (4 * MIB)
    assert receiver.returncode == 0


NO_ARENA = """
import pickle, sys
assert not any(name.startswith("arena") for name in sys.modules)
print(pickle.loads(sys.stdin.buffer.read())[:5].decode())
assert not any(name.startswith("arena") for name in sys.modules)
"""


def test_a_receiver_needs_no_arena(a: Arena) -> None:
    block = a.alloc(100)
    block[:5] = b"hello"
    done = subprocess.run(
        [sys.executable, "-c", NO_ARENA], input=pickle.dumps(block, protocol=5), capture_output=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, b"hello\n"), done.stderr.decode()


def test_an_array_goes_the_same_way(a: Arena) -> None:
    np: Any = pytest.importorskip("numpy", reason="NumPy is not installed")
    array = a.zeros((100, 100))
    array[7] = 7
    sent: list[pickle.PickleBuffer] = []
    stream = pickle.dumps(array, protocol=5, buffer_callback=sent.append)
    assert len(stream) < 1000
    mine = a.alloc(sent[0].raw().nbytes)
    mine[:] = sent[0].raw().cast("B")
    received = pickle.loads(stream, buffers=[mine])
    assert (received.shape, received.ctypes.data) == ((100, 100), mine.address)
    assert (received == array).all()
    with pytest.raises(BufferError):
        mine.free()
    assert (pickle.loads(pickle.dumps(array)) == array).all() and np.asarray(received).sum() == 700
