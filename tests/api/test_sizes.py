from __future__ import annotations

import pytest

from arena.sizes import parse_size


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("64MiB", 64 << 20),
        ("2GiB", 2 << 30),
        ("1.5 GB", 1_500_000_000),
        ("0.5KiB", 512),
        (".5KiB", 512),
        ("4K", 4096),
        ("2M", 2 << 20),
        ("1TiB", 1 << 40),
        ("17", 17),
        ("17B", 17),
        (" 1 kB ", 1000),
        (0, 0),
        (True, 1),
    ],
)
def test_reads_sizes_as_written(text: str | int, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "MiB", "1XB", "-1", "1e9", "nan", "1.2.3", "0.3KiB", "1 GiB please", "٣KiB"])
def test_refuses_strings_that_mean_nothing(text: str) -> None:
    with pytest.raises(ValueError, match="size"):
        parse_size(text)


@pytest.mark.parametrize("size", [-1, 1 << 63, 1 << 100, "9EiB"])
def test_refuses_what_is_out_of_range(size: int | str) -> None:
    with pytest.raises(ValueError):
        parse_size(size)


@pytest.mark.parametrize("size", [1.0, float("nan"), None, b"1", [1]])
def test_refuses_other_types(size: object) -> None:
    with pytest.raises(TypeError, match="int or a str"):
        parse_size(size)  # type: ignore[arg-type]
