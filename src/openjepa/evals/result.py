"""The result of an evaluation: figures by class from predictions, the file, and for people rows and a table.

Shapes: T test images, S subsets of the training images, K classes.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor

_DENSE = {"delta1": "δ<1.25", "miou": "mIoU"}
MOST_CLASSES = 1000
"""With more classes the confusion matrix, K x K numbers, is not told."""
UNBALANCED = 1.5
"""Classes count as unbalanced where a constant answer is right this many times as often as one of K."""
_NUMBERS = re.compile(r"\[\s+([\d.e+-]+(?:,\s+[\d.e+-]+)*)\s+\]")


def with_classes(scores: Mapping[str, Any], labels: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """Scores of a protocol with what its predictions tell of each class.

    Args:
        scores: Figures and settings, in which ``predictions`` is the class of each test image, (T,) int64, or (S, T)
            of several subsets; or such mappings by the subsets' size.
        labels: (T,) int64, places in ``names``.
        names: Of the classes.

    Returns:
        The same, with the following in the place of ``predictions``. ``balanced_accuracy`` is the mean of ``recall``,
        which has for each class the fraction of its test images that were classified as such; a class without test
        images has none. ``confusion`` counts: a row for each class, a column for each answer, both in the order of
        ``names``; up to ``MOST_CLASSES`` classes. Of several subsets all of them are means.
    """
    told: dict[str, Any] = {}
    for key, value in scores.items():
        if key == "predictions":
            told |= _by_class(value, labels, names)
        else:
            told[key] = with_classes(value, labels, names) if isinstance(value, Mapping) else value
    return told


def _by_class(predictions: Tensor, labels: Tensor, names: Sequence[str]) -> dict[str, Any]:
    num_classes = len(names)
    several = predictions.reshape(-1, len(labels)).cpu()  # (S, T)
    labels = labels.cpu()
    hits = (several == labels).double().mean(dim=0)  # (T,)
    totals = torch.bincount(labels, minlength=num_classes)
    right = torch.bincount(labels, weights=hits, minlength=num_classes)
    recall = {name: (right[i] / totals[i]).item() for i, name in enumerate(names) if totals[i]}
    told: dict[str, Any] = {"balanced_accuracy": sum(recall.values()) / len(recall), "recall": recall}
    if num_classes <= MOST_CLASSES:
        pairs = (labels * num_classes + several).flatten()
        counts = torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)
        told["confusion"] = (counts / len(several) if len(several) > 1 else counts).tolist()
    return told


def as_json(result: Mapping[str, Any]) -> str:
    """The text of a result's file: indented, but for a list of numbers, which is one line."""
    text = json.dumps(result, indent=1)  # no line break is in a string: JSON writes them as \\n
    return _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


class Row(NamedTuple):
    """A protocol, or one size of few-shot: figures of the encoder and of the baselines, accuracies mostly."""

    name: str
    values: tuple[float | None, ...]
    """As `columns` names them; None where there is none."""


def figures(protocols: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The figure of each thing that was done, in [0, 1]: `knn`, `linear`, `fewshot 0.01`, `segmentation mIoU` …."""
    return {
        name: value for protocol, scores in protocols.items() for name, value in _figures(protocol, scores)
    }


def _figures(protocol: str, scores: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, label in _DENSE.items():
        if key in scores:
            yield f"{protocol} {label}", scores[key]
            return
    for name, part in _parts(protocol, scores):
        yield name, part["top1"]


def _parts(protocol: str, scores: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A protocol that classifies, or each size of its subsets."""
    if "top1" in scores:
        yield protocol, scores
        return
    for size, part in scores.items():
        if isinstance(part, Mapping) and "top1" in part:
            yield f"{protocol} {size}", part


def shown(result: Mapping[str, Any], baseline: str | None = None) -> dict[str, float]:
    """The figures that tables show of the encoder, or of a baseline, in [0, 1].

    They are those of `figures`, each followed by the balanced accuracy (`linear, balanced`) where classes are
    unbalanced.
    """
    told: dict[str, float] = {}
    scored = result["protocols"] if baseline is None else result["baselines"][baseline]
    for protocol, scores in scored.items():
        told |= figures({protocol: scores})
        if _unbalanced(result["protocols"][protocol]):
            parts = _parts(protocol, scores)
            told |= {f"{name}, balanced": part["balanced_accuracy"] for name, part in parts}
    return told


def recalls(protocols: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, float]]:
    """The recall of each class by the names of `figures`, of all that classify."""
    return {
        name: part["recall"]
        for protocol, scores in protocols.items()
        for name, part in _parts(protocol, scores)
        if "recall" in part
    }


def _unbalanced(scores: Mapping[str, Any]) -> bool:
    """Whether a protocol's classes are; unknown, so False, in results of versions that did not tell recall."""
    num_classes = _num_classes(scores)
    return num_classes > 0 and scores["majority_class"] * num_classes > UNBALANCED


def _num_classes(scores: Mapping[str, Any]) -> int:
    return max((len(part.get("recall", ())) for _, part in _parts("", scores)), default=0)


def columns(result: Mapping[str, Any]) -> list[str]:
    """What is compared: this encoder, the baselines, and always giving the most frequent answer."""
    return ["this encoder", *(name.replace("_", " ") for name in result["baselines"]), "constant answer"]


def rows(result: Mapping[str, Any]) -> list[Row]:
    """A line for each accuracy of the result, its values under `columns`."""
    parts = [shown(result, baseline) for baseline in (None, *result["baselines"])]
    constants: dict[str, float] = {}
    for protocol, scores in result["protocols"].items():
        if "constant" in scores:
            constants |= figures({protocol: scores["constant"]})
            continue
        for name, _ in _parts(protocol, scores):
            constants[name] = scores["majority_class"]
            constants[f"{name}, balanced"] = 1 / max(1, _num_classes(scores))
    return [Row(name, (*(part.get(name) for part in parts), constants[name])) for name in parts[0]]


def format_table(result: Mapping[str, Any]) -> Table:
    """The accuracies side by side, for a terminal (rich)."""
    title = f"{result['checkpoint']} · {result['encoder']} encoder · on {result['num_test']:,} test images"
    table = Table(title=Text(title))  # no markup: a path may look like it
    table.add_column("protocol")
    for name in columns(result):
        table.add_column(name, justify="right")
    for row in rows(result):
        table.add_row(row.name, *("–" if value is None else f"{value:.1%}" for value in row.values))
    return table
