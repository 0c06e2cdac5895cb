"""Pillow's images on a block: without a copy where a pixel of its own is one or four bytes."""

from __future__ import annotations

from typing import Any

import pytest
from neighbour import holds_an_export, neighbour

from arena import Arena, Block

neighbour("PIL")
Image: Any = neighbour("PIL.Image")
SIZE = (64, 48)
BYTES = {"L": 1, "P": 1, "RGBA": 4, "RGBX": 4, "CMYK": 4, "RGB": 3}


def image_on(block: Block, mode: str) -> Any:
    return Image.frombuffer(mode, SIZE, block, "raw", mode, 0, 1)


@pytest.fixture
def a() -> Arena:
    return Arena("64MiB")


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "RGBX", "CMYK"])
def test_what_is_not_copied(a: Arena, mode: str) -> None:
    block = a.alloc(64 * 48 * BYTES[mode], zero=True)
    image = image_on(block, mode)
    block[0] = 77
    assert image.tobytes()[0] == 77
    holds_an_export(a, lambda block: image_on(block, mode))


def test_rgb_is_copied(a: Arena) -> None:
    """Pillow has four bytes for each pixel of RGB: take RGBX."""
    block = a.alloc(64 * 48 * 3, zero=True)
    image = image_on(block, "RGB")
    block[0] = 77
    assert image.tobytes()[0] == 0
    block.free()


@pytest.mark.parametrize("mode", ["L", "RGBX"])
def test_it_copies_before_it_writes_unless_told_not_to(a: Arena, mode: str) -> None:
    block = a.alloc(64 * 48 * BYTES[mode], zero=True)
    red = Image.new(mode, (8, 8), 200)
    image = image_on(block, mode)
    image.paste(red, (0, 0))
    assert bytes(block) == bytes(len(block))
    image = image_on(block, mode)
    image.readonly = 0
    image.paste(red, (0, 0))
    assert block[0] == 200 and image.tobytes() == bytes(block)
    with pytest.raises(BufferError):
        block.free()
    del image
    block.free()


def test_an_array_of_the_arena(a: Arena) -> None:
    neighbour("numpy")
    frame = a.zeros((48, 64, 4), "u1")
    image = Image.fromarray(frame)
    frame[0, 0] = 9
    assert image.getpixel((0, 0)) == (9, 9, 9, 9)
    assert image.mode == "RGBA"
