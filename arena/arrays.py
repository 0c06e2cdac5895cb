"""NumPy arrays whose memory is a block of an arena: what of it is not in the extension module."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, DTypeLike, NDArray

    from ._core import Arena

    _Shape = SupportsIndex | Sequence[SupportsIndex]

__all__ = ["array", "dimensions", "empty_like", "full", "numpy", "refusal"]


def numpy() -> Any:
    try:
        import numpy  # noqa: ICN001  (the module itself is what is returned)
    except ImportError:
        raise ImportError("arrays need NumPy: pip install 'sparse-arena[numpy]'") from None
    return numpy


def refusal(dtype: Any, where: str = "an arena") -> ValueError:
    """Make the exception that says why a dtype with ``hasobject`` cannot be had there."""
    if dtype.kind == "T":
        return ValueError(
            f"{where} cannot hold {dtype}: its strings are on a heap of NumPy's, and the array holds only where; take "
            "a string of fixed width, such as 'U20'"
        )
    return ValueError(f"{where} cannot hold Python objects (dtype {dtype}): nobody would count their references")


def dimensions(shape: _Shape) -> tuple[int, ...]:
    try:
        return (operator.index(shape),)  # type: ignore[arg-type]
    except TypeError:
        return tuple(operator.index(n) for n in shape)  # type: ignore[union-attr]


def empty_like(
    arena: Arena,
    prototype: ArrayLike,
    dtype: DTypeLike | None,
    order: Literal["C", "F", "A", "K"],
    shape: _Shape | None,
    align: Any,
) -> NDArray[Any]:
    """Make what np.empty_like with subok=False makes, in the arena."""
    like = numpy().asarray(prototype)
    dims = like.shape if shape is None else dimensions(shape)
    wanted = like.dtype if dtype is None else dtype
    if order == "A":
        order = "F" if like.flags.fnc else "C"
    elif order == "K":
        if like.flags.c_contiguous or len(dims) != like.ndim:
            order = "C"
        elif like.flags.f_contiguous:
            order = "F"
        else:
            # With the axes sorted by their strides, the longest first, the array is in C order; transposing it back
            # gives the prototype's order. The sign of a stride does not matter.
            axes = sorted(range(len(dims)), key=lambda i: -abs(like.strides[i]))
            made = arena.empty([dims[i] for i in axes], wanted, align=align)
            back = sorted(range(len(dims)), key=axes.__getitem__)
            # A sub-array dtype has added axes.
            strided: NDArray[Any] = made.transpose(*back, *range(len(dims), made.ndim))
            return strided
    elif order not in ("C", "F"):
        raise ValueError(f"order must be 'C', 'F', 'A' or 'K', not {order!r}")
    return arena.empty(dims, wanted, order, align=align)


def array(
    arena: Arena, obj: ArrayLike, dtype: DTypeLike | None, order: Literal["C", "F", "A", "K"], align: Any
) -> NDArray[Any]:
    """Make what np.array with copy=True and subok=False makes, in the arena."""
    np = numpy()
    wanted = None if dtype is None else np.dtype(dtype)
    if wanted is not None and wanted.hasobject:
        raise refusal(wanted)
    # Some dtypes depend on the values ("S", "M8"), and an object that is no array has to become one first.
    first = not isinstance(obj, np.ndarray) or (wanted is not None and wanted.kind not in "biufc")
    source = np.asarray(obj, wanted if first else None)
    like = obj if isinstance(obj, np.ndarray) else source
    made = empty_like(arena, like, source.dtype if first else wanted, order, source.shape, align)
    np.copyto(made, source, casting="unsafe")
    return made


def full(
    arena: Arena,
    shape: _Shape,
    fill_value: Any,
    dtype: DTypeLike | None,
    order: Literal["C", "F"],
    align: Any,
) -> NDArray[Any]:
    """Make an array of one value, whose dtype is that value's unless another is given."""
    np = numpy()
    made = arena.empty(shape, np.asarray(fill_value).dtype if dtype is None else dtype, order, align=align)
    np.copyto(made, fill_value, casting="unsafe")
    return made
