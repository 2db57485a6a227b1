"""`report.html`: one self-contained page about a run, written from what lies in the run's folder.

`openjepa pretrain` writes it when a run ends, `openjepa evaluate` again when a result is added. It shows
config.yaml, environment.json, metrics.jsonl, pictures/*.png, and every evaluation (*.json) in the folder.
"""

import base64
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from openjepa.evals.result import columns, recalls, rows
from openjepa.health import judge_row
from openjepa.metrics import read_rows
from openjepa.viz.curves import CURVES, draw_curve
from openjepa.viz.pictures import Picture
from openjepa.writing import write_text

_log = logging.getLogger(__name__)

PICTURES = {
    "masks": (
        "What it had to predict",
        "Training views. From the left: the whole view, the context block that the encoder sees, and the target blocks "
        "that the predictor is asked about. Targets are made of the whole.",
    ),
    "features": (
        "What the patches say",
        "Below each image its patch features as colours: their first three principal components as red, green and "
        "blue, shared by all images. The same wash of colours over every image is the position. In the last row the "
        "mean of each position is taken away: parts of a kind in the same colour mean that the encoder knows them.",
    ),
    "neighbours": (
        "What it takes to be alike",
        "Left an image, right of the gap those whose average-pooled features are nearest (cosine).",
    ),
}
"""Titles and meanings of a run's pictures, in the order of the page."""


def save_picture(folder: Path, name: str, picture: Picture) -> None:
    """Keep one of ``PICTURES`` (height, width, 3) with a run."""
    assert name in PICTURES, name
    (folder / "pictures").mkdir(exist_ok=True)
    Image.fromarray(picture).save(folder / "pictures" / f"{name}.png")


def write_report(folder: Path) -> Path:
    """Write a run's report.html from what lies in its folder.

    Returns:
        Where it is.
    """
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    rows = read_rows(folder / "metrics.jsonl")
    data, model = environment["data"], environment["model"]
    verdict, healthy = _verdict(rows, config, model["embed_dim"])
    charts = [
        {"title": curve.title, "meaning": curve.meaning, "svg": svg}
        for curve in CURVES
        if (curve.metric != "ema_momentum" or config["method"] == "ijepa")
        and (svg := draw_curve(rows, curve.metric)) is not None
    ]
    page = _template().render(
        title=f"{config['model']['name']} on {data['name']}",
        subtitle=f"{config['method']} · preset {config['preset']} · OpenJEPA {environment['openjepa']}",
        verdict=verdict,
        healthy=healthy,
        facts=[*_facts(config, environment, rows), *_first_stage(config, folder)],
        evaluations=[_evaluation(path.name, result) for path, result in _evaluations(folder)],
        charts=charts,
        pictures=[picture for name in PICTURES if (picture := _picture(folder, name)) is not None],
        command=environment["command"],
        config=(folder / "config.yaml").read_text(encoding="utf-8"),
        environment=json.dumps(environment, indent=1, ensure_ascii=False),
    )
    path = folder / "report.html"
    write_text(path, page)
    return path


def _template() -> Any:
    loader = PackageLoader("openjepa.viz", ".")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined).get_template(
        "report.html.j2"
    )


def _facts(
    config: Mapping[str, Any], environment: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str]]:
    """Names and values for the head of the page."""
    data, model = environment["data"], environment["model"]
    height, width = model["image_size"]
    patch = model["patch_size"][0]
    facts = [
        ("Data", f"{data['name']}: {data['num_images']:,} images, seen at {height} × {width} px"),
        (
            "Encoder",
            f"{config['model']['name']}: {model['embed_dim']} wide, {model['depth']} deep, patches of {patch} px",
        ),
        ("Predictor", f"{model['predictor_dim']} wide, {model['predictor_depth']} deep"),
    ]
    if weight := config["objective"].get("whole_weight"):  # absent in runs of older versions
        facts.append(("Targets", f"hidden patches (weight 1) and the whole image (weight {weight:g})"))
    if rows:
        last = rows[-1]
        speed = last["images"] / max(last["seconds"], 1e-9)
        facts += [
            ("Training", f"{last['step']:,} steps of {config['data']['batch_size']} images, {last['seconds'] / 60:.1f} "
                         f"minutes, {speed:,.0f} images/s on average"),
            ("Masks", f"{config['masks']['name']}: {last['context_patches']} context and {last['target_patches']} "
                      "patches in each target block at the end"),
        ]  # fmt: skip
    machine = f"{environment['cores']} cores, {environment['processor']}, PyTorch {environment['torch']}"
    return [*facts, ("Machine", environment["cuda"] or machine)]


def _first_stage(config: Mapping[str, Any], folder: Path) -> list[tuple[str, str]]:
    """What the run began with, which has a page of its own."""
    method = config["first_stage"]["method"]
    if method == "none" or not (folder / "first-stage").is_dir():
        return []
    teaches = ", whose encoder sets the targets here" if config["ema"]["generations"] == 1 else ""
    page = f"{method}{teaches}: see first-stage/report.html; the curves here are of what came after it"
    return [("First stage", page)]


def _verdict(
    rows: Sequence[Mapping[str, Any]], config: Mapping[str, Any], num_features: int
) -> tuple[str, bool]:
    """The last health check in words, and whether it is good news."""
    measured = [row for row in rows if "rankme" in row]
    verdict = measured and judge_row(
        measured[-1],
        num_features=num_features,
        method=config["method"],
        generations=config["ema"]["generations"],
    )
    return (verdict.words, verdict.kind == "healthy") if verdict else ("", True)


def _evaluations(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The results of `openjepa evaluate --out` in a run's folder."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            _log.warning("%s: no JSON, so the report leaves it out", path)
            continue
        if isinstance(content, dict) and {"protocols", "baselines", "num_test"} <= content.keys():
            found.append((path, content))
    return found


def _evaluation(name: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """A result as the page's table wants it; the best of each row stands out."""
    lines = []
    for row in rows(result):
        *values, majority = row.values
        best = max(value for value in values if value is not None)
        cells = [{"text": "–" if v is None else f"{v:.1%}", "best": v == best} for v in values]
        cells.append({"text": f"{majority:.1%}", "best": False})
        lines.append({"name": row.name, "cells": cells})
    return {
        "name": name,
        "encoder": result["encoder"],
        "num_train": f"{result['num_train']:,}",
        "num_test": f"{result['num_test']:,}",
        "columns": columns(result),
        "rows": lines,
        "recalls": _recall_tables(result),
    }


def _recall_tables(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How much of each class was found: a table for each set of classes, with a column for each protocol on it."""
    by_classes: dict[tuple[str, ...], dict[str, Mapping[str, float]]] = {}
    for name, recall in recalls(result["protocols"]).items():
        by_classes.setdefault(tuple(recall), {})[name] = recall
    return [
        {
            "columns": list(found),
            "rows": [(name, [f"{recall[name]:.1%}" for recall in found.values()]) for name in classes],
        }
        for classes, found in by_classes.items()
    ]


def _picture(folder: Path, name: str) -> dict[str, Any] | None:
    path = folder / "pictures" / f"{name}.png"
    if not path.is_file():
        return None
    with Image.open(path) as image:
        width, height = image.size
    title, meaning = PICTURES[name]
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return {"title": title, "meaning": meaning, "data": data, "width": width, "height": height}
