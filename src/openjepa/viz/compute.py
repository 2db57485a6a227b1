"""Accuracy against compute: a chart for each column of a transfer table, minutes of pretraining on the axis below."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

from openjepa.metrics import read_rows

_COLUMNS = 3
COLOURS = ("#2458a6", "#c8502d", "#777777", "#3a8a4d", "#8a5a9e")


class Point(NamedTuple):
    """One run."""

    minutes: float
    """Of pretraining, those of a first stage among them."""
    scores: Mapping[str, float]
    """By the chart's title, in [0, 1]."""


def pretraining_minutes(run: Path) -> float | None:
    """What the run counted itself, with its first stage; None where the folder is not of a run."""
    stages = [stage for stage in (run / "first-stage", run) if stage == run or stage.is_dir()]
    seconds = 0.0
    for stage in stages:
        try:
            last = read_rows(stage / "metrics.jsonl")[-1]
        except (OSError, IndexError):
            return None
        seconds += last["seconds"]
    return seconds / 60


def draw_compute(lines: Mapping[str, Sequence[Point]], out: Path) -> None:
    """A line for each method, its runs being the points; minutes on a logarithmic axis.

    Args:
        lines: By the name that the legend gives them.
        out: PNG, SVG or PDF.
    """
    from matplotlib.figure import Figure  # half a second: only when something is drawn

    titles = list(
        dict.fromkeys(title for points in lines.values() for point in points for title in point.scores)
    )
    columns = min(_COLUMNS, len(titles))
    rows = -(-len(titles) // columns)
    figure = Figure(figsize=(4 * columns, 2.8 * rows + 0.4), dpi=150, layout="constrained")
    all_axes = figure.subplots(rows, columns, squeeze=False).flat
    for unused in all_axes[len(titles) :]:
        unused.set_axis_off()
    ticks = sorted({max(1, round(point.minutes)) for points in lines.values() for point in points})
    drawn: dict[str, Any] = {}
    for axes, title in zip(all_axes, titles, strict=False):
        for colour, (label, points) in zip(cycle(COLOURS), lines.items(), strict=False):
            known = sorted(
                (point.minutes, 100 * point.scores[title]) for point in points if title in point.scores
            )
            if known:
                drawn[label], *_ = axes.plot(*zip(*known, strict=True), "o-", color=colour)
        axes.set_xscale("log")
        axes.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
        axes.set_xticks([], minor=True)
        axes.set_title(f"{title}, %")
        axes.set_xlabel("minutes of pretraining")
        axes.grid(color="#ddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(drawn.values(), drawn.keys(), loc="outside lower center", ncols=len(drawn), frameon=False)
    figure.savefig(out)
