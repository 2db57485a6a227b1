"""The protocols that want images, not a vector for each: fine-tuning, attention over patches, depth and things.

The baseline of fine-tuning is the same network trained from scratch, the supervised ViT.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean, pstdev
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openjepa.data.dataset import ImageDataset
from openjepa.data.loader import evaluate_batches
from openjepa.evals.attentive import attentive
from openjepa.evals.bars import Bars, no_bar
from openjepa.evals.config import EvalConfig
from openjepa.evals.dense import Views, dense_depth, raw_patches, segmentation
from openjepa.evals.features import Encoder, accuracy, require_finite
from openjepa.evals.fewshot import sizes, subset
from openjepa.evals.finetune import Task, finetune
from openjepa.evals.labels import Labels
from openjepa.evals.result import with_classes
from openjepa.evals.splits import part_of_each
from openjepa.models.transformer import AttentionPath
from openjepa.models.vit import VisionTransformer

Scores = dict[str, Any]
MOST_BYTES = 2 * 1024**3
"""Of the patch features of training images that `attentive` holds, of one encoder at a time."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Who is evaluated on what.

    Attributes:
        encoders: Networks by name: `encoder`, and where baselines are wanted `random_init`.
        frozen: The same, as functions that need no gradient.
        train: Labelled images to fit on.
        test: Labelled images to test.
        mean: Of the channels, in [0, 1].
        std: Of the channels, in [0, 1].
        config: Settings of the protocols.
        precision: In which networks are trained.
        attention: The path of attention layers while they are.
        device: Where they are.
        num_workers: Processes that decode.
        say: Called with lines for people.
        bars: Shows how far a protocol is.
    """

    encoders: Mapping[str, VisionTransformer]
    frozen: Mapping[str, Encoder]
    train: ImageDataset
    test: ImageDataset
    mean: Sequence[float]
    std: Sequence[float]
    config: EvalConfig
    precision: str = "float32"
    attention: AttentionPath = "fused"
    device: str = "cpu"
    num_workers: int = 0
    say: Callable[[str], None] = lambda text: None
    bars: Bars = no_bar

    @property
    def views(self) -> Views:
        """What encoders of patches see."""
        return Views(
            train=self.train, test=self.test, grid=self.encoders["encoder"].grid, mean=self.mean, std=self.std,
            num_workers=self.num_workers, bars=self.bars,
        )  # fmt: skip

    @property
    def patches(self) -> dict[str, Encoder]:
        """Encoders of patches by name, raw pixels among them where baselines are wanted."""
        raw = (
            {"raw_pixels": raw_patches(self.encoders["encoder"].grid)}
            if "random_init" in self.encoders
            else {}
        )
        return {**self.frozen, **raw}

    def labels(self) -> Labels:
        """The own label of all images that can be read."""
        places = [self._readable(dataset) for dataset in (self.train, self.test)]
        return Labels((self.train.source, self.test.source), places, "cpu")

    def _readable(self, dataset: ImageDataset) -> NDArray[np.int64]:
        batches = evaluate_batches(dataset, batch_size=256, num_workers=self.num_workers)
        return np.concatenate([batch.samples for batch in batches])


def by_attention(bench: Bench) -> dict[str, Scores]:
    """`attentive` of all encoders, one after another.

    The patch features of the training images are computed once and held in half precision, N · P · D · 2 bytes. Where
    that would be more than ``MOST_BYTES``, of each class the same part of the images is used, as many as fit; the
    scores' ``num_train`` tells how many. Test images are classified batch by batch.
    """
    labels, config, scores = bench.labels(), bench.config, {}
    samples, values = labels.samples[0], labels.values[0]
    for name, encode in bench.patches.items():
        size = next(_patches(encode, bench, samples[:1])).shape[1:]  # (P, D)
        rows = part_of_each(values, MOST_BYTES // (2 * size.numel()), seed=config.seed)
        if len(rows) < len(values):
            bench.say(
                f"attentive: {len(rows):,} training images, whose patches fill {MOST_BYTES / 1024**3:g} GB"
            )
        patches = torch.empty(len(rows), *size, dtype=torch.float16)
        done = 0
        for batch in _patches(encode, bench, samples[rows.numpy()]):
            patches[done : done + len(batch)] = batch
            done += len(batch)
        probe, settings = attentive(patches, values[rows], **config.attentive.model_dump(), seed=config.seed)
        del patches
        answers = [
            probe.classify(encode(images))[:, 0]
            for _, images in bench.views.batches(bench.test, labels.samples[1])
        ]
        predictions = torch.cat(answers)
        top1 = accuracy(predictions, labels.values[1])
        found = {"top1": top1, "predictions": predictions, "num_train": len(rows), **settings}
        bench.say(f"{name}, attentive: {100 * top1:.1f} %")
        scores[name] = _with_classes(found, labels)
    return scores


def by_depth(bench: Bench) -> dict[str, Scores]:
    """`dense_depth` of all encoders."""
    return _with_constant(dense_depth(bench.patches, bench.views))


def by_segments(bench: Bench) -> dict[str, Scores]:
    """`segmentation` of all encoders."""
    return _with_constant(segmentation(bench.patches, bench.views, seed=bench.config.seed))


def by_finetuning(bench: Bench) -> dict[str, Scores]:
    """`finetune` on all labels; of an untrained network from scratch."""
    labels = bench.labels()
    rows = np.arange(len(labels.samples[0]))
    return {
        name: _with_classes(_finetune(bench, labels, name, rows, seed=bench.config.seed), labels)
        for name in bench.encoders
    }


def by_finetuning_on_few(bench: Bench) -> dict[str, Scores]:
    """`finetune` on the subsets of `fewshot`."""
    labels, few, first = bench.labels(), bench.config.fewshot, bench.config.seed
    numbers = labels.values[0].numpy()
    scores: dict[str, Scores] = {name: {} for name in bench.encoders}
    for size in sizes(fractions=few.fractions, per_class=few.per_class):
        for name in bench.encoders:
            found = []
            for seed in range(first, first + few.subsets):
                rows = subset(numbers, size, seed=seed, classes=labels.names)
                found.append(_finetune(bench, labels, name, rows, seed=seed))
            reached = [one["top1"] for one in found]
            scores[name][size.name] = {
                "top1": mean(reached), "std": pstdev(reached),
                "predictions": torch.stack([one["predictions"] for one in found]),
                "num_train": len(rows), "subsets": reached,
            }  # fmt: skip
    return {name: _with_classes(part, labels) for name, part in scores.items()}


ON_IMAGES: dict[str, Callable[[Bench], dict[str, Scores]]] = {
    "finetune": by_finetuning,
    "fewshot_finetune": by_finetuning_on_few,
    "attentive": by_attention,
    "dense_depth": by_depth,
    "segmentation": by_segments,
}
"""By name; each gives scores by the encoder's name."""


def _finetune(bench: Bench, labels: Labels, name: str, rows: NDArray[np.int64], *, seed: int) -> Scores:
    """One encoder on some of the labelled training images."""
    task = Task(
        train=bench.train,
        test=bench.test,
        train_rows=labels.samples[0][rows],
        train_labels=labels.values[0].numpy()[rows],
        test_rows=labels.samples[1],
        test_labels=labels.values[1].numpy(),
        num_classes=len(labels.names),
        mean=bench.mean,
        std=bench.std,
    )
    whose = "from scratch" if name == "random_init" else "this encoder"
    return finetune(
        bench.encoders[name],
        task,
        bench.config.finetune,
        from_scratch=name == "random_init",
        precision=bench.precision,
        attention=bench.attention,
        device=bench.device,
        seed=seed,
        say=partial(_told, bench.say, whose),
        bars=bench.bars,
    )


def _patches(encode: Encoder, bench: Bench, samples: NDArray[np.int64]) -> Iterator[Tensor]:
    """Patch features of these training images in half precision, batch by batch (B, P, D)."""
    for _, images in bench.views.batches(bench.train, samples):
        features = encode(images).half()
        require_finite(features, "attentive", mean=bench.mean, std=bench.std)
        yield features


def _with_classes(scores: Scores, labels: Labels) -> Scores:
    """What predictions tell of each class, and what a constant answer reaches, with the scores of a protocol."""
    told = with_classes(scores, labels.values[1], labels.names)
    return {**told, "majority_class": labels.majority}


def _told(say: Callable[[str], None], whose: str, text: str) -> None:
    say(f"{text} ({whose})")


def _with_constant(scores: dict[str, dict[str, float]]) -> dict[str, Scores]:
    """What a constant answer reaches stands with the encoder's own scores."""
    constant = scores.pop("constant")
    return {
        name: {**found, "constant": constant} if name == "encoder" else found
        for name, found in scores.items()
    }
