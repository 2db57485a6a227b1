"""The table of benchmarks/domains.py: what a run and its evaluation left in a folder, as numbers and as Markdown."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from openjepa.bench.flops import pretraining_flops
from openjepa.data.sources import open_source
from openjepa.data.statistics import look
from openjepa.settings import load_config

HEADINGS = (
    "set", "images", "pixels", "classes", "minutes", "steps", "images/s", "input", "memory, GB", "PFLOP",
    "linear", "untrained", "raw pixels", "k-NN", "untrained", "raw pixels", "constant", "balanced", "verdict",
)  # fmt: skip
LABELS = {
    "count": "count",
    "depth": "distance",
}  # protocols on labels of their own: a linear probe and a k-NN
BASELINES = {"random_init": "untrained", "raw_pixels": "raw pixels", "constant": "constant answer"}
CLEAR = 2.0
"""Standard errors that a difference must have to be called won or lost."""


def figures(name: str, train: str, folder: Path) -> dict[str, Any]:
    """Everything the table tells of a set.

    Args:
        name: Of the set.
        train: Its training images, as `openjepa.data.sources.open_source` takes them.
        folder: Of its run, evaluated, with `pretraining.json`.
    """
    source = open_source(train, split="train")
    evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    used = json.loads((folder / "pretraining.json").read_text(encoding="utf-8"))
    stages = [
        _stage(where, len(source))
        for where in (folder / "first-stage", folder)
        if (where / "config.yaml").is_file()
    ]
    settings = _settings(folder)
    seconds = sum(stage["seconds"] for stage in stages)
    return {
        "name": name,
        "num_train": evaluation["num_train"],
        "num_test": evaluation["num_test"],
        "side": look(source).side,
        "classes": len(source.classes),
        "stages": stages,
        "minutes": seconds / 60,
        "images_per_second": sum(stage["images"] for stage in stages) / seconds,
        "preset": settings["preset"],
        "image_size": settings["data"]["image_size"],
        "patch_size": settings["model"]["patch_size"],
        "precision": settings["runtime"]["precision"],
        "environment": evaluation["environment"],
        "peak_bytes": used["peak_bytes"],
        "pflop": sum(stage["flop"] for stage in stages) / 1e15,
        "scores": _scores(evaluation),
    }


def _settings(folder: Path) -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    return tree


def _stage(folder: Path, num_images: int) -> dict[str, Any]:
    """What a stage of pretraining has done; its seconds are those that it counted itself."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    config = load_config(_settings(folder))
    return {
        "method": config.method,
        "steps": rows[-1]["step"],
        "images": rows[-1]["images"],
        "seconds": rows[-1]["seconds"],
        "flop": pretraining_flops(config, rows, num_images=num_images),
    }


def _scores(evaluation: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Accuracies in [0, 1] by label (`class` is the set's own), then by probe, then of whose features.

    ``balanced`` is None where the evaluation has no balanced accuracy.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for protocol, told in evaluation["protocols"].items():
        baselines = {name: scores[protocol] for name, scores in evaluation["baselines"].items()}

        def values(key: str, told: Any = told, baselines: Any = baselines) -> dict[str, Any]:
            others = {name: scores[key] for name, scores in baselines.items()}
            balanced = told.get("balanced_accuracy") if key == "top1" else None
            return {"encoder": told[key], **others, "constant": told["majority_class"], "balanced": balanced}

        if protocol in LABELS:
            found[LABELS[protocol]] = {"linear": values("top1"), "knn": values("knn_top1")}
        else:
            found.setdefault("class", {})[protocol] = values("top1")
    return found


def standard_error(accuracy: float, num_test: int) -> float:
    """Of an accuracy measured on so many test images, √(p(1−p)/n)."""
    return math.sqrt(accuracy * (1 - accuracy) / num_test)


def verdict(scores: Mapping[str, float], num_test: int) -> str:
    """Whether the encoder is clearly better or worse than the best of what it is compared with, and by how much.

    The error of the difference is that of two independent measurements: on the same test images it is smaller.
    """
    best = max(BASELINES, key=lambda name: scores[name])
    own, rival = scores["encoder"], scores[best]
    difference = own - rival
    error = math.hypot(standard_error(own, num_test), standard_error(rival, num_test))
    word = "level" if abs(difference) <= CLEAR * error else "wins" if difference > 0 else "loses"
    return f"{word} {signed(100 * difference)} ({BASELINES[best]})"


def signed(number: float) -> str:
    """One decimal, with a sign."""
    return f"{number:+.1f}".replace("-", "−")


def table(result: Mapping[str, Any]) -> str:
    """The table as Markdown, with what was measured how, what failed and what is not there.

    Args:
        result: What `OUT/domains.json` holds.
    """
    rows = [row for facts in result["sets"] for row in _rows(facts)]
    columns = [
        number
        for number, name in enumerate(HEADINGS)
        if name != "balanced" or any(row[number] != "–" for row in rows)
    ]
    rows += [
        (name, f"**failed**: {_cell(text)}", *"–" * (len(HEADINGS) - 2))
        for name, text in result["failed"].items()
    ]
    lines = [_line([HEADINGS[number] for number in columns]), "|---" * len(columns) + "|"]
    lines += [_line([row[number] for number in columns]) for row in rows]
    versions = {(one["environment"]["torch"], one["precision"]) for one in result["sets"]}
    made = "; ".join(f"torch {torch}, {precision}" for torch, precision in sorted(versions))
    how = f"Each: `{result['command']}`, by `{result['asked']['openjepa']}`."
    lines += ["", f"{result['machine']}; {made or 'nothing was finished'}; {result['date']}. {how}"]
    if result["missing"]:
        lines += ["", "Left out:", ""] + [f"- {name}: {reason}" for name, reason in result["missing"].items()]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    """A text that stays in its cell."""
    return " ".join(text.split()).replace("|", "\\|")


def _rows(facts: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """A line for each label of a set; what is known of the run stands in the first."""
    height, width = facts["image_size"]
    side = f"{height}" if height == width else f"{height} × {width}"
    patch = "×".join(str(number) for number in dict.fromkeys(facts["patch_size"]))
    run = (
        f"{facts['num_train']:,} / {facts['num_test']:,}",
        f"{facts['side']}",
        f"{facts['classes']}",
        f"{facts['minutes']:.1f}",
        " + ".join(f"{stage['steps']:,}" for stage in facts["stages"]),
        f"{facts['images_per_second']:.0f}",
        f"{side} / {patch}",
        f"{facts['peak_bytes'] / 1e9:.2f}",
        f"{facts['pflop']:.2g}",
    )
    for number, (label, probes) in enumerate(facts["scores"].items()):
        title = facts["name"] if label == "class" else f"{facts['name']}, {label}"
        linear, nearest = probes["linear"], probes["knn"]
        yield (
            title,
            *(run if number == 0 else "–" * len(run)),
            *_accuracies(linear, facts["num_test"]),
            *_accuracies(nearest, facts["num_test"]),
            _percent(linear["constant"]),
            _percent(linear["balanced"]),
            f"linear {verdict(linear, facts['num_test'])}; k-NN {verdict(nearest, facts['num_test'])}",
        )


def _accuracies(scores: Mapping[str, float], num_test: int) -> tuple[str, str, str]:
    """The encoder's with its standard error, and the baselines'; the best of the three in bold."""
    values = [scores[name] for name in ("encoder", "random_init", "raw_pixels")]
    own, *others = [f"**{_percent(value)}**" if value == max(values) else _percent(value) for value in values]
    return f"{own} ± {100 * standard_error(values[0], num_test):.1f}", others[0], others[1]


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"
