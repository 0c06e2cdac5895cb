"""The sizes of an arena, of its chunks and pages, as they depend on each other: a table."""

from __future__ import annotations

import pytest
from core._core import GIB, HUGE, KIB, MIB, PAGE, ffi, library

pytestmark = pytest.mark.slow  # the same on every CPython

TIB = 1 << 40
AUTO, SMALL, THP, HUGETLB = range(4)


def chosen(
    size: int, chunk: int = 0, pages: int = AUTO, page_bytes: int = 0, page: int = 0, readonly: bool = False
) -> object:
    config = ffi.new("struct arena_config *", {"chunk": chunk})
    r = config.reservation
    r.size, r.pages, r.page_bytes, r.readonly = size, pages, page_bytes, readonly
    g = library().choose_geometry(config, page)
    return ffi.string(g.refused).decode() if g.rc else (g.size, g.chunk, g.page, g.page_bytes)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        # A chunk is a huge page, but for small arenas.
        ({"size": GIB}, (GIB, HUGE, PAGE, 0)),
        ({"size": GIB + 1}, (GIB + HUGE, HUGE, PAGE, 0)),
        ({"size": HUGE}, (HUGE, HUGE, PAGE, 0)),
        ({"size": HUGE - 1}, (HUGE, MIB, PAGE, MIB)),
        ({"size": 100 * KIB}, (128 * KIB, 64 * KIB, PAGE, 64 * KIB)),
        ({"size": 1}, (PAGE, PAGE, PAGE, PAGE)),
        ({"size": 1, "pages": SMALL}, (PAGE, PAGE, PAGE, 0)),
        # A chunk that was asked for is what it is.
        ({"size": 1, "chunk": HUGE}, (HUGE, HUGE, PAGE, 0)),
        ({"size": GIB, "chunk": 64 * KIB}, (GIB, 64 * KIB, PAGE, 64 * KIB)),
        ({"size": GIB, "chunk": GIB}, (GIB, GIB, PAGE, 0)),
        # It is not less than a page, known or found out.
        ({"size": 1, "pages": THP}, (HUGE, HUGE, HUGE, 0)),
        ({"size": 1, "pages": THP, "page_bytes": 64 * KIB}, (64 * KIB, 64 * KIB, 64 * KIB, 64 * KIB)),
        ({"size": 1, "pages": HUGETLB}, (HUGE, HUGE, HUGE, 0)),
        ({"size": 1, "pages": HUGETLB, "page_bytes": GIB}, (GIB, GIB, GIB, GIB)),
        ({"size": 3 * HUGE, "page": GIB}, (GIB, GIB, GIB, 0)),
        ({"size": GIB, "chunk": HUGE, "pages": HUGETLB, "page_bytes": GIB}, "chunk"),
        ({"size": GIB, "chunk": HUGE, "page": GIB}, "chunk"),
        # What cannot be.
        ({"size": 0}, "size"),
        ({"size": 64 * TIB}, (64 * TIB, HUGE, PAGE, 0)),
        ({"size": 64 * TIB + 1}, "size"),
        ({"size": GIB, "readonly": True}, "readonly"),
        ({"size": GIB, "chunk": 3 * MIB}, "chunk"),
        ({"size": GIB, "chunk": 2 * KIB}, "chunk"),
        ({"size": GIB, "chunk": 2 * GIB}, "chunk"),
        ({"size": 64 * TIB, "chunk": PAGE}, "chunk"),
    ],
)
def test_geometry(given: dict[str, int], expected: object) -> None:
    assert chosen(**given) == expected  # type: ignore[arg-type]
