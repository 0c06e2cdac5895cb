"""The histograms as a picture: a panel for each pressure, a line for each way, on logarithmic axes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from .latency_report import Row, histogram

__all__ = ["draw"]

COLOURS = {"arena": "#e07b28", "memset": "#222222", "bytearray": "#b4bfcc", "np.empty": "#2f6db3"}


def draw(path: Path, rows: Sequence[Row], title: str) -> None:
    """Draw the memory part of the paced cycles, as a PNG or SVG file."""
    paced = [row for row in rows if row.paced]
    pressures = list(dict.fromkeys(row.pressure for row in paced))
    figure = Figure(figsize=(3.4 * len(pressures), 3.6), layout="constrained")
    grid = figure.subplots(1, len(pressures), squeeze=False, sharex=True, sharey=True)
    for axes, pressure in zip(grid[0], pressures, strict=True):
        axes.set_title(pressure, fontsize=10)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("us")
        for row in paced:
            if row.pressure == pressure:
                counts = histogram(row.samples.memory)
                edges = [2.0**k for k in (*counts, max(counts) + 1)]
                axes.stairs(list(counts.values()), edges, label=row.way, color=COLOURS[row.way], linewidth=1.5)
    grid[0][0].set_ylabel("cycles")
    grid[0][-1].legend(fontsize=8)
    figure.suptitle(f"Take a buffer, write it, give it back: {title}", fontsize=10)
    figure.savefig(path)
