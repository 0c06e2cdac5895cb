"""NumPy's own allocations in an arena, by its data handlers (NEP 49, NumPy 1.22 and later).

    with a.numpy_allocations():
        c = x * y + z  # c, and the temporaries of the expression, are in the arena

What NumPy allocates for arrays in this context, and in contexts that are copied from it, is memory of the arena:
64-byte aligned, present, kept when it is freed. The functions are C, and ask for no Python. An array keeps the handler
that allocated it, and the handler the arena: arrays live on after the ``with`` and after the arena's close(), whose
mapping goes with the last of them, and are freed from whichever thread. ``a.reset()`` says BufferError while there are
any.

The handler is a context variable of NumPy's. asyncio tasks and ``asyncio.to_thread`` inherit it; a new thread starts
with NumPy's own allocator (but Python 3.14 can have threads inherit: ``-X thread_inherit_context``), as do the workers
of concurrent.futures. :func:`carried` takes it along. A fork's child that may not allocate (``fork="drop"``, shared
memory) has MemoryErrors from NumPy until it uninstalls, or memory of malloc's with ``overflow="malloc"``.

Memory is populated with the GIL released. What a signal handler raises meanwhile ends the request: NumPy says
MemoryError, and the exception follows at the next bytecode. Nothing is gained for small arrays, which NumPy's own cache
serves as fast.
"""

from __future__ import annotations

import contextvars
import functools
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeAlias, TypeVar

from . import _numpy
from ._core import Arena

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["allocations", "arena_of", "carried", "install", "installed", "uninstall"]

P = ParamSpec("P")
R = TypeVar("R")
_Overflow: TypeAlias = Literal["raise", "malloc"]

# Set by each `allocations`, for its token knows whether we are still in the context that it was set in.
_mark: contextvars.ContextVar[object] = contextvars.ContextVar("arena.nep49")


def _handler(arena: Arena, overflow: _Overflow) -> object:
    if not isinstance(arena, Arena):
        raise TypeError(f"an arena.Arena is wanted, not {type(arena).__name__}")
    if overflow not in ("raise", "malloc"):
        raise ValueError(f"overflow must be 'raise' or 'malloc', not {overflow!r}")
    if arena.closed:
        raise ValueError("the arena is closed")
    return _numpy.numpy_handler(arena, overflow == "malloc")


@contextmanager
def allocations(arena: Arena, *, overflow: _Overflow = "raise") -> Generator[Arena, None, None]:
    """What :meth:`Arena.numpy_allocations` is. Where it is left in another context than it was entered in (an
    asynchronous generator that is closed elsewhere), that one's allocator is left alone."""
    before = _numpy.swap_numpy_handler(_handler(arena, overflow))
    token = _mark.set(arena)
    try:
        yield arena
    finally:
        try:
            _mark.reset(token)
        except ValueError:  # made in a different Context
            pass
        else:
            _numpy.swap_numpy_handler(before)


def install(arena: Arena, *, overflow: _Overflow = "raise") -> None:
    """What NumPy allocates from now on in the current context, and in copies of it, is in the arena."""
    _numpy.swap_numpy_handler(_handler(arena, overflow))


def uninstall() -> None:
    """NumPy's own allocator again, in the current context."""
    _numpy.swap_numpy_handler(None)


def installed() -> Arena | None:
    """The arena that NumPy allocates in now, in this context."""
    return _numpy.arena_of_numpy_handler(_numpy.numpy_handler_of_now())


def carried(function: Callable[P, R]) -> Callable[P, R]:
    """The function, with NumPy's allocator of here and now, whichever thread calls it:
    ``Thread(target=carried(work))``, ``pool.map(carried(work), items)``."""
    handler = _numpy.numpy_handler_of_now()

    @functools.wraps(function)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        before = _numpy.swap_numpy_handler(handler)
        try:
            return function(*args, **kwargs)
        finally:
            _numpy.swap_numpy_handler(before)

    return inside


def arena_of(array: NDArray[Any]) -> Arena | None:
    """The arena whose memory the array is in, whoever allocated it. None: other memory."""
    try:
        address = array.__array_interface__["data"][0]
    except (AttributeError, KeyError, TypeError):
        raise TypeError(f"a NumPy array is wanted, not {type(array).__name__}") from None
    return _numpy.arena_at(address)
