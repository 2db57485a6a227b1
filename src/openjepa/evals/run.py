"""All protocols on one encoder, beside baselines: what `openjepa evaluate` does.

    openjepa evaluate runs/mine --train cifar10:train --test cifar10:test --baselines --out evaluation.json

Each image is decoded once and embedded once by each encoder; all protocols use these features.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openjepa.data.dataset import ImageDataset
from openjepa.data.loader import evaluate_batches
from openjepa.data.sources import Source
from openjepa.errors import UserError
from openjepa.evals.bars import Bar, Bars, no_bar
from openjepa.evals.config import EvalConfig
from openjepa.evals.features import Encoder, Featuriser, by_layer, extract, pooled, raw_pixels, remembering
from openjepa.evals.labels import Labels, shared_classes
from openjepa.evals.protocols import PROTOCOLS, Outcome, Split
from openjepa.evals.result import figures, with_classes
from openjepa.evals.store import FeatureStore

_log = logging.getLogger(__name__)
_TOLD = ("top1", "balanced_accuracy", "knn_top1", "miou", "rmse", "delta1")


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
    patch_size: tuple[int, int] | None = None,
    checkpoint: str = "the checkpoint",
    encoder: str = "target",
    batch_size: int = 64,
    num_workers: int = 0,
    device: str | torch.device = "cpu",
    config: EvalConfig | None = None,
    store: FeatureStore | None = None,
    bars: Bars = no_bar,
    on_outcome: Callable[[str, Outcome, Labels], None] = lambda protocol, outcome, labels: None,
) -> dict[str, Any]:
    """Classifies test images by frozen features, in several ways.

    Args:
        encode: The encoder in evaluation mode, normalised images (B, C, H, W) -> (B, P, D) or, of its last layers,
            (B, L, P, D). Linear probes may use all of these layers, the others use the last.
        train: Labelled images that the classifiers are fitted on.
        test: Labelled images with the same classes.
        mean: Channel means in [0, 1], as the checkpoint holds them.
        std: Channel standard deviations in [0, 1], as the checkpoint holds them.
        protocols: Names from ``PROTOCOLS``; with none, labels are checked and counted.
        label_sources: For each label of ``OWN_LABELS`` that a protocol needs, the sources of ``train`` and ``test``
            opened for that label.
        random_init: The same encoder before training. With it come both baselines: it, and raw pixels.
        patch_size: (height, width) in pixels of what ``encode`` cuts images into; `linear_grid` needs it.
        checkpoint: What to call the checkpoint in the result and in errors.
        encoder: Which of its encoders ``encode`` is, ``target`` or ``context``.
        batch_size: Images embedded at once.
        num_workers: Processes that decode.
        device: Where to embed and fit.
        config: Settings of the protocols; by default the paper's and the customary ones.
        store: Where features are kept for the next evaluation: it knows `encoder`, `random_init` and `raw_pixels`.
        bars: Shows how far embedding is.
        on_outcome: Called with each protocol on the encoder's own features, what it found, and the labels it is about.

    Returns:
        What `evaluate --out` writes: ``checkpoint``, ``encoder``, ``num_train``, ``num_test``,
        ``majority_class`` (accuracy of always saying the most frequent class of the training images),
        ``protocols`` (name -> ``top1``, what `openjepa.evals.result.with_classes` tells of each class, its own
        ``majority_class`` and settings) and ``baselines`` (``random_init`` and ``raw_pixels``, each name -> ``top1``
        and ``balanced_accuracy``; empty without).

    Raises:
        UserError: An unknown protocol.
        DataError: Labels are missing, are of one class only, or differ between train and test.
        CheckpointError: Features are NaN or infinite.
    """
    config = config or EvalConfig()
    sources: dict[str | None, tuple[Source, Source]] = {None: (train.source, test.source)}
    sources.update(label_sources or {})
    check(protocols, sources[None])
    columns = {PROTOCOLS[name].column for name in protocols} | {None}
    for column in columns - {None}:
        shared_classes(sources[column], [source.labels for source in sources[column]])  # before the work

    own = f"{checkpoint} ({encoder} encoder)"
    poolings = {protocol: PROTOCOLS[protocol].pooling(config) for protocol in protocols}
    wanted = list(dict.fromkeys(poolings.values()))
    kinds = _pooled_kinds(own, "encoder", encode, wanted, patch_size)
    if random_init is not None:
        kinds += _pooled_kinds("random_init", "random_init", random_init, wanted, patch_size)
        kinds += [_Kind("raw_pixels", "raw_pixels", None, raw_pixels)] if protocols else []
    features, samples = [], []
    for dataset, num_random in ((train, config.views), (test, 0)):
        view = _View(dataset, batch_size, num_workers, num_random, config.seed, bars)
        found, places = _embed(kinds, view, mean=mean, std=std, device=device, store=store)
        features.append(found)
        samples.append(places)
    labels = {column: Labels(sources[column], samples, device) for column in columns}

    results: dict[str, dict[str, dict[str, Any]]] = {own: {}}
    for kind in kinds:
        train_x, test_x = (by_layer(split.pop(kind.label)).to(device) for split in features)
        scored = results.setdefault(kind.name, {})
        for protocol in [one for one in protocols if kind.pooling in (None, poolings[one])]:
            about = labels[PROTOCOLS[protocol].column]
            outcome = _score(kind.name, protocol, (train_x, test_x), about, config)
            scored[protocol] = outcome.scores
            if kind.name == own:
                on_outcome(protocol, outcome, about)
    results = {name: {one: scored[one] for one in protocols} for name, scored in results.items()}

    return {
        "checkpoint": checkpoint,
        "encoder": encoder,
        "num_train": len(labels[None].values[0]) // (1 + config.views),
        "num_test": len(labels[None].values[1]),
        "majority_class": labels[None].majority,
        "protocols": results.pop(own),
        "baselines": {
            baseline: {name: without_settings(scores) for name, scores in scored.items()}
            for baseline, scored in results.items()
        },
    }


def check(protocols: Sequence[str], sources: tuple[Source, Source]) -> None:
    """Refuse protocols that are not known, and training and test images whose own labels do not fit together.

    Raises:
        UserError: An unknown protocol.
        DataError: Labels are missing, are of one class only, or differ between train and test.
    """
    if unknown := sorted(set(protocols) - set(PROTOCOLS)):
        raise UserError(f"--protocols: {', '.join(unknown)} not known; choose from {', '.join(PROTOCOLS)}")
    shared_classes(sources, [source.labels for source in sources])


def _score(
    name: str, protocol: str, features: tuple[Tensor, Tensor], labels: Labels, config: EvalConfig
) -> Outcome:
    """One protocol on one kind of features; its scores with the accuracy of always saying the most frequent class."""
    start = time.perf_counter()
    train, test = (
        Split(part[rows], values)
        for part, rows, values in zip(features, labels.rows, labels.values, strict=True)
    )
    found = PROTOCOLS[protocol].fit(train, test, config, classes=labels.names)
    seconds = time.perf_counter() - start
    for label, top1 in figures({protocol: found.scores}).items():
        _log.info("%s, %s: %.1f %% (%.0f s)", name, label, 100 * top1, seconds)
    scores = with_classes(found.scores, labels.values[1], labels.names)
    return Outcome({**scores, "majority_class": labels.majority}, found.head)


def without_settings(scores: Mapping[str, Any]) -> dict[str, Any]:
    """What a baseline tells of a protocol: its figures."""
    told = {key: scores[key] for key in _TOLD if key in scores}
    return told or {
        size: {key: part[key] for key in ("top1", "std", "balanced_accuracy")}
        for size, part in scores.items()
        if isinstance(part, Mapping)
    }


class _Kind(NamedTuple):
    """A kind of features."""

    name: str
    """In results and errors."""
    key: str
    """For the store, which knows an encoder by what it is and not by what it is called."""
    pooling: str | None
    """How its patches are made one vector; None where it has none, and every protocol is given the same."""
    featurise: Featuriser

    @property
    def label(self) -> str:
        """Its name, and its pooling where that is not the usual one."""
        return self.name if self.pooling in (None, "mean") else f"{self.name}, {self.pooling}"


def _pooled_kinds(
    name: str, key: str, encode: Encoder, poolings: Sequence[str], patch_size: tuple[int, int] | None
) -> list[_Kind]:
    """An encoder's features under several poolings; it encodes each batch once."""
    shared = remembering(encode)
    return [_Kind(name, key, pooling, pooled(shared, pooling, patch_size=patch_size)) for pooling in poolings]


@dataclass
class _View:
    """How the images of a data set are shown: of each the centre crop, then random ones."""

    dataset: ImageDataset
    batch_size: int
    num_workers: int
    num_random: int
    seed: int
    bars: Bars
    samples: list[NDArray[np.int64]] = field(default_factory=list)
    """Places in the data of the images shown so far."""

    def key(self, pooling: str | None) -> str:
        """For the store."""
        pooled = "" if pooling in (None, "mean") else f", {pooling}"
        random = ""
        if self.num_random:
            mirrored = ", half of them mirrored" if self.dataset.flip else ""
            random = f", {self.num_random} random views of seed {self.seed}{mirrored}"
        return f"{self.dataset.source.cache_key}{random}{pooled}"

    @property
    def num_images(self) -> int:
        """How many images are shown where all can be read, each view counted."""
        return len(self.dataset) * (1 + self.num_random)

    def images(self) -> Iterator[Tensor]:
        """Batches (B, C, H, W) uint8 of the images that can be read."""
        with self.bars(self.num_images) as bar:
            yield from self._images(bar)

    def _images(self, bar: Bar) -> Iterator[Tensor]:
        num_left_out = 0
        for batch in evaluate_batches(self.dataset, batch_size=self.batch_size, num_workers=self.num_workers):
            num_left_out += len(batch.bad)
            self.samples.append(batch.samples)
            yield batch.images
            bar.advance(len(batch.samples))
        if num_left_out:
            _log.warning("%s: %d unreadable images are left out", self.dataset.source.name, num_left_out)
        readable = np.concatenate(self.samples)
        for epoch in range(self.num_random):
            for start in range(0, len(readable), self.batch_size):
                rows = readable[start : start + self.batch_size]
                self.samples.append(rows)
                yield self.dataset.batch(rows, epoch, self.seed).images
                bar.advance(len(rows))


def _embed(
    kinds: Sequence[_Kind],
    view: _View,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    device: str | torch.device,
    store: FeatureStore | None,
) -> tuple[dict[str, Tensor], NDArray[np.int64]]:
    """Features of all kinds by label, from the store where it has them, and the places (N,) of their images.

    What is in the store goes with what is not only if both are of the same images: one may have become unreadable, or
    readable, between two evaluations. Where they differ all kinds are computed now.
    """
    if not kinds:
        return {}, np.arange(len(view.dataset))
    found: dict[str, tuple[Tensor, NDArray[np.int64]]] = {}
    for kind in kinds:
        if store is not None and (kept := store.load(kind.key, view.key(kind.pooling))) is not None:
            found[kind.label] = kept
    while wanted := _wanted(kinds, found):
        start = time.perf_counter()
        featurisers = {kind.label: kind.featurise for kind in wanted}
        view.samples.clear()
        new = extract(
            featurisers, batches=view.images(), num_images=view.num_images, mean=mean, std=std, device=device
        )
        places = np.concatenate(view.samples)
        seconds = time.perf_counter() - start
        _log.info("%s: %d images embedded (%.0f s)", view.dataset.source.name, len(places), seconds)
        for kind in wanted:
            found[kind.label] = new[kind.label], places
            if store is not None:
                store.save(kind.key, view.key(kind.pooling), *found[kind.label])
    return {name: features for name, (features, _) in found.items()}, found[kinds[0].label][1]


def _wanted(kinds: Sequence[_Kind], found: Mapping[str, tuple[Tensor, NDArray[np.int64]]]) -> Sequence[_Kind]:
    """What is still to be computed: kinds that are missing, or all where those found are of different images."""
    if missing := [kind for kind in kinds if kind.label not in found]:
        return missing
    first, *others = [places for _, places in found.values()]
    return kinds if any(not np.array_equal(first, places) for places in others) else []
