"""The table as a picture: for each mapping, bars of the time relative to plain writing, and diamonds for 2021."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from arena.errors import amount

from .mappings import ARENA, BACKINGS, MappingType
from .report import milliseconds
from .table import Table

__all__ = ["draw"]

PLAIN, BEST, OURS, THEN = "#b4bfcc", "#2f6db3", "#e07b28", "#222222"
FARTHEST = 1.6  # where a longer bar is cut; the number beside it says how long it is
NUMBERS = 2.0  # where the numbers end


def draw(path: Path, here: Table, then: Table, machine: str) -> None:
    """The mappings of the largest size, as a PNG or SVG file."""
    size = here.largest
    sharings = [sharing for sharing in ("private", "shared") if any(kind.sharing == sharing for kind in here.kinds)]
    backings = [backing for backing in BACKINGS if any(kind.backing == backing for kind in here.kinds)]
    longest = {s: MappingType(s, "tmpfs").methods for s in sharings}
    heights = [len(longest[s]) + 3 for s in sharings]
    figure = Figure(figsize=(3.2 + 1.75 * len(backings), 1.5 + 0.25 * sum(heights)), layout="constrained")
    grid = figure.subplots(
        len(sharings), len(backings), squeeze=False, sharex=True, sharey="row", height_ratios=heights
    )
    for axes_row, sharing in zip(grid, sharings, strict=True):
        for i, (axes, backing) in enumerate(zip(axes_row, backings, strict=True)):
            panel(axes, here, then, size, MappingType(sharing, backing), longest[sharing])
            if i == 0:
                axes.set_ylabel(sharing, fontsize=12, fontweight="bold")
    figure.align_ylabels(grid[:, 0])
    figure.suptitle(
        f"How long it takes to prefault {amount(size)}, relative to writing one byte to each page\n", fontsize=13
    )
    figure.text(0.5, 0.965, machine, ha="center", va="top", fontsize=9, color="#555555")
    marks = [
        Patch(color=PLAIN, label="this machine"),
        Patch(color=BEST, label="the fastest that allocates and maps"),
        Patch(color=OURS, label="arena"),
        Line2D([], [], color=THEN, marker="D", markersize=4, linestyle="", label=f"2021, {amount(then.like(size))}"),
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), frameon=False, fontsize=9)
    with mpl.rc_context({"svg.fonttype": "none"}):  # text that can be searched
        figure.savefig(path, dpi=150)


def panel(axes: Axes, here: Table, then: Table, size: int, kind: MappingType, methods: list[str]) -> None:
    write = here.ms(size, kind, "Write")
    axes.set_title(kind.backing, fontsize=10, pad=16)
    said = f"Write: {milliseconds(write)} ms" if write else ""
    axes.text(0.5, 1.02, said, transform=axes.transAxes, ha="center", fontsize=8, color="#555555")
    axes.set_xlim(0, NUMBERS)
    axes.set_ylim(len(methods) - 0.4, -0.6)
    axes.set_yticks(range(len(methods)), methods, fontsize=8)
    axes.set_xticks([0, 0.5, 1, 1.5], ["0", "½", "1", "1½"], fontsize=8)
    axes.tick_params(length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.axvline(1, color="#888888", linewidth=0.8, linestyle=":", zorder=0)
    best = here.best(size, kind)
    if best is None:
        axes.text(NUMBERS / 2, 2.5, "not here", ha="center", va="center", fontsize=9, color="#888888", style="italic")
    for y, method in enumerate(methods):
        ratio = here.ratio(size, kind, method)
        if ratio is not None:
            colour = OURS if method == ARENA else BEST if best and method == best.method else PLAIN
            axes.barh(y, min(ratio, FARTHEST), height=0.72, color=colour)
            weight = "normal" if colour == PLAIN else "bold"
            axes.text(NUMBERS, y, f"{ratio:.2f}", ha="right", va="center", fontsize=7, fontweight=weight)
        before = then.ratio(then.like(size), kind, method)
        if before is not None:
            axes.plot(before, y, marker="D", markersize=3.6, color=THEN, markeredgecolor="white", markeredgewidth=0.6)
