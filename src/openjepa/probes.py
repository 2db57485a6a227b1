"""What is measured while a run trains, always on the same images: the health of the features, and an online k-NN.

A probe is called with the model at every health check and returns what goes into metrics.jsonl. It
draws no random number that the run uses.
"""

import copy
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openjepa.checks import HEALTH_SHARE, KNN_SHARE, Checks
from openjepa.data.dataset import Batch, ImageDataset, spread
from openjepa.data.sources import Source
from openjepa.errors import CollapseError, DataError, UserError
from openjepa.evals.features import Encoder
from openjepa.evals.knn import knn
from openjepa.evals.labels import some
from openjepa.evals.protocols import NUM_LAYERS, OWN_LABELS
from openjepa.evals.result import figures
from openjepa.evals.run import check, evaluate
from openjepa.health import Health, Untrained, has_plateaued, judge_row, measure
from openjepa.inputs import prepare
from openjepa.masks import Masks, MaskSampler
from openjepa.methods import Method

_CHUNK = 64  # images encoded at a time
_KNN_LEAST = 1000  # labelled images, voters and tested ones together


class HealthProbe:
    """Health of the features on a fixed batch, beside that of the same encoder untrained.

    Args:
        dataset: The training images; evenly spaced ones are watched.
        sampler: The run's masks; those of step 0 are used.
        untrained: The same encoder at random initialisation; measured once, on the same images.
        checks: When the run is checked, from which follows how many images are watched; None for all of ``num_images``.
        num_images: Most images watched.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        sampler: MaskSampler,
        *,
        untrained: Encoder,
        checks: Checks | None = None,
        num_images: int = 512,
    ) -> None:
        batch = dataset.evaluation_batch(spread(len(dataset), num_images))
        masks = sampler(seed=0, step=0, epochs=batch.epochs, samples=batch.samples)
        num = -(-len(batch.images) // _CHUNK)
        # Each chunk is evenly spaced over the data, so that the first few stand for all of it.
        self._chunks = [
            (batch.images[i::num], Masks(masks.context[i::num], masks.target[i::num])) for i in range(num)
        ]
        self._checks = checks
        self._untrained: Encoder | Untrained = untrained  # then what was measured of it

    @torch.no_grad()
    def __call__(self, model: Method) -> dict[str, float]:
        """The measures of a line of metrics."""
        seen = [_see(model, *self._chunks[0])]
        if not isinstance(self._untrained, Untrained):
            self._chunks = self._chunks[: self._num_chunks(model)]
            encode = self._untrained
            pooled = [encode(prepare(images, model)).float().mean(dim=1).cpu() for images, _ in self._chunks]
            self._untrained = Untrained.of(torch.cat(pooled))
        seen += [_see(model, *chunk) for chunk in self._chunks[1:]]
        features, targets, predictions = (torch.cat(part) for part in zip(*seen, strict=True))
        health = measure(
            features,
            predictions=predictions,
            full_targets=targets,
            target_index=torch.cat([masks.target for _, masks in self._chunks]),
        )
        return _rounded(health, self._untrained)

    def _num_chunks(self, model: Method) -> int:
        """How many chunks a check may watch; timed on one of them where the run ends by the clock."""
        if self._checks is None:
            return len(self._chunks)
        seconds = 0.0
        if self._checks.seconds is not None:
            began = time.perf_counter()
            _see(model, *self._chunks[0])
            seconds = (time.perf_counter() - began) / len(self._chunks[0][0])
        most = _CHUNK * len(self._chunks)
        return (
            self._checks.num_images(share=HEALTH_SHARE, least=_CHUNK, most=most, seconds_each=seconds)
            // _CHUNK
        )


def _see(model: Method, images: Tensor, masks: Masks) -> tuple[Tensor, Tensor, Tensor]:
    """Pooled features (B, D), targets of all patches (B, N, K) and predictions (B, C, M, Nt, K), on the CPU."""
    inputs = prepare(images, model)
    out = model(inputs, masks.to(inputs.device))
    features = model.target_encoder(inputs).float().mean(dim=1)
    return features.cpu(), out.full_targets.float().cpu(), out.predictions.float().cpu()


class StopOnCollapse:
    """Ends a run that has collapsed, by the lines of its metrics; those without health say nothing.

    A run may cross the line once and recover (docs/log.md), so that two checks in a row must say it, unless features
    are not even numbers or the run is over. Arguments as those of `judge_row`.
    """

    def __init__(self, *, num_features: int, method: str = "ijepa", generations: int = 0) -> None:
        self._judge = partial(judge_row, num_features=num_features, method=method, generations=generations)
        self._before = False

    def __call__(self, row: dict[str, Any]) -> None:
        """Look at the next line.

        Raises:
            CollapseError: What was measured, and what to try.
        """
        verdict = self._judge(row)
        if verdict is None:
            return
        collapsed = verdict.kind == "collapsed"
        certain = row["progress"] >= 1 or not all(
            math.isfinite(row[name]) for name in Health.__dataclass_fields__
        )
        if collapsed and (certain or self._before):
            raise CollapseError(f"stopped at step {row['step']:,}: {verdict.words}")
        self._before = collapsed


class KnnProbe:
    """Accuracy of a k-NN on a few thousand labelled images.

    Args:
        train: Labelled images that vote.
        test: Labelled images that are classified.
        untrained: The same encoder at random initialisation, to compare with.
        say: Called with the accuracy in words.
        num_train: Images of ``train`` used, at most.
        num_test: Images of ``test`` used, at most.
        checks: When the run is checked: a short run has fewer images, so that this takes a tenth of its time.

    Raises:
        DataError: One of the two has no labels.
    """

    def __init__(
        self,
        train: ImageDataset,
        test: ImageDataset,
        *,
        untrained: Encoder,
        say: Callable[[str], None],
        num_train: int = 4000,
        num_test: int = 1000,
        checks: Checks | None = None,
    ) -> None:
        for option, dataset in (("--eval-train", train), ("--eval-test", test)):
            if dataset.labels is None:
                raise DataError(
                    f"{option} {dataset.source.name}: has no labels; use a folder with one folder a class"
                )
        names = train.source.classes
        self._train = _labelled(train.evaluation_batch(spread(len(train), num_train)), train.source, names)
        self._test = _labelled(test.evaluation_batch(spread(len(test), num_test)), test.source, names)
        if not set(np.asarray(self._test.labels)) & set(np.asarray(self._train.labels)):
            raise DataError(
                f"--eval-test {test.source.name}: no image is of a class that --eval-train {train.source.name} has: "
                f"{some(test.source.classes)} and {some(names)}"
            )
        self._checks = checks
        self._untrained: Encoder | float = untrained  # then its accuracy
        self._found: list[float] = []
        self._say = say

    @torch.no_grad()
    def __call__(self, model: Method) -> dict[str, float]:
        """Embed and classify."""
        if not isinstance(self._untrained, float):
            self._keep_affordable(model)
            self._untrained = self._accuracy(self._untrained, model)
        top1 = self._accuracy(model.target_encoder, model)
        self._found.append(top1)
        num_train, num_test = len(self._train.images), len(self._test.images)
        words = f"k-NN     {top1:.1%} of {num_test:,} test images, from {num_train:,}; untrained {self._untrained:.1%}"
        if has_plateaued(self._found, num_images=num_test):
            words += "; more training at this learning rate no longer helps"
        self._say(words)
        return {"knn_top1": top1}

    def _keep_affordable(self, model: Method) -> None:
        """Leave out images that a short run has no time for."""
        if self._checks is None:
            return
        seconds = 0.0
        if self._checks.seconds is not None:
            began, sample = time.perf_counter(), self._test.images[:_CHUNK]
            model.target_encoder(prepare(sample, model))
            seconds = (time.perf_counter() - began) / len(sample)
        num_train, num_test = len(self._train.images), len(self._test.images)
        num = num_train + num_test
        kept = self._checks.num_images(share=KNN_SHARE, least=_KNN_LEAST, most=num, seconds_each=seconds)
        self._train = _spread_batch(self._train, round(num_train * kept / num))
        self._test = _spread_batch(self._test, round(num_test * kept / num))

    def _accuracy(self, encode: Encoder, model: Method) -> float:
        bank, queries = (
            torch.cat(
                [
                    encode(prepare(images, model)).float().mean(dim=1).cpu()
                    for images in part.images.split(_CHUNK)
                ]
            )
            for part in (self._train, self._test)
        )
        labels = [torch.from_numpy(np.asarray(part.labels)) for part in (self._train, self._test)]
        return knn(bank, labels[0], queries, labels[1]).top1


def _labelled(batch: Batch, source: Source, names: Sequence[str]) -> Batch:
    """Those images of a batch that have a label, as its place in ``names``, and -1 where it is no such class.

    Every data set numbers its own classes.
    """
    assert batch.labels is not None
    places = {name: place for place, name in enumerate(names)}
    rows = np.flatnonzero(batch.labels >= 0)
    table = np.array([places.get(name, -1) for name in source.classes], np.int64)
    return Batch(batch.images[rows], batch.samples[rows], batch.epochs[rows], table[batch.labels[rows]])


def _spread_batch(batch: Batch, num: int) -> Batch:
    """Evenly spaced images of a batch with their labels."""
    kept = spread(len(batch.images), num)
    assert batch.labels is not None
    return Batch(batch.images[kept], batch.samples[kept], batch.epochs[kept], batch.labels[kept])


class OnlineProbe:
    """Protocols of `openjepa evaluate`, now and then, on all labelled images.

    The encoder is a copy, and what is drawn here changes no random number of the run.

    Args:
        train: Labelled images to fit on.
        test: Labelled images to test.
        protocols: Names of protocols on frozen features.
        every_minutes: How often, at most.
        say: Called with the figures in words.

    Raises:
        UserError: An unknown protocol.
        DataError: Labels are missing, or differ between train and test.
    """

    def __init__(
        self,
        train: ImageDataset,
        test: ImageDataset,
        *,
        protocols: Sequence[str],
        every_minutes: float,
        say: Callable[[str], None],
    ) -> None:
        check(protocols, (train.source, test.source))
        if own := sorted(OWN_LABELS.keys() & set(protocols)):
            raise UserError(
                f"log.protocols: {', '.join(own)} are about labels of their own; use openjepa evaluate"
            )
        self._train, self._test = train, test
        self._protocols, self._seconds, self._say = protocols, 60 * every_minutes, say
        self._last = time.monotonic()

    def __call__(self, model: Method) -> dict[str, float]:
        """Figures by `NAME_top1`; none where it is not yet time. Only the encoder computes in the run's precision."""
        if time.monotonic() - self._last < self._seconds:
            return {}
        assert model.preprocess is not None
        encoder = copy.deepcopy(model.target_encoder).eval()
        device = encoder.pos_embed.device
        kind, reduced = device.type, torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(kind)

        @torch.no_grad()
        def encode(images: Tensor) -> Tensor:
            with torch.autocast(kind, dtype, enabled=reduced):
                return encoder.layers(images, NUM_LAYERS)

        with (
            torch.autocast(kind, enabled=False),
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        ):
            result = evaluate(
                encode, train=self._train, test=self._test, mean=model.preprocess.mean, std=model.preprocess.std,
                protocols=self._protocols, device=device, patch_size=encoder.patch_embed.patch_size,
            )  # fmt: skip
        self._last = time.monotonic()
        found = figures(result["protocols"])
        self._say("online   " + ", ".join(f"{name} {value:.1%}" for name, value in found.items()))
        return {f"{name.replace(' ', '_')}_top1": round(value, 4) for name, value in found.items()}


def _rounded(health: Health, untrained: Untrained) -> dict[str, float]:
    return {
        "rankme": round(health.rankme, 3),
        "feature_std": round(health.feature_std, 6),
        "explained_variance": round(health.explained_variance, 5),
        "position_gap": round(health.position_gap, 5),
        "untrained_rankme": round(untrained.rankme, 3),
        "untrained_std": round(untrained.feature_std, 6),
    }
