"""NumPy arrays whose memory is a block of an arena."""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import DTypeLike, NDArray

    from ._core import Arena

__all__ = ["empty", "full"]


def numpy() -> Any:
    try:
        import numpy  # noqa: ICN001  (the module itself is what is returned)
    except ImportError:
        raise ImportError("arrays need NumPy: pip install 'sparse-arena[numpy]'") from None
    return numpy


def empty(
    arena: Arena,
    shape: SupportsIndex | Sequence[SupportsIndex],
    dtype: DTypeLike,
    order: Literal["C", "F"],
    align: int,
    zero: bool,
) -> NDArray[Any]:
    """A new array; its block is freed with the last view of it. The array holds an export, so the arena says
    BufferError to close and reset while it lives."""
    np = numpy()
    dt = np.dtype(dtype)
    if dt.hasobject:
        raise ValueError(f"an arena cannot hold Python objects (dtype {dt}): nobody would count their references")
    if order not in ("C", "F"):
        raise ValueError(f"order must be 'C' or 'F', not {order!r}")
    try:
        dims: tuple[int, ...] = (operator.index(shape),)  # type: ignore[arg-type]
    except TypeError:
        dims = tuple(operator.index(n) for n in shape)  # type: ignore[union-attr]
    if any(n < 0 for n in dims):
        raise ValueError("negative dimensions are not allowed")
    nbytes = math.prod(dims) * dt.itemsize
    if nbytes == 0:
        return np.empty(dims, dt, order)  # type: ignore[no-any-return]
    block = arena.alloc(nbytes, align=align, zero=zero)
    # By way of frombuffer, which holds an export while the array lives; ndarray(buffer=) would hold the block only.
    return np.ndarray(dims, dt, np.frombuffer(block, np.uint8), order=order)  # type: ignore[no-any-return]


def full(
    arena: Arena,
    shape: SupportsIndex | Sequence[SupportsIndex],
    fill_value: Any,
    dtype: DTypeLike | None,
    order: Literal["C", "F"],
    align: int,
) -> NDArray[Any]:
    """A new array of one value; its dtype is that value's unless said otherwise."""
    np = numpy()
    array = empty(arena, shape, np.asarray(fill_value).dtype if dtype is None else dtype, order, align, False)
    np.copyto(array, fill_value, casting="unsafe")
    return array
