"""All protocols on one encoder, beside baselines: what `openjepa evaluate` does.

    openjepa evaluate runs/mine --train cifar10:train --test cifar10:test --baselines --out evaluation.json

Each image is decoded once and embedded once by each encoder; all protocols use these features.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

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
from openjepa.evals.linear import batchnorm_linear, logistic

_log = logging.getLogger(__name__)


class Evaluator(Protocol):
    """A way to classify by features."""

    def __call__(
        self, train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, *, seed: int
    ) -> Result:
        """Features (N, D) and labels (N,) to fit on, features (T, D) and labels (T,) to test."""


PROTOCOLS: dict[str, Evaluator] = {
    "knn": lambda train_x, train_y, test_x, test_y, *, seed: knn(train_x, train_y, test_x, test_y),
    "linear": batchnorm_linear,
    "logistic": logistic,
}


def evaluate(
    encode: Encoder,
    *,
    train: ImageDataset,
    test: ImageDataset,
    mean: Sequence[float],
    std: Sequence[float],
    protocols: Sequence[str] = tuple(PROTOCOLS),
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
        encode: The encoder in evaluation mode, normalised images (B, C, H, W) -> (B, P, D).
        train: Labelled images that the classifiers are fitted on.
        test: Labelled images with the same classes.
        mean: Channel means in [0, 1], as the checkpoint holds them.
        std: Channel standard deviations in [0, 1], as the checkpoint holds them.
        protocols: Names from ``PROTOCOLS``.
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
        ``protocols`` (name -> ``top1`` and settings) and ``baselines`` (``random_init`` and ``raw_pixels``,
        each name -> ``top1``; empty without).

    Raises:
        UserError: An unknown protocol.
        DataError: Labels are missing, are of one class only, or differ between train and test.
        CheckpointError: Features are NaN or infinite.
    """
    if unknown := sorted(set(protocols) - set(PROTOCOLS)):
        raise UserError(f"--protocols: {', '.join(unknown)} not known; choose from {', '.join(PROTOCOLS)}")
    _shared_classes(train.source, test.source, (train.labels, test.labels))  # before the work

    own = f"{checkpoint} ({encoder} encoder)"
    featurisers: dict[str, Featuriser] = {own: pooled(encode)}
    if random_init is not None:
        featurisers |= {"random_init": pooled(random_init), "raw_pixels": raw_pixels}
    features, labels = [], []
    for dataset in (train, test):
        found: list[NDArray[np.int64]] = []
        start = time.perf_counter()
        images = _images(dataset, found, batch_size=batch_size, num_workers=num_workers)
        features.append(extract(featurisers, batches=images, mean=mean, std=std, device=device))
        labels.append(np.concatenate(found))
        _log.info(
            "%s: %d images embedded (%.0f s)",
            dataset.source.name,
            len(labels[-1]),
            time.perf_counter() - start,
        )
    names = _shared_classes(
        train.source, test.source, labels
    )  # again: those of the images that could be read
    train_y, test_y = (
        _renumber(numbers, source=dataset.source, names=names).to(device)
        for numbers, dataset in zip(labels, (train, test), strict=True)
    )

    results: dict[str, dict[str, Result]] = {}
    for name in featurisers:
        train_x, test_x = (split.pop(name).to(device) for split in features)
        results[name] = {}
        for protocol in protocols:
            start = time.perf_counter()
            result = PROTOCOLS[protocol](train_x, train_y, test_x, test_y, seed=seed)
            _log.info(
                "%s, %s: %.1f %% (%.0f s)", name, protocol, 100 * result.top1, time.perf_counter() - start
            )
            results[name][protocol] = result

    scores = results.pop(own)
    return {
        "checkpoint": checkpoint,
        "encoder": encoder,
        "num_train": len(train_y),
        "num_test": len(test_y),
        "majority_class": (test_y == train_y.mode().values).double().mean().item(),
        "protocols": {name: {"top1": result.top1, **result.settings} for name, result in scores.items()},
        "baselines": {
            baseline: {name: {"top1": result.top1} for name, result in found.items()}
            for baseline, found in results.items()
        },
    }


def format_table(result: Mapping[str, Any]) -> Table:
    """The accuracies of a result of ``evaluate`` side by side, for a terminal (rich)."""
    title = (
        f"{result['checkpoint']} · {result['encoder']} encoder · top-1 on {result['num_test']:,} test images"
    )
    majority = f"always the most frequent class: {result['majority_class']:.1%}"
    table = Table(title=Text(title), caption=Text(majority))  # no markup: a path may look like it
    columns = {"encoder": result["protocols"], **result["baselines"]}
    table.add_column("protocol")
    for name in columns:
        table.add_column(name.replace("_", " "), justify="right")
    for protocol in result["protocols"]:
        table.add_row(protocol, *(f"{column[protocol]['top1']:.1%}" for column in columns.values()))
    return table


def _images(
    dataset: ImageDataset, labels: list[NDArray[np.int64]], *, batch_size: int, num_workers: int
) -> Iterator[Tensor]:
    """Evaluation views (B, C, H, W) of readable labelled images; their labels are added to ``labels``."""
    num_left_out = 0
    for batch in evaluate_batches(dataset, batch_size=batch_size, num_workers=num_workers):
        assert batch.labels is not None
        labelled = batch.labels >= 0
        num_left_out += len(batch.bad) + int((~labelled).sum())
        labels.append(batch.labels[labelled])
        yield batch.images[torch.from_numpy(labelled)]
    if num_left_out:
        _log.warning(
            "%s: %d images are left out, unreadable or without a label", dataset.source.name, num_left_out
        )


def _shared_classes(train: Source, test: Source, labels: Sequence[NDArray[np.int64] | None]) -> list[str]:
    """Names of the classes that images have, the same in train and test; -1 is an image without a label.

    Raises:
        DataError: No labels, one class only, or a class that the other data set lacks.
    """
    names = []
    for option, source, numbers in zip(("--train", "--test"), (train, test), labels, strict=True):
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
