"""The pytest plugin: a marker and a fixture for code that must not page-fault.

It is installed as ``pytest_arena``, and not in the package ``arena``, because pytest loads it in every run: it imports
nothing of arena before a test asks for it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import pytest

if TYPE_CHECKING:
    from arena import PageFaultError
    from arena.realtime import no_page_faults as _NoPageFaults

MARKER = """no_page_faults(allow_minor=0, *, where=True, warmup=3): call the test function `warmup` times, for what a
first run allocates, and then once more, in which a page fault of the test's thread fails it (see
arena.realtime.no_page_faults). Its fixtures are made once, so it has to be one that can be run again."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", " ".join(MARKER.split()))


@pytest.fixture
def no_page_faults() -> type[_NoPageFaults]:
    """arena.realtime.no_page_faults: a context manager that refuses the page faults of this thread."""
    from arena.realtime import no_page_faults as guard

    return guard


# The old kind of wrapper: a plugin that everybody's pytest loads does not insist on a new one.
@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    mark = item.get_closest_marker("no_page_faults")
    if mark is None or not isinstance(item, pytest.Function):
        yield
        return
    # Around the function itself, before a runner of coroutines takes it: neither that nor other plugins are watched.
    test = item.obj
    item.obj = _checked(test, *mark.args, **mark.kwargs)
    try:
        yield
    finally:
        item.obj = test


def _checked(
    test: Callable[..., Any], allow_minor: int = 0, *, where: bool | Literal["lines"] = True, warmup: int = 3
) -> Callable[..., Any]:
    from arena import PageFaultError
    from arena.realtime import no_page_faults as guard

    if warmup < 0:
        raise ValueError(f"warmup must be a number of calls from 0 on, not {warmup!r}")
    watched = guard(allow_minor, where=where)

    # Only the guard's own error is told in its own way: one from within the test is as any other.
    if inspect.iscoroutinefunction(test):

        @functools.wraps(test)
        async def waited(*args: Any, **kwargs: Any) -> None:
            for _ in range(warmup):
                await test(*args, **kwargs)
            ended, refused = False, None
            try:
                with watched:
                    await test(*args, **kwargs)
                    ended = True
            except PageFaultError as error:
                if not ended:
                    raise
                refused = error
            _fail(refused)

        return waited

    @functools.wraps(test)
    def called(*args: Any, **kwargs: Any) -> None:
        for _ in range(warmup):
            test(*args, **kwargs)
        ended, refused = False, None
        try:
            with watched:
                test(*args, **kwargs)
                ended = True
        except PageFaultError as error:
            if not ended:
                raise
            refused = error
        _fail(refused)

    return called


def _fail(error: PageFaultError | None) -> None:
    if error is not None:
        pytest.fail("\n".join([str(error), *(f"  {fault}" for fault in error.where[1:])]), pytrace=False)
