"""What is public says what it does, in NumPy's format, and the stubs say the same."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
from docstrings import docstrings, parameters, sections

import arena
from arena import cli, doctor, nep49, realtime

ORDER = ["Parameters", "Attributes", "Returns", "Raises", "Notes", "Examples"]
STUBS = Path(arena.__file__).resolve().parent


def described(value: object) -> bool:
    return inspect.isclass(value) or inspect.isroutine(value) or inspect.isdatadescriptor(value)


def public() -> Iterator[tuple[str, str]]:
    """The docstring of every public class, function, method and property, with its name."""
    for module in (arena, realtime, nep49, doctor, cli):
        for name in module.__all__:
            value = getattr(module, name)
            if not described(value):
                continue  # __version__, and types that are no classes
            yield f"{module.__name__}.{name}", inspect.getdoc(value) or ""
            # A tuple's fields are not documented one by one.
            members = vars(value) if inspect.isclass(value) and not issubclass(value, tuple) else {}
            for member, inner in members.items():
                if described(inner) and not member.startswith("_"):
                    yield f"{module.__name__}.{name}.{member}", inspect.getdoc(inner) or ""


def fault_of(text: str) -> str:
    """What is wrong with the form of a docstring, or nothing."""
    if not text:
        return "there is none"
    summary, *rest = text.splitlines()
    if not summary.endswith("."):
        return f"the summary is not one line: {summary}"
    if rest and rest[0]:
        return "no empty line follows the summary"
    found = [name for name in sections(text) if name]
    if found != [name for name in ORDER if name in found]:
        return f"its sections are {found}, and should be some of {ORDER}, in that order"
    return ""


def test_everything_public_has_a_docstring_in_the_format() -> None:
    faults = {name: fault_of(text) for name, text in public()}
    assert len(faults) > 100
    assert not {name: fault for name, fault in faults.items() if fault}


def in_stub(tree: ast.Module) -> Iterator[tuple[str, str, set[str]]]:
    """Name, docstring and arguments of each class, function and public method. Of overloads the first counts; what a
    constructor takes is its class's."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, ast.get_docstring(node) or "", set()
        if not isinstance(node, ast.ClassDef):
            continue
        taken: dict[str, set[str]] = {}
        said: dict[str, str] = {}
        for inner in node.body:
            if isinstance(inner, ast.FunctionDef):
                taken.setdefault(inner.name, set()).update(a.arg for a in inner.args.args[1:] + inner.args.kwonlyargs)
                said.setdefault(inner.name, ast.get_docstring(inner) or "")
        yield node.name, ast.get_docstring(node) or "", taken.get("__new__") or taken.get("__init__") or set()
        for name, text in said.items():
            if not name.startswith("_"):
                yield f"{node.name}.{name}", text, taken[name]


@pytest.mark.parametrize("name", ["_core", "_realtime", "_scope"])
def test_the_stub_says_the_same(name: str) -> None:
    """Its summaries are those of the module, which explains every argument that the stub has."""
    texts = dict(docstrings(importlib.import_module(f"arena.{name}")))
    tree = ast.parse((STUBS / f"{name}.pyi").read_text(encoding="utf-8"))
    other, unexplained = {}, {}
    for of, text, arguments in in_stub(tree):
        if of.partition(".")[0] not in texts:
            continue  # a protocol, or another type that is not there at run time
        if not text or text.splitlines()[0] != texts[of].partition("\n")[0]:
            other[of] = text
        if name != "_scope" and not arguments <= parameters(texts[of]):  # that one is nobody's but ours
            unexplained[of] = arguments - parameters(texts[of])
    assert not other
    assert not unexplained
