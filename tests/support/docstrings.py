"""The docstrings of a module and of what it defines. doctest does not find those of an extension module's types."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
from collections.abc import Iterator
from types import ModuleType

_NAME = re.compile(r"\w+|\*+\w+")


def docstrings(module: ModuleType) -> Iterator[tuple[str, str]]:
    """Each with its qualified name: of the module, its classes and functions, and the members of its classes."""
    yield "", inspect.cleandoc(module.__doc__ or "")
    for name, value in vars(module).items():
        if getattr(value, "__module__", None) != module.__name__ or not (
            inspect.isclass(value) or inspect.isroutine(value)
        ):
            continue
        yield name, inspect.cleandoc(value.__doc__ or "")
        for member, inner in vars(value).items() if inspect.isclass(value) else ():
            if inspect.isroutine(inner) or inspect.isdatadescriptor(inner):
                yield f"{name}.{member}", inspect.cleandoc(inner.__doc__ or "")


def sections(text: str) -> dict[str, str]:
    """The sections of NumPy's format, by their headlines; the summary and what follows it are under ""."""
    parts = re.split(r"^(\w[\w ]*)\n-{3,}$", text, flags=re.MULTILINE)
    return {"": parts[0].strip(), **{parts[i]: parts[i + 1].strip("\n") for i in range(1, len(parts), 2)}}


def parameters(text: str) -> set[str]:
    """The names that the section of parameters explains."""
    lines = sections(text).get("Parameters", "").splitlines()
    return {name for line in lines if not line.startswith(" ") for name in _NAME.findall(line)}


def run_examples(name: str) -> None:
    """All examples of a module; AssertionError where one shows something else, or there is none."""
    runner = doctest.DocTestRunner()
    for of, text in docstrings(importlib.import_module(name)):
        module = importlib.import_module(name)
        runner.run(doctest.DocTestParser().get_doctest(text, dict(vars(module)), f"{name}.{of}", None, None))
    assert not runner.failures and runner.tries, f"{runner.failures} of {runner.tries} examples failed"
