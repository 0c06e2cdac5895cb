"""Arrow arrays and IPC on blocks: nothing comes from a memory pool of Arrow's."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from neighbour import faults_into, holds_an_export, neighbour

from arena import Arena, Block

pa: Any = neighbour("pyarrow")
N = 100_000


@pytest.fixture
def a() -> Arena:
    return Arena("64MiB")


@pytest.fixture(autouse=True)
def _no_pool() -> Iterator[None]:
    before = pa.total_allocated_bytes()
    yield
    assert pa.total_allocated_bytes() == before


def column(block: Block) -> Any:
    return pa.Array.from_buffers(pa.int64(), len(block) // 8, [None, pa.py_buffer(block)])


def batch_in(block: Block) -> Any:
    return pa.RecordBatch.from_arrays([column(block)], ["x"])


def addresses(batch: Any) -> list[int]:
    return [buffer.address for column in batch.columns for buffer in column.buffers() if buffer]


def test_a_buffer(a: Arena) -> None:
    block = a.alloc(1000)
    buffer = pa.py_buffer(block)
    assert (buffer.address, buffer.size, buffer.is_mutable, buffer.is_cpu) == (block.address, 1000, True, True)
    holds_an_export(a, pa.py_buffer)
    holds_an_export(a, lambda block: pa.py_buffer(block).slice(100, 10))


def test_an_array(a: Arena) -> None:
    block = a.alloc(8000)
    struct.pack_into("1000q", block, 0, *range(1000))
    array = column(block)
    assert array.buffers()[1].address == block.address
    assert array[999].as_py() == 999
    block[:8] = b"\1" + bytes(7)
    assert array[0].as_py() == 1
    holds_an_export(a, column)
    holds_an_export(a, lambda block: column(block).slice(10, 10))
    holds_an_export(a, lambda block: pa.table({"x": column(block)}))


def test_an_array_of_strings(a: Arena) -> None:
    text, offsets = a.alloc(11), a.alloc(12)
    text[:] = b"helloarrows"
    struct.pack_into("3i", offsets, 0, 0, 5, 11)
    array = pa.StringArray.from_buffers(2, pa.py_buffer(offsets), pa.py_buffer(text))
    assert array.to_pylist() == ["hello", "arrows"]


def write(batch: Any, sink: Any) -> None:
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)


def test_ipc_written_into_a_block_and_read_from_it(a: Arena) -> None:
    source = a.alloc(8 * N, zero=True)
    batch = batch_in(source)
    block = a.alloc(pa.ipc.get_record_batch_size(batch) + 4096)
    sink = pa.FixedSizeBufferWriter(pa.py_buffer(block))
    write(batch, sink)
    del sink
    received = pa.ipc.open_stream(pa.py_buffer(block)).read_next_batch()
    assert received.equals(batch)
    assert all(block.address <= address < block.address + len(block) for address in addresses(received))
    with pytest.raises(BufferError):
        block.free()
    del received
    block.free()


def test_a_block_that_is_too_small(a: Arena) -> None:
    block = a.alloc(1000)
    with pytest.raises(OSError):
        write(batch_in(a.alloc(8 * N)), pa.FixedSizeBufferWriter(pa.py_buffer(block)))


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_ipc_read_into_a_block(a: Arena, tmp_path: Path, kind: str) -> None:
    batch = batch_in(a.alloc(8 * N, zero=True))
    with pa.OSFile(str(tmp_path / "data"), "wb") as sink, getattr(pa.ipc, f"new_{kind}")(sink, batch.schema) as writer:
        for _ in range(3):
            writer.write_batch(batch)
    block = a.alloc((tmp_path / "data").stat().st_size)
    with (tmp_path / "data").open("rb", buffering=0) as file:
        assert file.readinto(block) == len(block)
    table = getattr(pa.ipc, f"open_{kind}")(pa.py_buffer(block)).read_all()
    assert table.num_rows == 3 * N
    found = [address for batch in table.to_batches() for address in addresses(batch)]
    assert len(found) == 3 and all(block.address <= address < block.address + len(block) for address in found)
    with pytest.raises(BufferError):
        block.free()
    del table, batch
    block.free()


def test_writing_into_a_block_faults_on_nothing(a: Arena) -> None:
    batch = batch_in(a.alloc(8 * N, zero=True))

    def fill(view: memoryview) -> None:
        write(batch.slice(0, (len(view) - 4096) // 8), pa.FixedSizeBufferWriter(pa.py_buffer(view)))

    assert faults_into(a, fill, 8 * N + 4096) == 0


def test_numpy_and_back(a: Arena) -> None:
    neighbour("numpy")
    numbers = a.full(1000, 7, "i8")
    array = pa.array(numbers)  # without a copy, where there are no nulls
    assert array.buffers()[1].address == numbers.ctypes.data
    assert array.to_numpy(zero_copy_only=True).ctypes.data == numbers.ctypes.data
