"""The result of an evaluation, as `openjepa evaluate --out` writes it, for people: rows of accuracies, a table."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text

_DENSE = {"delta1": "δ<1.25", "miou": "mIoU"}


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
    if "top1" in scores:
        yield protocol, scores["top1"]
        return
    for size, part in scores.items():
        if isinstance(part, Mapping) and "top1" in part:
            yield f"{protocol} {size}", part["top1"]


def columns(result: Mapping[str, Any]) -> list[str]:
    """What is compared: this encoder, the baselines, and always giving the most frequent answer."""
    return ["this encoder", *(name.replace("_", " ") for name in result["baselines"]), "constant answer"]


def rows(result: Mapping[str, Any]) -> list[Row]:
    """A line for each accuracy of the result, its values under `columns`."""
    parts = [figures(scores) for scores in (result["protocols"], *result["baselines"].values())]
    constants: dict[str, float] = {}
    for protocol, scores in result["protocols"].items():
        names = figures({protocol: scores})
        constants |= (
            figures({protocol: scores["constant"]})
            if "constant" in scores
            else dict.fromkeys(names, scores["majority_class"])
        )
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
