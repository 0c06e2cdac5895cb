"""Sizes as people write them: ints, ``"64MiB"``, ``"2GiB"``, ``"1.5 GB"`` (IEC and SI, as written)."""

from __future__ import annotations

import operator
import re
from fractions import Fraction
from typing import SupportsIndex

__all__ = ["parse_size"]

_FORM = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*(?:([kKMGTPE])(i?)B?|B)?\s*", re.ASCII)
_POWER = {"k": 1, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6}


def parse_size(size: SupportsIndex | str, what: str = "size") -> int:
    """Return the number of bytes that a size means.

    Parameters
    ----------
    size
        An int, or a number and a unit: IEC ("64MiB"), SI ("1.5 GB"), or without B, which is binary ("4K", "2M", "1G"),
        as in the kernel's own file names.
    what
        What the error calls it.

    Returns
    -------
    int
        From 0 to 2^63 - 1.

    Raises
    ------
    TypeError
        The size is neither an int nor a str.
    ValueError
        The size is negative, too large, not whole, or not a size.

    Examples
    --------
    >>> from arena.sizes import parse_size
    >>> parse_size("64MiB"), parse_size("1.5 GB"), parse_size("4K")
    (67108864, 1500000000, 4096)
    """
    if isinstance(size, str):
        match = _FORM.fullmatch(size)
        if match is None:
            raise ValueError(f"{what} {size!r} is not a size: write a number of bytes, or '64MiB', '1.5 GB', '4K'")
        number, unit, iec = match.groups()
        factor = 1
        if unit:
            binary = bool(iec) or not size.rstrip().endswith("B")
            factor = (1024 if binary else 1000) ** _POWER[unit]
        value = Fraction(number) * factor
        if value.denominator != 1:
            raise ValueError(f"{what} {size!r} is not a whole number of bytes")
        n = int(value)
    else:
        try:
            n = operator.index(size)
        except TypeError:
            raise TypeError(f"{what} must be an int or a str such as '64MiB', not {type(size).__name__}") from None
    if n < 0:
        raise ValueError(f"{what} must not be negative, but is {n}")
    if n >= 1 << 63:
        raise ValueError(f"{what} {n} is more than 2^63 - 1 bytes")
    return n
