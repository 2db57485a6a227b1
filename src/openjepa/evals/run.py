"""All protocols on one encoder, beside baselines: what `openjepa evaluate` does.

    openjepa evaluate runs/mine --train cifar10:train --test cifar10:test --baselines --out evaluation.json

Each image is decoded once and embedded once by each encoder; all protocols use these features. Most classify by the
data's own label; `count` and `depth` (Clevr/Count and Clevr/Dist of the paper) are linear probes on labels of theirs.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text
from torch import Tensor

from openjepa.data.dataset import ImageDataset
from openjepa.data.loader import evaluate_batches
from openjepa.data.sources import Source
from openjepa.errors import DataError, UserError
from openjepa.evals.features import Encoder, Featuriser, Result, extract, pooled, raw_pixels
from openjepa.evals.knn import knn
from openjepa.evals.linear import linear
from openjepa.evals.logistic import logistic

_log = logging.getLogger(__name__)


class Evaluator(Protocol):
    """A way to classify by features."""

    def __call__(
        self, train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, *, seed: int
    ) -> Result:
        """Features (N, L, D) of the last layers and labels (N,) to fit on; features and labels of T images to test."""


class Task(NamedTuple):
    """What is classified, and how."""

    fit: Evaluator
    column: str | None = None
    """The label that it is about; None is the data's own."""


def _by_knn(train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, *, seed: int) -> Result:
    return knn(train_x[:, -1], train_y, test_x[:, -1], test_y)


def _by_logistic(train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, *, seed: int) -> Result:
    return logistic(train_x[:, -1], train_y, test_x[:, -1], test_y, seed=seed)


def _linear_with_knn(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, *, seed: int
) -> Result:
    """A linear probe, with the accuracy of a k-NN among its settings."""
    found = linear(train_x, train_y, test_x, test_y, seed=seed)
    beside = {"knn_top1": _by_knn(train_x, train_y, test_x, test_y, seed=seed).top1}
    return Result(found.top1, found.predictions, {**beside, **found.settings})


PROTOCOLS: dict[str, Task] = {
    "knn": Task(_by_knn),
    "linear": Task(linear),
    "logistic": Task(_by_logistic),
    "count": Task(_linear_with_knn, "count"),
    "depth": Task(_linear_with_knn, "distance"),
}
OWN_LABELS = {name: task.column for name, task in PROTOCOLS.items() if task.column is not None}
"""Protocols on labels of their own, and which."""


def evaluate(
    encode: Encoder,
    *,
    train: ImageDataset,
    test: ImageDataset,
    mean: Sequence[float],
    std: Sequence[float],
    protocols: Sequence[str] = ("knn", "linear", "logistic"),
    label_sources: Mapping[str, tuple[Source, Source]] | None = None,
    random_init: Encoder | None = None,
    checkpoint: str = "the checkpoint",
    encoder: str = "target",
    batch_size: int = 64,
    num_workers: int = 0,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> dict[str, Any]:
    """Classifies test images by frozen features, in several ways.

    Args:
        encode: The encoder in evaluation mode, normalised images (B, C, H, W) -> (B, P, D) or, of its last layers,
            (B, L, P, D). Linear probes may use all of these layers, the others use the last.
        train: Labelled images that the classifiers are fitted on.
        test: Labelled images with the same classes.
        mean: Channel means in [0, 1], as the checkpoint holds them.
        std: Channel standard deviations in [0, 1], as the checkpoint holds them.
        protocols: Names from ``PROTOCOLS``.
        label_sources: For each label of ``OWN_LABELS`` that a protocol needs, the sources of ``train`` and ``test``
            opened for that label.
        random_init: The same encoder before training. With it come both baselines: it, and raw pixels.
        checkpoint: What to call the checkpoint in the result and in errors.
        encoder: Which of its encoders ``encode`` is, ``target`` or ``context``.
        batch_size: Images embedded at once.
        num_workers: Processes that decode.
        device: Where to embed and fit.
        seed: For validation splits and the order of images.

    Returns:
        What `evaluate --out` writes: ``checkpoint``, ``encoder``, ``num_train``, ``num_test``,
        ``majority_class`` (accuracy of always saying the most frequent class of the training images),
        ``protocols`` (name -> ``top1``, its own ``majority_class`` and settings) and ``baselines``
        (``random_init`` and ``raw_pixels``, each name -> ``top1``; empty without).

    Raises:
        UserError: An unknown protocol.
        DataError: Labels are missing, are of one class only, or differ between train and test.
        CheckpointError: Features are NaN or infinite.
    """
    if unknown := sorted(set(protocols) - set(PROTOCOLS)):
        raise UserError(f"--protocols: {', '.join(unknown)} not known; choose from {', '.join(PROTOCOLS)}")
    sources: dict[str | None, tuple[Source, Source]] = {None: (train.source, test.source)}
    sources.update(label_sources or {})
    columns = {PROTOCOLS[name].column for name in protocols} | {None}
    for column in columns:
        _shared_classes(sources[column], [source.labels for source in sources[column]])  # before the work

    own = f"{checkpoint} ({encoder} encoder)"
    featurisers: dict[str, Featuriser] = {own: pooled(encode)}
    if random_init is not None:
        featurisers |= {"random_init": pooled(random_init), "raw_pixels": raw_pixels}
    features, samples = [], []
    for dataset in (train, test):
        found: list[NDArray[np.int64]] = []
        start = time.perf_counter()
        images = _images(dataset, found, batch_size=batch_size, num_workers=num_workers)
        features.append(extract(featurisers, batches=images, mean=mean, std=std, device=device))
        samples.append(np.concatenate(found))
        seconds = time.perf_counter() - start
        _log.info("%s: %d images embedded (%.0f s)", dataset.source.name, len(samples[-1]), seconds)
    labels = {column: _Labels(sources[column], samples, device) for column in columns}

    results: dict[str, dict[str, dict[str, Any]]] = {}
    for name in featurisers:
        train_x, test_x = (_by_layer(split.pop(name)).to(device) for split in features)
        results[name] = {
            protocol: _score(name, protocol, (train_x, test_x), labels[PROTOCOLS[protocol].column], seed=seed)
            for protocol in protocols
        }

    return {
        "checkpoint": checkpoint,
        "encoder": encoder,
        "num_train": len(labels[None].values[0]),
        "num_test": len(labels[None].values[1]),
        "majority_class": labels[None].majority,
        "protocols": results.pop(own),
        "baselines": {
            baseline: {
                name: {key: scores[key] for key in ("top1", "knn_top1") if key in scores}
                for name, scores in found.items()
            }
            for baseline, found in results.items()
        },
    }


def _score(
    name: str, protocol: str, features: tuple[Tensor, Tensor], labels: "_Labels", *, seed: int
) -> dict[str, Any]:
    """One protocol on one kind of features: accuracy, that of the most frequent class, and settings."""
    start = time.perf_counter()
    train_x, test_x = (part[rows] for part, rows in zip(features, labels.rows, strict=True))
    result = PROTOCOLS[protocol].fit(train_x, labels.values[0], test_x, labels.values[1], seed=seed)
    seconds = time.perf_counter() - start
    _log.info("%s, %s: %.1f %% (%.0f s)", name, protocol, 100 * result.top1, seconds)
    return {"top1": result.top1, "majority_class": labels.majority, **result.settings}


def _by_layer(features: Tensor) -> Tensor:
    """(N, D) -> (N, 1, D): the features of one layer; those of several (N, L, D) as they are."""
    return features if features.ndim == 3 else features[:, None]


def format_table(result: Mapping[str, Any]) -> Table:
    """The accuracies of a result of ``evaluate`` side by side, for a terminal (rich)."""
    title = (
        f"{result['checkpoint']} · {result['encoder']} encoder · top-1 on {result['num_test']:,} test images"
    )
    table = Table(title=Text(title))  # no markup: a path may look like it
    columns = {"encoder": result["protocols"], **result["baselines"]}
    table.add_column("protocol")
    for name in columns:
        table.add_column(name.replace("_", " "), justify="right")
    table.add_column("most frequent class", justify="right")
    for protocol, scores in result["protocols"].items():
        shown = [*(column[protocol]["top1"] for column in columns.values()), scores["majority_class"]]
        table.add_row(protocol, *(f"{value:.1%}" for value in shown))
    return table


class _Labels:
    """One label of the images that were embedded: which rows have it, its values, the same numbers in both splits.

    Raises:
        DataError: As `_shared_classes`, for the images that could be read.
    """

    def __init__(
        self,
        sources: tuple[Source, Source],
        samples: Sequence[NDArray[np.int64]],
        device: str | torch.device,
    ) -> None:
        found = [np.asarray(source.labels)[part] for source, part in zip(sources, samples, strict=True)]
        names = _shared_classes(sources, found)
        self.rows, self.values = [], []
        for source, numbers in zip(sources, found, strict=True):
            rows = np.flatnonzero(numbers >= 0)
            if len(rows) < len(numbers):
                _log.warning("%s: %d images have no label", source.name, len(numbers) - len(rows))
            self.rows.append(torch.from_numpy(rows).to(device))
            self.values.append(_renumber(numbers[rows], source=source, names=names).to(device))
        self.majority = (self.values[1] == self.values[0].mode().values).double().mean().item()


def _images(
    dataset: ImageDataset, samples: list[NDArray[np.int64]], *, batch_size: int, num_workers: int
) -> Iterator[Tensor]:
    """Evaluation views (B, C, H, W) of the images that can be read; their places are added to ``samples``."""
    num_left_out = 0
    for batch in evaluate_batches(dataset, batch_size=batch_size, num_workers=num_workers):
        num_left_out += len(batch.bad)
        samples.append(batch.samples)
        yield batch.images
    if num_left_out:
        _log.warning("%s: %d unreadable images are left out", dataset.source.name, num_left_out)


def _shared_classes(sources: tuple[Source, Source], labels: Sequence[NDArray[np.int64] | None]) -> list[str]:
    """Names of the classes that images have, the same in train and test; -1 is an image without a label.

    Raises:
        DataError: No labels, one class only, or a class that the other data set lacks.
    """
    train, test = sources
    names = []
    for option, source, numbers in zip(("--train", "--test"), sources, labels, strict=True):
        present = [] if numbers is None else [source.classes[i] for i in np.unique(numbers[numbers >= 0])]
        if not present:
            raise DataError(
                f"{option} {source.name}: no image has a label; give a folder with a subfolder for each class, "
                "or name a manifest's label column with --target"
            )
        names.append(present)
    if differences := [
        f"{option} {source.name} has {_some(missing)}, the other does not"
        for option, source, missing in (
            ("--train", train, sorted(set(names[0]) - set(names[1]))),
            ("--test", test, sorted(set(names[1]) - set(names[0]))),
        )
        if missing
    ]:
        raise DataError(f"train and test must have images of the same classes, but {'; '.join(differences)}")
    if len(names[0]) == 1:
        raise DataError(
            f"--train {train.name}: all images are of one class, {names[0][0]!r}; at least two are needed: "
            "give a folder with a subfolder for each class, or another --target"
        )
    return names[0]


def _renumber(labels: NDArray[np.int64], *, source: Source, names: Sequence[str]) -> Tensor:
    """The source's labels (N,) as places in ``names``, for every data set numbers its own classes."""
    places = {name: place for place, name in enumerate(names)}
    table = np.array([places.get(name, -1) for name in source.classes])
    return torch.from_numpy(table[labels])


def _some(names: Sequence[str], *, most: int = 10) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more
