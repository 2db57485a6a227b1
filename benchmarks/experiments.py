"""Many short pretraining runs, one at a time, made alike, then one table: which recipe learns more in equal minutes?

    python benchmarks/experiments.py benchmarks/cifar10.yaml --out runs/cifar10 [--log docs/log.md]

The file names data, minutes and recipes:

    train: cifar10-train.tar
    test: cifar10-test.tar
    minutes: [3, 6, 12]      # successive halving: the better half of the recipes goes on to the next, from scratch
    seeds: 3                 # of those that reach the last; one before that
    options: [--preset, small]
    recipes:
      base: []
      "higher lr": [--set, optim.lr=3e-3]
      mae: [--method, mae]

Every run is `openjepa pretrain` and `openjepa evaluate` in processes of their own. Started again, finished runs are
taken as they are and the one that was cut off goes on from its checkpoint. `--correlations` tells how well each measure
of health at half of a run foretells the final probe, over all runs of the study.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

MEASURES = ("knn_top1", "rankme", "feature_std", "explained_variance", "position_gap", "loss")


@dataclass(frozen=True)
class Study:
    """What a file asks for."""

    train: str
    test: str
    minutes: tuple[float, ...]
    recipes: Mapping[str, Sequence[str]]
    options: Sequence[str] = ()
    seeds: int = 1

    @staticmethod
    def read(path: Path) -> "Study":
        """Read a file.

        Raises:
            SystemExit: A key is missing or unknown.
        """
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        minutes = tree.get("minutes")
        tree["minutes"] = tuple(minutes) if isinstance(minutes, list) else (minutes,)
        try:
            return Study(**tree)
        except TypeError as error:
            raise SystemExit(f"{path}: {error}; see the text of {sys.argv[0]}") from None


@dataclass(frozen=True)
class Outcome:
    """One finished run."""

    recipe: str
    minutes: float
    seed: int
    folder: Path

    @property
    def scores(self) -> dict[str, float]:
        """Top-1 of each protocol, in percent."""
        result = json.loads((self.folder / "evaluation.json").read_text(encoding="utf-8"))
        return {name: 100 * scores["top1"] for name, scores in result["protocols"].items()}

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        text = (self.folder / "metrics.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]


def run(study: Study, recipe: str, *, minutes: float, seed: int, out: Path) -> Outcome:
    """Pretrain and evaluate, going on where an earlier call was cut off."""
    folder = out / re.sub(r"[^\w.-]+", "-", f"{recipe}-{minutes:g}min-seed{seed}")
    if not (folder / "evaluation.json").is_file():
        openjepa = [sys.executable, "-m", "openjepa"]
        subprocess.run(
            [*openjepa, "pretrain", study.train, "--out", str(folder), *study.options, *study.recipes[recipe],
             "--max-minutes", f"{minutes:g}", "--seed", str(seed), "--resume"],
            check=True,
        )  # fmt: skip
        subprocess.run(
            [*openjepa, "evaluate", str(folder), "--train", study.train, "--test", study.test,
             "--protocols", "knn,linear", "--out", str(folder / "evaluation.json")],
            check=True,
        )  # fmt: skip
    return Outcome(recipe, minutes, seed, folder)


def search(study: Study, out: Path) -> list[Outcome]:
    """All runs of a study: rung by rung, the better half by the linear probe going on."""
    alive, outcomes = list(study.recipes), []
    for rung, minutes in enumerate(study.minutes):
        last = rung == len(study.minutes) - 1
        seeds = range(study.seeds if last else 1)
        found = [run(study, name, minutes=minutes, seed=seed, out=out) for name in alive for seed in seeds]
        outcomes += found
        alive = better_half(found)
    return outcomes


def better_half(outcomes: Sequence[Outcome]) -> list[str]:
    """Names of the recipes in the better half by the mean linear probe, best first."""
    names = dict.fromkeys(outcome.recipe for outcome in outcomes)
    means = {
        name: statistics.mean(one.scores["linear"] for one in outcomes if one.recipe == name)
        for name in names
    }
    return sorted(means, key=means.__getitem__, reverse=True)[: (len(means) + 1) // 2]


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown: a line for each recipe and number of minutes; mean ± standard error where there are several seeds."""
    lines = [
        "| recipe | minutes | seeds | steps | images/s | RankMe | linear | k-NN |",
        "|---|---|---|---|---|---|---|---|",
    ]
    groups = dict.fromkeys((one.recipe, one.minutes) for one in outcomes)
    for recipe, minutes in groups:
        group = [one for one in outcomes if (one.recipe, one.minutes) == (recipe, minutes)]
        last = [one.rows[-1] for one in group]
        rates = [row["images"] / row["seconds"] for row in last]
        shown = [
            f"{statistics.mean(row['step'] for row in last):,.0f}",
            f"{statistics.mean(rates):.0f}",
            f"{statistics.mean(row.get('rankme', float('nan')) for row in last):.1f}",
            *(_mean([one.scores[name] for one in group]) for name in ("linear", "knn")),
        ]
        lines.append(f"| {recipe} | {minutes:g} | {len(group)} | {' | '.join(shown)} |")
    return "\n".join(lines)


def correlations(outcomes: Sequence[Outcome]) -> str:
    """Markdown: Spearman's rank correlation of each measure at half of the runs with their final linear probe."""
    finals = [one.scores["linear"] for one in outcomes]
    lines = [
        f"Over {len(outcomes)} runs:",
        "",
        "| measure at half of the run | rank correlation |",
        "|---|---|",
    ]
    # The k-NN that watches is there only if the study's options ask for it (--eval-train).
    for measure in (name for name in MEASURES if all(name in one.rows[-1] for one in outcomes)):
        halves = [_at_half(one, measure) for one in outcomes]
        lines.append(f"| {measure} | {spearman(halves, finals):+.2f} |")
    return "\n".join(lines)


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Rank correlation; ties share their mean rank; NaN where one of the two does not vary."""
    from scipy.stats import spearmanr  # comes with scikit-learn

    if min(len(set(one)), len(set(other))) == 1:
        return float("nan")
    return float(spearmanr(np.asarray(one), np.asarray(other)).statistic)


def _at_half(outcome: Outcome, measure: str) -> float:
    """The measure's value at the line nearest to half of the run that has it."""
    rows = [row for row in outcome.rows if measure in row and "rankme" in row]
    return float(min(rows, key=lambda row: abs(row["progress"] - 0.5))[measure])


def _mean(values: Sequence[float]) -> str:
    mean = statistics.mean(values)
    if len(values) == 1:
        return f"{mean:.1f}"
    return f"{mean:.1f} ± {statistics.stdev(values) / len(values) ** 0.5:.1f}"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("study", type=Path, help="YAML file")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--log", type=Path, help="Markdown file that the table is appended to")
    parser.add_argument(
        "--correlations", action="store_true", help="also health at half against the final probe"
    )
    arguments = parser.parse_args()
    outcomes = search(Study.read(arguments.study), arguments.out)
    text = table(outcomes)
    if arguments.correlations:
        text += "\n\n" + correlations(outcomes)
    print(text)
    if arguments.log:
        with arguments.log.open("a", encoding="utf-8") as log:
            log.write(f"\n## {arguments.study.stem}\n\n`python {' '.join(sys.argv)}`\n\n{text}\n")


if __name__ == "__main__":
    main()
