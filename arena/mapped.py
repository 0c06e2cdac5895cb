"""np.memmap whose pages are there: :func:`memmap`."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import math
import operator
import os
import stat
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, overload

from . import arrays, errors
from ._core import Reservation
from ._scope import Scope, Temporary, close, create, write_zeros

if TYPE_CHECKING:
    from typing import Literal, Protocol, SupportsIndex, TypeAlias, TypeVar

    import numpy as np
    from numpy.typing import DTypeLike

    class _File(Protocol):
        def fileno(self) -> int: ...

    _Path: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes] | _File
    _Mode: TypeAlias = Literal["r", "c", "r+", "w+", "readonly", "copyonwrite", "readwrite", "write"]
    _Shape: TypeAlias = SupportsIndex | Sequence[SupportsIndex]
    _Scalar = TypeVar("_Scalar", bound=np.generic)

__all__ = ["memmap"]

_MODES = {"readonly": "r", "copyonwrite": "c", "readwrite": "r+", "write": "w+"}


class _Open(NamedTuple):
    fd: int
    seek: int | None
    """A descriptor of the file whose position nobody else moves or minds; None where there is none."""


@overload
def memmap(
    filename: _Path,
    *,
    mode: _Mode = ...,
    offset: SupportsIndex = ...,
    shape: _Shape | None = ...,
    order: Literal["C", "F"] = ...,
) -> np.memmap[Any, np.dtype[np.uint8]]: ...
@overload
def memmap(
    filename: _Path,
    dtype: type[_Scalar] | np.dtype[_Scalar],
    mode: _Mode = ...,
    offset: SupportsIndex = ...,
    shape: _Shape | None = ...,
    order: Literal["C", "F"] = ...,
) -> np.memmap[Any, np.dtype[_Scalar]]: ...
@overload
def memmap(
    filename: _Path,
    dtype: DTypeLike,
    mode: _Mode = ...,
    offset: SupportsIndex = ...,
    shape: _Shape | None = ...,
    order: Literal["C", "F"] = ...,
) -> np.memmap[Any, np.dtype[Any]]: ...
def memmap(
    filename: _Path,
    dtype: DTypeLike = "u1",
    mode: _Mode = "r",
    offset: SupportsIndex = 0,
    shape: _Shape | None = None,
    order: Literal["C", "F"] = "C",
) -> np.memmap[Any, np.dtype[Any]]:
    """Make an array that is a part of a file, as np.memmap does, but with its pages present.

    There is no page fault later, and what would be a SIGBUS later is an exception here. The pages of the array are
    mapped in, and no others of the file. They stay until the kernel needs the memory of a file's clean pages; dirty
    ones, once it has written them back, fault at the next write.

    Parameters
    ----------
    filename
        A path, or an open file, whose position stays where it is.
    dtype
        Any dtype without Python objects.
    mode
        "r": for reading; the default here, where np.memmap's is "r+", for nothing is to be made dirty, allocated or
        copied that was not asked for.
        "r+": for writing. Holes in the file are allocated first, every page is made dirty, and flush() has them on the
        disk, or raises.
        "c": copy-on-write, copied here and now. What is written to the file later is not seen.
        "w+": makes a file, or overwrites it: of exactly this size, zero, and allocated. When that fails, what was there
        is kept (for which it is read in first), and a file that was not there is removed. To clear the old file is the
        last step, and one that a signal handler's exception finds done, or not begun; but an I/O error in it, before
        `offset`, finds it half done.
        np.memmap's longer names do too.
    offset
        Bytes from the file's beginning to the array. They need not be a multiple of anything.
    shape
        By default all that the file has from there on, in one dimension. With "w+" the shape has to be given.
    order
        "C" or "F".

    Returns
    -------
    numpy.memmap
        The mapping goes with the last view of the array.

    Raises
    ------
    ValueError
        The arguments make no sense, or the file is too short: none is made longer, but by "w+".
    OSError
        The file cannot be opened, or is a folder, pipe or socket.
    CommitError
        (An OSError and a MemoryError.) The file's pages cannot be had: there is a hole in it and the file system is
        full (some of its holes may be allocated then), or there is no memory for the copies.
    ImportError
        There is no NumPy.

    Notes
    -----
    Whoever can write to the file can still truncate it later, which takes the pages away in every mode.

    Examples
    --------
    >>> import tempfile
    >>> import arena
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     x = arena.memmap(file, "f8", "w+", shape=(2, 3))
    ...     x[1, 2] = 5
    ...     arena.memmap(file, "f8").sum()
    np.float64(5.0)
    """
    np = arrays.numpy()
    dt = np.dtype(dtype)
    if dt.hasobject:
        raise arrays.refusal(dt, "a file")
    if dt.itemsize == 0:
        raise ValueError(f"items of dtype {dt} have no size: give one, such as '{dt.kind}8'")
    how = _MODES.get(mode, mode)
    if how not in _MODES.values():
        raise ValueError(f"mode must be one of 'r', 'c', 'r+', 'w+', not {mode!r}")
    if order not in ("C", "F"):
        raise ValueError(f"order must be 'C' or 'F', not {order!r}")
    start = operator.index(offset)
    dims = None if shape is None else arrays.dimensions(shape)
    if start < 0 or (dims and min(dims) < 0):
        raise ValueError(f"negative offsets and dimensions are not allowed: {offset}, {shape}")
    if dims is None and how == "w+":
        raise ValueError("shape must be given if mode is 'w+': there may be no file yet to say it")

    with Temporary() as files, Scope() as new:
        file, path = _opened(files, new, filename, how)
        fd = file.fd
        name = os.fsdecode(path) if isinstance(path, (str, bytes)) else "the file"
        status = os.fstat(fd)
        if not (stat.S_ISREG(status.st_mode) or (how != "w+" and _is_device(status.st_mode))):
            code = errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.ENODEV
            raise OSError(
                code, f"{os.strerror(code)}: an array can be a part of a file, and of no folder or pipe", name
            )
        # The length of a device is not known.
        has = status.st_size if stat.S_ISREG(status.st_mode) else None
        if dims is None:
            if has is None:
                raise ValueError(f"{name} is a device, whose length is not known: give shape=")
            if start > has:
                raise ValueError(f"{name} is {has} bytes long, and has nothing at offset {start}")
            if (has - start) % dt.itemsize:
                raise ValueError(
                    f"{name} has {has - start} bytes from offset {start} on, which is no multiple of the "
                    f"{dt.itemsize} of dtype {dt}: give shape="
                )
            dims = ((has - start) // dt.itemsize,)
        nbytes = math.prod(dims) * dt.itemsize
        end = start + nbytes
        if end >= 1 << 63:
            raise ValueError("the array is too big: more than 2^63 - 1 bytes")
        if how != "w+" and has is not None and has < end:
            raise ValueError(
                f"{name} is {has} bytes long, and offset and shape ask for {end}: it is not made longer; mode 'w+' "
                "would make a new one of that size"
            )

        def over(buffer: object | None) -> Any:
            return np.ndarray.__new__(np.memmap, dims, dt, buffer, order=order)

        last: list[Callable[[], object]] = []
        if how == "w+":
            array, last = _overwritten(new, file, status.st_size, start, nbytes, over)
        elif nbytes:
            array = over(_mapped(file, how, start, nbytes))
        else:
            array = over(None)
            array.flags.writeable = how != "r"
        # np.memmap's constructor leaves these so. The base has flush(), and NumPy asks whether _mmap is None.
        array._mmap = array.base
        array.offset, array.mode, array.filename = start, how, None
        if isinstance(filename, os.PathLike):
            resolve = getattr(filename, "resolve", None)
            array.filename = resolve() if resolve else os.path.abspath(filename)
        elif isinstance(path, str):
            array.filename = os.path.abspath(path)
        try:
            new.last(last)
        except OSError as error:
            if os.fstat(fd).st_size > end:
                raise _cannot_resize(error, end) from None
            raise
        return array  # type: ignore[no-any-return]


def _is_device(mode: int) -> bool:
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


def _opened(files: Scope, new: Scope, filename: _Path, mode: str) -> tuple[_Open, Any]:
    """Open the file until ``files`` ends, and return it with its name. A new file is removed when ``new`` ends."""
    given: Any = filename
    if hasattr(given, "fileno"):
        if hasattr(given, "flush"):
            given.flush()
        return _reopened(files, given.fileno(), mode), getattr(given, "name", None)
    path = os.fspath(given)
    # O_NONBLOCK: open() does not wait for whoever is at the other end of a pipe.
    flags = (os.O_RDWR if "+" in mode else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    fd = files.get(close, os.open, path, flags) if mode != "w+" else _made(files, new, os.path.realpath(path), flags)
    return _Open(fd, fd), path


def _reopened(files: Scope, fd: int, mode: str) -> _Open:
    """Open the same file once more, with a position of its own: looking for holes moves it."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    if "+" not in mode or not stat.S_ISREG(os.fstat(fd).st_mode):
        return _Open(fd, None)
    try:
        own = files.get(close, os.open, f"/proc/self/fd/{fd}", flags & os.O_ACCMODE | os.O_CLOEXEC)
    except OSError:  # there is no /proc, or the right to the file came with the descriptor alone
        if flags & os.O_APPEND:  # pwrite(2) would append
            raise
        return _Open(fd, None)
    return _Open(own, own)


def _made(files: Scope, new: Scope, path: str | bytes, flags: int) -> int:
    """Open a file for reading and writing, and make it if there is none."""
    for _ in range(8):  # somebody may make and remove it in between
        with contextlib.suppress(FileNotFoundError):
            return files.get(close, os.open, path, flags)
        with contextlib.suppress(FileExistsError):
            return create(files, new, path, flags)
    raise FileExistsError(errno.EEXIST, "somebody else makes and removes it at this moment", path)


def _mapped(file: _Open, mode: str, start: int, nbytes: int) -> Any:
    """Map the pages, make them present, and return the object that exports them and keeps them mapped."""
    reading, shared = mode == "r", mode != "c"
    if shared and not reading:
        _room(file, start, nbytes)
    r = Reservation(start + nbytes, fd=file.fd, shared=shared, readonly=reading)
    try:
        r.commit(nbytes, offset=start, populate="read" if reading else "write")
        # The memoryview itself has a release(), which would pull the memory away from under the array.
        return r.view(nbytes, offset=start, readonly=reading).obj
    except BaseException:
        r.close()
        raise


def _room(file: _Open, start: int, nbytes: int) -> None:
    """Refuse at once what a file system cannot possibly have, rather than when it is full."""
    fd = file.fd
    there, status = os.fstatvfs(fd), os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or not there.f_blocks:
        return
    free = there.f_bfree * there.f_frsize
    # Blocks that are allocated but not written may count as a hole, and compressed data as not allocated.
    lacking = min(
        nbytes - status.st_blocks * 512,
        sum(stop - at for at, stop in _parts(file, start, start + nbytes, holes=True)),
    )
    if lacking <= free:
        return
    where = os.path.realpath(f"/proc/self/fd/{fd}")
    while not os.path.ismount(where):
        where = os.path.dirname(where)
    numbers: dict[str, int | None] = {"offset": start, "requested": lacking, "committed": 0, "available": free}
    raise errors.commit_error(errno.ENOSPC, "statvfs", where, numbers)


def _resize(fd: int, size: int) -> None:
    try:
        os.ftruncate(fd, size)
    except OSError as error:
        raise _cannot_resize(error, size) from None


def _cannot_resize(error: OSError, size: int) -> OSError:
    hint = {
        errno.EFBIG: "a file may not be that long here: raise RLIMIT_FSIZE (ulimit -f), or ask for less",
        errno.EINVAL: "the file has to be open for writing, and on hugetlbfs to be of whole huge pages",
        errno.EPERM: "its size is sealed",
    }.get(error.errno or 0, "its size cannot be set")
    return OSError(error.errno, f"cannot make the file {size} bytes long: {error.strerror}; {hint}")


def _overwritten(
    new: Scope, file: _Open, has: int, start: int, nbytes: int, over: Callable[[object], Any]
) -> tuple[Any, list[Callable[[], object]]]:
    """Make the array over a file of that size, and return it with the last steps, after which it is all zeros. What can
    fail comes first: clearing pages that are present cannot."""
    end = start + nbytes
    if new.ended:  # a file that was made for this is removed
        new.at_end(functools.partial(_put_back, file.fd, has, end, _parts(file, start, min(has, end), holes=True)))
    if end > has:
        _resize(file.fd, end)
    array = over(_allocated(file, start, nbytes) if nbytes else None)
    last: list[Callable[[], object]] = []
    if end < has:
        last.append(functools.partial(os.ftruncate, file.fd, end))
    # What lies before the array is not in its mapping, so it is written through the file.
    last += [functools.partial(write_zeros, file.fd, at, stop) for at, stop in _parts(file, 0, min(has, start))]
    if nbytes and has > start:
        np = arrays.numpy()
        last.append(functools.partial(np.ndarray((min(has, end) - start,), np.uint8, array.base).fill, 0))
    return array, last


def _put_back(fd: int, has: int, end: int, holes: Sequence[tuple[int, int]]) -> None:
    with contextlib.suppress(OSError):  # the size could not be set
        if end > has:
            os.ftruncate(fd, has)
    with contextlib.suppress(OSError):  # such a file system does not take back what was allocated
        _punch(fd, holes)


def _allocated(file: _Open, start: int, nbytes: int) -> Any:
    try:
        return _mapped(file, "w+", start, nbytes)
    except errors.CommitError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
    # The file system cannot allocate ahead. The file is ours to overwrite, so zeros can be written into it.
    for at, stop in _parts(file, start, start + nbytes, holes=True):
        write_zeros(file.fd, at, stop)
    return _mapped(file, "w+", start, nbytes)


def _punch(fd: int, parts: Sequence[tuple[int, int]]) -> None:
    if parts:
        with Reservation(parts[-1][1], fd=fd, shared=True) as r:
            for at, stop in parts:
                r.release(stop - at, offset=at, discard=True)


def _parts(file: _Open, at: int, end: int, *, holes: bool = False) -> list[tuple[int, int]]:
    """Return the parts of the file between two places that have data, or that are holes."""
    first, then = (os.SEEK_HOLE, os.SEEK_DATA) if holes else (os.SEEK_DATA, os.SEEK_HOLE)
    if file.seek is None:
        return [] if holes or at >= end else [(at, end)]
    seek, found = file.seek, []

    def sought(start: int, whence: int) -> int:
        try:
            return min(os.lseek(seek, start, whence), end)
        except OSError as error:
            # There is no more data (ENXIO), or the file system does not tell: then all counts as data.
            none = error.errno == errno.ENXIO
            return start if whence == os.SEEK_DATA and not none else end

    while at < end:
        start = sought(at, first)
        at = sought(start, then) if start < end else end
        if at > start:
            found.append((start, at))
    return found
