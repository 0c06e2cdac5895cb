from collections.abc import Callable, Iterable
from contextvars import ContextVar
from os import PathLike, stat_result
from types import TracebackType
from typing import Any, Generic, TypeAlias, TypeVar

from typing_extensions import ParamSpec, Self, disjoint_base

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Path: TypeAlias = str | bytes | PathLike[str] | PathLike[bytes]

@disjoint_base
class Scope:
    """What was changed, as the steps that undo it."""
    def __init__(self) -> None: ...
    @property
    def thread(self) -> int:
        """The ident of the thread that made it."""
    @property
    def ended(self) -> bool:
        """Whether there is nothing to undo."""
    def at_end(self, undo: Callable[[], object]) -> None:
        """Call ``undo()`` at the end."""
    def do(self, undo: Callable[[], object], function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call ``function(*args)`` now and ``undo()`` at the end, unless the function raises."""
    def get(self, undo: Callable[[_T], object], function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Return what ``function(*args)`` returns, and call ``undo(what it returned)`` at the end."""
    def last(self, calls: Iterable[Callable[[], object]]) -> None:
        """Call each, in one step. When the first has gone well, nothing is undone any more."""
    def end(self) -> None:
        """Undo everything, the last first, even if a step raises; the first error is raised then."""
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

class Temporary(Scope):
    """A scope that ends in any case: with its block, or when nobody has it any more."""

@disjoint_base
class Owner:
    """A context manager that ends its scope."""
    def __init__(self, scope: Scope | None = None) -> None: ...
    @property
    def scope(self) -> Scope:
        """What is undone at the end."""
    def _begin(self) -> Any:
        """Begin, in subclasses: what this returns, __enter__() returns; when it raises, the scope ends."""
    def __enter__(self) -> Any: ...
    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None: ...

class OwnerInThread(Owner):
    """An owner whose changes are its thread's: the ``with`` ends in the thread that began it."""

@disjoint_base
class Ledger(Generic[_T]):
    """What several scopes want of something that the process has once."""
    def __init__(self, apply: Callable[[list[_T], bool], object], *, inherited: bool = True) -> None: ...
    @property
    def last(self) -> Scope | None:
        """The scope whose wish came last, or None."""
    @property
    def lost(self) -> bool:
        """Whether this is the child of a fork whose parent had wishes that it did not inherit."""
    def __contains__(self, scope: Scope, /) -> bool: ...
    def __len__(self) -> int: ...
    def enter(self, scope: Scope, wish: _T) -> None:
        """Have a wish in force until the scope ends."""
    def leave(self, scope: Scope) -> None:
        """Undo enter(). What ``apply`` raises is raised, and the wish is gone all the same."""

def unwind(stack: list[Scope], scope: Scope) -> None:
    """End what was put on the stack after this scope, the last first, and take this scope off."""

def swap_in_context(
    scope: Scope, variable: ContextVar[tuple[Any, ...]], swap: Callable[[Any], object], value: object
) -> None:
    """Have ``swap(value)``, which returns what it replaces, in force until the scope ends."""

def call_swapped(
    variable: ContextVar[tuple[Any, ...]],
    swap: Callable[[Any], object],
    value: object,
    function: Callable[..., _T],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> _T:
    """Call ``function(*args, **kwargs)`` between swap_in_context() and the end of its scope."""

def close(fd: int) -> None:
    """Close a descriptor."""

def create(files: Scope, new: Scope, path: _Path, flags: int) -> int:
    """Make a new file and return its descriptor, which is closed when `files` ends."""

def remove(path: _Path, status: stat_result) -> None:
    """Remove a file, if it still is the one of this stat_result."""

def write_zeros(fd: int, at: int, stop: int) -> None:
    """Write zeros from one place in a file to another."""
