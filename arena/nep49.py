"""NumPy's own allocations in an arena, by its data handlers (NEP 49, NumPy 1.22 and later).

    with a.numpy_allocations():
        c = x * y + z  # c, and the temporaries of the expression, are in the arena

What NumPy allocates for arrays in this context, and in contexts that are copied from it, is memory of the arena:
64-byte aligned, present, kept when it is freed. The functions are C, and ask for no Python. An array keeps the handler
that allocated it, and the handler the arena: arrays live on after the ``with`` and after the arena's close(), whose
mapping goes with the last of them, and are freed from whichever thread. ``a.reset()`` says BufferError while there are
any. In a context whose arena was closed NumPy allocates by malloc, and one RuntimeWarning says so.

The handler is a context variable of NumPy's. asyncio tasks and ``asyncio.to_thread`` inherit it; a new thread starts
with NumPy's own allocator (but Python 3.14 can have threads inherit: ``-X thread_inherit_context``), as do the workers
of concurrent.futures. :func:`carried` takes it along. A fork's child that may not allocate (``fork="drop"``, shared
memory) has MemoryErrors from NumPy until it uninstalls, or memory of malloc's with ``overflow="malloc"``.

Memory is populated with the GIL released. What a signal handler raises meanwhile ends the request: NumPy says
MemoryError, and the exception follows at the next bytecode. Nothing is gained for small arrays, which NumPy's own cache
serves as fast.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeAlias, TypeVar

from . import _core
from ._core import Arena
from ._scope import Owner, call_swapped, swap_in_context

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["allocations", "arena_of", "carried", "install", "installed", "uninstall"]

P = ParamSpec("P")
R = TypeVar("R")
_Overflow: TypeAlias = Literal["raise", "malloc"]

# The scopes that have swapped NumPy's handler in this context, each with the handler that was there before.
_swapped: contextvars.ContextVar[tuple[object, ...]] = contextvars.ContextVar("arena.nep49")


def _handler(arena: Arena, overflow: _Overflow) -> object:
    if not isinstance(arena, Arena):
        raise TypeError(f"an arena.Arena is wanted, not {type(arena).__name__}")
    if overflow not in ("raise", "malloc"):
        raise ValueError(f"overflow must be 'raise' or 'malloc', not {overflow!r}")
    if arena.closed:
        raise ValueError("the arena is closed")
    return _core.numpy_handler(arena, overflow == "malloc")


class allocations(Owner, contextlib.ContextDecorator):
    """What :meth:`Arena.numpy_allocations` is.

    Blocks may end in any order (those of two generators): each takes itself out, and what began later stays. Where a
    block is left in another context than it was entered in (an asynchronous generator that is closed elsewhere), that
    one's allocator is left alone. An exception from a signal handler comes before NumPy's allocator has changed, or in
    the block.

    Parameters
    ----------
    arena
        Where NumPy is to allocate.
    overflow
        What the arena cannot give is a MemoryError of NumPy's ("raise"), or memory of malloc's ("malloc").

    Raises
    ------
    ValueError, TypeError
        When it is entered: the arena is closed, or `overflow` or `arena` is nonsense.
    ImportError
        When it is entered: there is no NumPy, or one before 1.22.
    MemoryError
        When it is entered: malloc has no memory for the handler. In the block: the arena has none for an array.

    Examples
    --------
    >>> import numpy as np
    >>> from arena import Arena, nep49
    >>> a = Arena("64MiB")
    >>> with nep49.allocations(a):
    ...     x = np.ones(1000)
    >>> nep49.arena_of(x) is a
    True
    """

    def __init__(self, arena: Arena, *, overflow: _Overflow = "raise") -> None:
        super().__init__()
        self._arena = arena
        self._overflow: _Overflow = overflow

    def _begin(self) -> Arena:
        if not self.scope.ended:
            raise RuntimeError("this block of numpy_allocations() has not ended yet: call it again for another")
        swap_in_context(self.scope, _swapped, _core.swap_numpy_handler, _handler(self._arena, self._overflow))
        return self._arena

    def _recreate_cm(self) -> allocations:
        return allocations(self._arena, overflow=self._overflow)


def install(arena: Arena, *, overflow: _Overflow = "raise") -> None:
    """Have what NumPy allocates from now on in this context, and in copies of it, come from the arena.

    Parameters
    ----------
    arena
        Where NumPy is to allocate.
    overflow
        As for :class:`allocations`.

    Raises
    ------
    ValueError, TypeError
        The arena is closed, or the arguments make no sense.
    ImportError
        There is no NumPy, or one before 1.22.
    MemoryError
        malloc has no memory for the handler.

    Examples
    --------
    >>> import numpy as np
    >>> from arena import Arena, nep49
    >>> a = Arena("64MiB")
    >>> nep49.install(a)
    >>> nep49.arena_of(np.ones(1000)) is a
    True
    >>> nep49.uninstall()
    """
    _core.swap_numpy_handler(_handler(arena, overflow))


def uninstall() -> None:
    """Give NumPy its own allocator again, in this context.

    Raises
    ------
    ImportError
        There is no NumPy, or one before 1.22.
    """
    _core.swap_numpy_handler(None)


def installed() -> Arena | None:
    """Return the arena that NumPy allocates in now, in this context.

    Returns
    -------
    Arena or None
        None: NumPy's own allocator, or somebody else's, is in force.

    Raises
    ------
    ImportError
        There is no NumPy, or one before 1.22.

    Examples
    --------
    >>> from arena import Arena, nep49
    >>> a = Arena("64MiB")
    >>> with a.numpy_allocations():
    ...     nep49.installed() is a
    True
    """
    return _core.arena_of_numpy_handler(_core.numpy_handler_of_now())


def carried(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function that runs with NumPy's allocator of here and now, whichever thread calls it.

    Parameters
    ----------
    function
        What the thread is to do.

    Returns
    -------
    callable
        For ``Thread(target=carried(work))`` and ``pool.map(carried(work), items)``.

    Raises
    ------
    ImportError
        There is no NumPy, or one before 1.22.

    Examples
    --------
    >>> import threading
    >>> from arena import Arena, nep49
    >>> a = Arena("64MiB")
    >>> found = []
    >>> with a.numpy_allocations():
    ...     thread = threading.Thread(target=nep49.carried(lambda: found.append(nep49.installed())))
    ...     thread.start()
    ...     thread.join()
    >>> found == [a]
    True
    """
    handler = _core.numpy_handler_of_now()

    @functools.wraps(function)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        return call_swapped(_swapped, _core.swap_numpy_handler, handler, function, args, kwargs)

    return inside


def arena_of(array: NDArray[Any]) -> Arena | None:
    """Return the arena whose memory an array is in, whoever allocated it.

    Parameters
    ----------
    array
        A NumPy array.

    Returns
    -------
    Arena or None
        None: it is other memory.

    Raises
    ------
    TypeError
        It is no array.

    Examples
    --------
    >>> import numpy as np
    >>> from arena import Arena, nep49
    >>> a = Arena("64MiB")
    >>> nep49.arena_of(a.empty(10)[2:]) is a, nep49.arena_of(np.empty(10)) is None
    (True, True)
    """
    try:
        address = array.__array_interface__["data"][0]
    except (AttributeError, KeyError, TypeError):
        raise TypeError(f"a NumPy array is wanted, not {type(array).__name__}") from None
    return _core.arena_at(address)
