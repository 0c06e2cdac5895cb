"""What else takes a buffer, each on an arena's block: short functions, to be copied.

    python examples/neighbours.py [NAME ...]

A neighbour's object that holds an export keeps the block: free() is a BufferError until it is gone, and then the block
goes too. Three keep the block object but no export, so nothing stops an explicit free() under them:
np.ndarray(buffer=block), torch.frombuffer(block) and torch.asarray(block).

Cython and C need a compiler: tests/neighbours/test_cython.py has a typed memoryview, tests/api/capi the rest.
"""

from __future__ import annotations

import argparse
import gc
import mmap
import os
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from arena import Arena, Block


def structs(a: Arena) -> str:
    import struct

    block = a.alloc(16 * 1000)
    struct.pack_into("<Qd", block, 16 * 3, 7, 1.5)  # in place, at record 3
    words = memoryview(block).cast("Q", shape=[1000, 2])  # holds an export
    return f"record 3 is {struct.unpack_from('<Qd', block, 48)}, and {words[3, 0]} in a cast view of the same bytes"


def c_types(a: Arena) -> str:
    import ctypes

    block = a.alloc(4000, zero=True)
    numbers = (ctypes.c_uint32 * 1000).from_buffer(block)  # holds an export
    numbers[3] = 7
    return f"a C array at {ctypes.addressof(numbers):#x}; the block is at {block.address:#x}"


def cffi(a: Arena) -> str:
    from cffi import FFI

    ffi = FFI()
    block = a.alloc(4000, zero=True)
    numbers = ffi.from_buffer("uint32_t[]", block, require_writable=True)  # holds an export, until ffi.release()
    numbers[3] = 7
    return f"{len(numbers)} numbers at {int(ffi.cast('uintptr_t', numbers)):#x}; the block is at {block.address:#x}"


def readinto(a: Arena) -> str:
    block = a.alloc(os.path.getsize(__file__))
    with open(__file__, "rb", buffering=0) as file:  # unbuffered: the kernel writes into the block
        count = file.readinto(block)
    return f"{count} bytes of this file, {bytes(block).count(b'def ')} functions"


def o_direct(a: Arena) -> str:
    with tempfile.NamedTemporaryFile() as file:
        file.write(bytes(1 << 20))
        file.flush()
        fd = os.open(file.name, os.O_RDONLY | os.O_DIRECT)  # not by way of the page cache
        block = a.alloc("1MiB", align=mmap.PAGESIZE)  # which O_DIRECT needs
        count = os.preadv(fd, [block], 0)
        os.close(fd)
    return f"{count} bytes from the disk into pages at {block.address:#x}"


def sockets(a: Arena) -> str:
    import socket

    block = a.alloc(1000)
    here, there = socket.socketpair()
    with here, there:
        there.sendall(b"hello" * 200)
        count = here.recv_into(block, 0, socket.MSG_WAITALL)  # no bytes object in between
    return f"{count} bytes, {bytes(block[-5:])!r} at the end"


def inflate(compressed: bytes, block: Block) -> int:
    """zlib makes bytes, whatever one does: here of 64 KiB at most, however large the block is."""
    import zlib

    machine, done = zlib.decompressobj(), 0
    for start in range(0, len(compressed), 1 << 14):
        rest = compressed[start : start + (1 << 14)]
        while rest and not machine.eof:
            piece = machine.decompress(rest, 1 << 16)
            block[done : done + len(piece)] = piece  # ValueError where the block is too small
            done, rest = done + len(piece), machine.unconsumed_tail
    if not machine.eof:
        raise EOFError("the compressed data is cut short")
    return done


def zlib(a: Arena) -> str:
    from zlib import compress

    block = a.alloc("1MiB")
    count = inflate(compress(bytes(1 << 20)), block)
    return f"{count} bytes by way of pieces of 64 KiB"


def zstandard(a: Arena) -> str:
    import zstandard

    block = a.alloc("1MiB")
    with zstandard.ZstdDecompressor().stream_reader(zstandard.compress(bytes(1 << 20))) as stream:
        count = stream.readinto(block)  # decompresses into the block
    return f"{count} bytes"


def pickle5(a: Arena) -> str:
    import pickle

    sent: list[pickle.PickleBuffer] = []
    stream = pickle.dumps(a.alloc("1MiB"), protocol=5, buffer_callback=sent.append)  # copies nothing
    mine = a.alloc(sent[0].raw().nbytes)  # the receiver's, into which it reads what sent[0] holds
    received = pickle.loads(stream, buffers=[mine])
    return (
        f"{len(stream)} bytes of pickle; what comes out {'is' if received is mine else 'is not'} the receiver's block"
    )


def numpy(a: Arena) -> str:
    import numpy as np

    block = a.alloc(8000)
    np.frombuffer(memoryview(block), "f8")[:] = 1.5
    array = np.from_dlpack(block).view("f8")  # holds an export, as np.frombuffer(block) does; read-only before NumPy 2
    return f"the sum of {array.size} numbers is {array.sum()}"


def torch(a: Arena) -> str:
    import torch

    block = a.alloc(4000)
    tensor = torch.from_dlpack(block).view(torch.float32)  # holds an export; torch.frombuffer(block) does not
    tensor.fill_(1.5)
    other = torch.from_numpy(a.full((2, 3), 2.0))  # an array of the arena; holds it
    return f"the sum of {tensor.numel()} numbers is {tensor.sum():.0f}, and of an array's {other.sum():.0f}"


def arrow(a: Arena) -> str:
    import pyarrow as pa

    numbers = a.zeros(1000, "i8")
    array = pa.Array.from_buffers(pa.int64(), 1000, [None, pa.py_buffer(numbers)])  # holds an export
    return f"{len(array)} numbers of Arrow, {pa.total_allocated_bytes()} bytes of its own pool"


def arrow_ipc(a: Arena) -> str:
    import pyarrow as pa

    batch = pa.record_batch({"x": list(range(1000))})
    block = a.alloc(pa.ipc.get_record_batch_size(batch) + 4096)
    with pa.ipc.new_stream(pa.FixedSizeBufferWriter(pa.py_buffer(block)), batch.schema) as writer:
        writer.write_batch(batch)  # into the block: readinto() or recv_into() would do as well
    received = pa.ipc.open_stream(pa.py_buffer(block)).read_next_batch()  # no copy; holds an export
    return f"{received.num_rows} rows, at {received['x'].buffers()[1].address - block.address} in the block"


def numba(a: Arena) -> str:
    import numba

    @numba.njit("float64(float64[::1])")  # type: ignore[untyped-decorator]
    def fill(x: Any) -> Any:
        for i in range(x.size):
            x[i] = i
        return x.sum()

    return f"the sum is {fill(a.empty(1000)):.0f}"


def pillow(a: Arena) -> str:
    from PIL import Image

    block: Any = a.alloc(640 * 480 * 4, zero=True)
    image = Image.frombuffer("RGBX", (640, 480), block, "raw", "RGBX", 0, 1)  # no copy; "RGB" would be one
    image.readonly = 0  # else Pillow makes a copy before it writes
    image.paste((255, 0, 0), (0, 0, 10, 10))
    return f"the first pixel is {bytes(block[:3])!r} in the block"


def h5py(a: Arena) -> str:
    import h5py
    import numpy as np

    with h5py.File("memory.h5", "w", driver="core", backing_store=False) as file:
        file["x"] = np.arange(1000.0)
        array = a.empty(1000)
        file["x"].read_direct(array)  # HDF5 writes into the block
    return f"the last number is {array[-1]:.0f}"


def zarr(a: Arena) -> str:
    import numpy as np
    import zarr
    from zarr.buffer.cpu import NDBuffer

    stored = zarr.array(np.arange(1000.0), chunks=(100,))
    array = a.empty(1000)
    stored.get_basic_selection(..., out=NDBuffer(array))  # a chunk at a time is copied into it
    return f"the last number is {array[-1]:.0f}"


NEIGHBOURS: tuple[Callable[[Arena], str], ...] = (
    structs, c_types, cffi, readinto, o_direct, sockets, zlib, zstandard, pickle5,
    numpy, torch, arrow, arrow_ipc, numba, pillow, h5py, zarr,
)  # fmt: skip


def main() -> int:
    names = [example.__name__ for example in NEIGHBOURS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("name", nargs="*", help=f"of {', '.join(names)} (default: all)")
    wanted = parser.parse_args().name
    if unknown := set(wanted) - set(names):
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    with Arena("64MiB") as a:
        for example in NEIGHBOURS:
            if wanted and example.__name__ not in wanted:
                continue
            try:
                said = example(a)
            except ModuleNotFoundError as error:
                said = f"not installed: {error.name}"
            except OSError as error:  # a file system without O_DIRECT, for one
                said = f"not here: {error}"
            print(f"{example.__name__:<10} {said}", flush=True)
        gc.collect()
        print(f"and {a.stats().blocks} blocks are left of them")
    return 0


if __name__ == "__main__":
    sys.exit(main())
