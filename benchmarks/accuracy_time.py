"""What frozen features are worth after so many minutes: a figure with a line for each method.

    python benchmarks/accuracy_time.py "I-JEPA=runs/ijepa10,runs/ijepa20" "MAE=runs/mae10,runs/mae20" --out figure.png

Each run is a folder of `openjepa pretrain` with `evaluation.json` (`openjepa evaluate … --out`) in it: a run of its
own schedule, not a point on the way of a longer one. Minutes are those that the run itself counted.
"""

import argparse
import json
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

PROTOCOLS = {"linear": "Linear probe", "knn": "k-NN"}
COLOURS = ("#2458a6", "#c8502d", "#777777", "#3a8a4d")


class Point(NamedTuple):
    """One run."""

    minutes: float
    scores: dict[str, float]
    """Top-1 in percent by protocol."""


def read_run(folder: Path) -> Point:
    """Minutes, those of a first stage among them, and scores of a run.

    Raises:
        SystemExit: The folder lacks a file that `pretrain` or `evaluate` writes.
    """
    stages = [stage for stage in (folder / "first-stage", folder) if stage == folder or stage.is_dir()]
    try:
        seconds = [last_row(stage / "metrics.jsonl")["seconds"] for stage in stages]
        result = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SystemExit(f"{error.filename}: no such file; pretrain and evaluate this run first") from None
    scores = {name: 100 * result["protocols"][name]["top1"] for name in PROTOCOLS}
    return Point(sum(seconds) / 60, scores)


def last_row(metrics: Path) -> dict[str, float]:
    """The last line of a metrics.jsonl."""
    row: dict[str, float] = json.loads(metrics.read_text(encoding="utf-8").splitlines()[-1])
    return row


def draw(lines: dict[str, list[Point]], out: Path) -> None:
    """A chart for each protocol side by side, minutes on a logarithmic axis."""
    figure = Figure(figsize=(8, 3.2), dpi=150, layout="constrained")
    for axes, (protocol, title) in zip(figure.subplots(1, len(PROTOCOLS)), PROTOCOLS.items(), strict=True):
        for colour, (label, points) in zip(cycle(COLOURS), lines.items(), strict=False):
            minutes = [point.minutes for point in points]
            axes.plot(minutes, [point.scores[protocol] for point in points], "o-", color=colour, label=label)
        ticks = sorted({round(point.minutes) for points in lines.values() for point in points})
        axes.set_xscale("log")
        axes.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
        axes.set_xticks([], minor=True)
        axes.set_title(f"{title}, %")
        axes.set_xlabel("minutes")
        axes.grid(color="#ddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.savefig(out)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("lines", nargs="+", metavar="LABEL=FOLDER[,FOLDER…]")
    parser.add_argument("--out", type=Path, required=True, help="PNG, SVG or PDF")
    arguments = parser.parse_args()
    lines = {}
    for text in arguments.lines:
        label, _, folders = text.partition("=")
        lines[label] = sorted(read_run(Path(folder)) for folder in folders.split(","))
    draw(lines, arguments.out)


if __name__ == "__main__":
    main()
