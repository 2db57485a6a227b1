"""Transfer tables: several data sets, and several checkpoints, in one call.

    openjepa evaluate runs/mine --suite suite.yaml --out transfer.json        # and transfer.md, transfer.tex

With several checkpoints that are folders of runs also transfer.png, accuracy against minutes of pretraining.
`suite.yaml`:

    protocols: [knn, linear]                               # of all data sets, unless one says otherwise
    checkpoints: {I-JEPA: [runs/a10, runs/a20], MAE: runs/mae}     # instead of the one of the command line
    datasets:
      CIFAR-10: {train: cifar10:train, test: cifar10:test}
      objects: {train: scenes, test: scenes, protocols: [count, depth]}
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from openjepa.apps.evaluate import evaluate
from openjepa.config import Section
from openjepa.errors import UserError
from openjepa.evals.result import as_json, shown
from openjepa.settings import read_yaml
from openjepa.viz.compute import Point, draw_compute, pretraining_minutes
from openjepa.writing import write_text


class DataSet(Section):
    """Labelled images."""

    train: str
    """To fit on."""
    test: str
    """To test."""
    target: str | None = None
    """Column of a manifest that holds the label."""
    protocols: tuple[str, ...] | None = None
    """Instead of the suite's."""


class Suite(Section):
    """What is evaluated on what."""

    protocols: tuple[str, ...] = ("knn", "linear")
    """Of all data sets that do not name theirs."""
    checkpoints: dict[str, str | tuple[str, ...]] = Field({})
    """By name: one, or several that make a line of the figure."""
    datasets: dict[str, DataSet] = Field(min_length=1)
    """By the name that the table gives them."""


def load_suite(path: str | Path) -> Suite:
    """Read a suite's file.

    Raises:
        UserError: It can't be read, or is no suite.
    """
    try:
        return Suite.model_validate(read_yaml(path))
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise UserError(f"--suite {path}: {'; '.join(faults)}") from None


def evaluate_suite(
    suite: str | Path, *, checkpoint: str | Path | None = None, out: str | Path | None = None, **options: Any
) -> dict[str, Any]:
    """Evaluate all checkpoints on all data sets.

    Args:
        suite: YAML file, see the module's text.
        checkpoint: Where the suite names none.
        out: JSON file for all results; beside it tables as Markdown and LaTeX, and the figure.
        **options: As `openjepa.evaluate`'s: `encoder`, `baselines`, `set`, `num_heads`, `num_workers`, `device`.

    Returns:
        ``suite``, and ``results``: of each checkpoint, of each data set, what `openjepa.evaluate` returns.

    Raises:
        UserError: A mistake in the suite; and as `openjepa.evaluate`.
    """
    asked = load_suite(suite)
    groups = {
        name: (paths,) if isinstance(paths, str) else paths for name, paths in asked.checkpoints.items()
    }
    if not groups and checkpoint is not None:
        groups = {str(checkpoint): (str(checkpoint),)}
    if not groups:
        raise UserError(f"--suite {suite}: which encoder? Give CHECKPOINT, or name `checkpoints` in the file")
    names = _labels(groups, suite)
    results: dict[str, dict[str, Any]] = {
        name: {
            title: evaluate(
                path, train=data.train, test=data.test, target=data.target,
                protocols=list(data.protocols or asked.protocols), **options,
            )
            for title, data in asked.datasets.items()
        }
        for path, name in names.items()
    }  # fmt: skip
    told = {"suite": asked.model_dump(mode="json"), "results": results}
    if out is not None:
        out = Path(out)
        write_text(out, as_json(told))
        header, lines = transfer_table(results)
        write_text(out.with_suffix(".md"), _markdown(header, lines))
        write_text(out.with_suffix(".tex"), _latex(header, lines))
        _draw(
            {name: [(Path(path), results[names[path]]) for path in paths] for name, paths in groups.items()},
            out,
        )
    return told


def _labels(groups: Mapping[str, Sequence[str]], suite: str | Path) -> dict[str, str]:
    """What each checkpoint is called in the results: its group and, of several, its folder or all of its path."""
    names: dict[str, str] = {}
    for name, paths in groups.items():
        folders = [Path(path).name for path in paths]
        for path, folder in zip(paths, folders, strict=True):
            if path in names:
                raise UserError(f"--suite {suite}: checkpoints: {path} is named twice; name it once")
            alone = path if folders.count(folder) > 1 else folder
            names[path] = name if len(paths) == 1 else f"{name}, {alone}"
    return names


def _draw(groups: Mapping[str, Sequence[tuple[Path, Mapping[str, Any]]]], out: Path) -> None:
    """Accuracy against minutes of pretraining, where at least two checkpoints say how long they took."""
    lines = {
        name: [
            Point(minutes, _line(by_data))
            for path, by_data in runs
            if (minutes := pretraining_minutes(path)) is not None
        ]
        for name, runs in groups.items()
    }
    if sum(map(len, lines.values())) > 1:
        draw_compute(lines, out.with_suffix(".png"))


def _line(by_data: Mapping[str, Any], baseline: str | None = None) -> dict[str, float]:
    """Figures of an encoder, or of a baseline of it, on all data sets by column."""
    return {
        f"{title}, {name}": figure
        for title, result in by_data.items()
        for name, figure in shown(result, baseline).items()
    }


def transfer_table(results: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Head and lines of the table, in percent: an encoder or baseline a line, a data set and protocol a column."""
    found = {name: _line(by_data) for name, by_data in results.items()}
    for checkpoint, by_data in results.items():
        for baseline in next(iter(by_data.values()))["baselines"]:
            line, name = _line(by_data, baseline), baseline.replace("_", " ")
            if line != found.setdefault(name, line):  # another architecture, or other pixels
                found[f"{name}, {checkpoint}"] = line
    columns = list(dict.fromkeys(column for line in found.values() for column in line))
    lines = [
        [kind, *(f"{100 * line[column]:.1f}" if column in line else "–" for column in columns)]
        for kind, line in found.items()
    ]
    return ["encoder", *columns], lines


def _markdown(header: list[str], lines: list[list[str]]) -> str:
    rule = ["---"] * len(header)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (header, rule, *lines))


def _latex(header: list[str], lines: list[list[str]]) -> str:
    body = "".join(" & ".join(map(_escaped, cells)) + r" \\" + "\n" for cells in lines)
    head = " & ".join(map(_escaped, header)) + r" \\"
    columns = "l" + "r" * (len(header) - 1)
    return f"\\begin{{tabular}}{{{columns}}}\n\\hline\n{head}\n\\hline\n{body}\\hline\n\\end{{tabular}}\n"


def _escaped(text: str) -> str:
    """Plain text for LaTeX."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--"}
    special |= {character: f"\\{character}" for character in "&%$#_{}"}
    return "".join(special.get(character, character) for character in text)
