"""What frozen features are worth after so many minutes: a figure with a line for each method.

    python benchmarks/accuracy_time.py "I-JEPA=runs/ijepa10,runs/ijepa20" "MAE=runs/mae10,runs/mae20" --out figure.png

Each run is a folder of `openjepa pretrain` with `evaluation.json` (`openjepa evaluate … --out`) in it: a run of its
own schedule, not a point on the way of a longer one. Minutes are those that the run itself counted.
"""

import argparse
import json
from pathlib import Path

from openjepa.viz.compute import Point, draw_compute, pretraining_minutes

PROTOCOLS = {"linear": "Linear probe", "knn": "k-NN"}


def read_run(folder: Path) -> Point:
    """Minutes and scores of a run.

    Raises:
        SystemExit: The folder lacks a file that `pretrain` or `evaluate` writes.
    """
    minutes = pretraining_minutes(folder)
    if minutes is None:
        raise SystemExit(f"{folder / 'metrics.jsonl'}: no such file; pretrain this run first")
    try:
        result = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SystemExit(f"{error.filename}: no such file; evaluate this run first") from None
    return Point(minutes, {title: result["protocols"][name]["top1"] for name, title in PROTOCOLS.items()})


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("lines", nargs="+", metavar="LABEL=FOLDER[,FOLDER…]")
    parser.add_argument("--out", type=Path, required=True, help="PNG, SVG or PDF")
    arguments = parser.parse_args()
    lines = {}
    for text in arguments.lines:
        label, _, folders = text.partition("=")
        lines[label] = [read_run(Path(folder)) for folder in folders.split(",")]
    draw_compute(lines, arguments.out)


if __name__ == "__main__":
    main()
