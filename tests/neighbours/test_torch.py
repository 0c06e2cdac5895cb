"""PyTorch on blocks and on arrays of an arena."""

from __future__ import annotations

import gc
from typing import Any

import pytest
from neighbour import faults_into, holds_an_export, keeps_the_object_only, neighbour

from arena import Arena

torch: Any = neighbour("torch")
np: Any = neighbour("numpy")


@pytest.fixture
def a() -> Arena:
    return Arena("64MiB")


def test_from_dlpack(a: Arena) -> None:
    block = a.alloc(4000, zero=True)
    tensor = torch.from_dlpack(block)
    assert (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape)) == (block.address, torch.uint8, (4000,))
    tensor.view(torch.float32).fill_(1.5)
    assert memoryview(block).cast("f")[999] == 1.5
    holds_an_export(a, torch.from_dlpack)
    holds_an_export(a, lambda block: torch.from_dlpack(block).view(torch.float32).reshape(2, -1)[1, 3:])
    holds_an_export(a, lambda block: torch.from_dlpack(block).numpy())
    holds_an_export(a, lambda block: torch.from_dlpack(block.__dlpack__()))


def test_from_dlpack_with_a_copy(a: Arena) -> None:
    block = a.alloc(4000, zero=True)
    copied = torch.from_dlpack(block, copy=True)
    assert a.address <= copied.data_ptr() < a.address + a.size and copied.data_ptr() != block.address
    block.free()
    assert int(copied.sum()) == 0
    del copied
    gc.collect()
    assert a.stats().blocks == 0


def test_frombuffer_keeps_the_object_only(a: Arena) -> None:
    block = a.alloc(4000, zero=True)
    for tensor in (torch.frombuffer(block, dtype=torch.float32), torch.asarray(block, dtype=torch.float32)):
        assert tensor.data_ptr() == block.address
    tensor[3] = 1.5
    assert memoryview(block).cast("f")[3] == 1.5
    keeps_the_object_only(a, lambda block: torch.frombuffer(block, dtype=torch.float32))
    keeps_the_object_only(a, lambda block: torch.asarray(block, dtype=torch.float32))
    # What it reads afterwards is another's or nobody's, and is there.
    block.free()
    a.trim()
    assert tensor.shape == (1000,) and tensor.sum() is not None


def test_frombuffer_of_a_view_holds_the_views_export(a: Arena) -> None:
    holds_an_export(a, lambda block: torch.frombuffer(memoryview(block), dtype=torch.float32))


def test_from_numpy(a: Arena) -> None:
    array = a.zeros((10, 100), "f4")
    tensor = torch.from_numpy(array)
    assert (tensor.data_ptr(), tuple(tensor.shape)) == (array.ctypes.data, (10, 100))
    tensor += 2
    assert array.sum() == 2000
    del array
    gc.collect()
    assert a.stats().blocks == 1
    del tensor
    gc.collect()
    assert a.stats().blocks == 0
    holds_an_export(a, lambda block: torch.from_numpy(np.frombuffer(block, "f8")))


def test_writing_a_tensor_faults_on_nothing(a: Arena) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # this thread's faults are what is counted
    try:
        assert faults_into(a, lambda view: torch.frombuffer(view, dtype=torch.float32).fill_(1.0)) == 0
    finally:
        torch.set_num_threads(threads)


def test_a_tensor_that_dies_in_a_thread_of_torch(a: Arena) -> None:
    """The backward pass drops what it has saved in a thread without the GIL."""
    block = a.alloc(4000, zero=True)
    leaf = torch.ones(1000, requires_grad=True)
    product = (leaf * torch.from_dlpack(block).view(torch.float32)).sum()
    gc.collect()
    with pytest.raises(BufferError):
        block.free()
    product.backward()
    gc.collect()
    block.free()
