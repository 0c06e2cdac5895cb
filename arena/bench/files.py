"""The files that a benchmark writes if it is told to."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

__all__ = ["add_arguments", "check", "draw"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all of it to FILE, with every sample")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the table to FILE")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw it, as FILE.png or FILE.svg")


def check(args: argparse.Namespace) -> None:
    """Refuse files that cannot be written before anything is measured."""
    for path in (args.json, args.csv, args.picture):
        if path is not None and not path.absolute().parent.is_dir():
            raise argparse.ArgumentTypeError(f"cannot write {path}: there is no folder {path.absolute().parent}")
    if args.picture is not None and args.picture.suffix not in (".png", ".svg"):
        raise argparse.ArgumentTypeError(f"--picture {args.picture}: a name that ends in .png or .svg is wanted")


def draw(module: str, path: Path, *what: object) -> None:
    """By the ``draw(path, *what)`` of the module of that name. Where Matplotlib is not installed it is said that there
    is no picture."""
    try:
        picture = importlib.import_module(module)
    except ImportError as error:
        if error.name is None or error.name.partition(".")[0] != "matplotlib":
            raise
        print(f"\nno picture: Matplotlib is not installed (pip install 'sparse-arena[bench]'), so there is no {path}")
        return
    picture.draw(path, *what)
