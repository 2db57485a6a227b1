"""What is measured while a run trains, always on the same images: the health of the features, and an online k-NN.

A probe is called with the model at every health check and returns what goes into metrics.jsonl. It
draws no random number that the run uses.
"""

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openjepa.data.dataset import ImageDataset, spread
from openjepa.data.preprocess import normalise
from openjepa.errors import CollapseError, DataError, UserError
from openjepa.evals.features import Encoder
from openjepa.evals.knn import knn
from openjepa.evals.protocols import NUM_LAYERS, OWN_LABELS
from openjepa.evals.result import figures
from openjepa.evals.run import check, evaluate
from openjepa.health import Health, describe, has_collapsed, has_plateaued, measure
from openjepa.masks import Masks, MaskSampler
from openjepa.methods import Method

_CHUNK = 64  # images encoded at a time


class HealthProbe:
    """Health on a fixed batch, and what it means in words.

    Args:
        dataset: The training images; evenly spaced ones are watched.
        sampler: The run's masks; those of step 0 are used.
        say: Called with the line in words.
        num_images: Images watched.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        sampler: MaskSampler,
        *,
        say: Callable[[str], None],
        num_images: int = 512,
    ) -> None:
        batch = dataset.evaluation_batch(spread(len(dataset), num_images))
        self._images, self._say = batch.images, say
        self._masks = sampler(seed=0, step=0, epochs=batch.epochs, samples=batch.samples)

    @torch.no_grad()
    def __call__(self, model: Method) -> dict[str, float]:
        """Measure and report."""
        features, predictions, targets = [], [], []
        index = (self._masks.context.split(_CHUNK), self._masks.target.split(_CHUNK))
        for images, context, target in zip(self._images.split(_CHUNK), *index, strict=True):
            inputs = prepare(images, model)
            features.append(model.target_encoder(inputs).float().mean(dim=1).cpu())
            targets.append(model.encode_targets(inputs).float().cpu())
            predictions.append(
                model(inputs, Masks(context, target).to(inputs.device)).predictions.float().cpu()
            )
        health = measure(
            torch.cat(features),
            predictions=torch.cat(predictions),
            full_targets=torch.cat(targets),
            target_index=self._masks.target,
        )
        self._say(f"health   {describe(health, num_features=features[0].shape[1])}")
        return _rounded(health)


def stop_on_collapse(row: dict[str, Any], *, num_features: int) -> None:
    """End a run that has collapsed by a line of its metrics; lines without health pass.

    Raises:
        CollapseError: What was measured, and what to try.
    """
    names = Health.__dataclass_fields__
    if not names.keys() <= row.keys():
        return
    health = Health(**{name: row[name] for name in names})
    if has_collapsed(health, num_features=num_features, ended=row["progress"] >= 1):
        words = describe(health, num_features=num_features)
        raise CollapseError(f"stopped at step {row['step']:,}: {words}")


class KnnProbe:
    """Accuracy of a k-NN on a few thousand labelled images.

    Args:
        train: Labelled images that vote.
        test: Labelled images that are classified.
        untrained: The same encoder at random initialisation, to compare with.
        say: Called with the accuracy in words.
        num_train: Images of ``train`` used.
        num_test: Images of ``test`` used.

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
    ) -> None:
        for option, dataset in (("--eval-train", train), ("--eval-test", test)):
            if dataset.labels is None:
                raise DataError(
                    f"{option} {dataset.source.name}: has no labels; use a folder with one folder a class"
                )
        self._train = train.evaluation_batch(spread(len(train), num_train))
        self._test = test.evaluation_batch(spread(len(test), num_test))
        self._untrained: Encoder | float = untrained  # then its accuracy
        self._found: list[float] = []
        self._say = say

    @torch.no_grad()
    def __call__(self, model: Method) -> dict[str, float]:
        """Embed and classify."""
        if not isinstance(self._untrained, float):
            self._untrained = self._accuracy(self._untrained, model)
        top1 = self._accuracy(model.target_encoder, model)
        self._found.append(top1)
        num_train, num_test = len(self._train.images), len(self._test.images)
        words = f"k-NN     {top1:.1%} of {num_test:,} test images, from {num_train:,}; untrained {self._untrained:.1%}"
        if has_plateaued(self._found, num_images=num_test):
            words += "; more training at this learning rate no longer helps"
        self._say(words)
        return {"knn_top1": top1}

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


def prepare(images: Tensor, model: Method) -> Tensor:
    """uint8 images (B, c, h, w) as this model takes them, on its device."""
    assert model.preprocess is not None
    device = model.context_encoder.pos_embed.device
    return normalise(images.to(device), mean=model.preprocess.mean, std=model.preprocess.std)


def _rounded(health: Health) -> dict[str, float]:
    return {
        "rankme": round(health.rankme, 3),
        "feature_std": round(health.feature_std, 6),
        "explained_variance": round(health.explained_variance, 5),
        "position_gap": round(health.position_gap, 5),
    }
