"""A block's guard as a decorator."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .._realtime import count_page_faults


def guarded(guard: count_page_faults, function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function each call of which is a block of the guard."""
    if not callable(function):
        raise TypeError(f"{type(guard).__name__} decorates functions, not {function!r}; its arguments are keywords")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(
            f"{function.__qualname__}() is a generator, whose consumer runs in between: put a "
            f"`with {type(guard).__name__}():` around what matters inside it"
        )
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def waited(*args: Any, **kwargs: Any) -> Any:
            # Calls overlap, so each has a guard of its own.
            with guard._fresh():
                return await function(*args, **kwargs)

        return waited

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        with guard:
            return function(*args, **kwargs)

    return called
