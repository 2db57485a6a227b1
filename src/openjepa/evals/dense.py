"""What each patch says of the place it shows, beyond the paper: its depth, and which of several things it is.

Depth is a linear map of frozen patch features: ridge regression by normal equations, gathered batch by batch, so that
memory does not grow with the images; its penalty is chosen on every tenth training image. Two figures: the root mean
square error of a patch's mean depth, in the data's unit of length, and δ₁, the fraction of patches that are right to
a factor of 1.25 (arXiv 1406.2283). Segmentation is logistic regression of what most of a patch shows; its figure is the
mean over classes of intersection over union.

Shapes: B images of a batch, N patches, D width.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from openjepa.data.dataset import ImageDataset, spread
from openjepa.data.loader import evaluate_batches
from openjepa.data.preprocess import normalise
from openjepa.errors import DataError
from openjepa.evals.bars import Bars, no_bar
from openjepa.evals.logistic import logistic

PENALTIES = (1e-8, 1e-6, 1e-4, 1e-2, 1.0)
"""Times the mean variance of the features."""
MOST_PATCHES = 100_000
"""Of evenly spaced training images (and as many of test images) that segmentation uses."""
_EVERY = 10  # one training image in so many chooses the penalty

Patches = Callable[[Tensor], Tensor]
"""Normalised images (B, C, H, W) -> features of patches (B, N, D)."""


@runtime_checkable
class WithDepth(Protocol):
    """A source that knows depth."""

    def depth(self, index: int) -> NDArray[np.float32]:
        """Of each pixel of an image (H, W), in a unit of length."""


@runtime_checkable
class WithSegments(Protocol):
    """A source that knows what each pixel shows."""

    @property
    def segment_names(self) -> tuple[str, ...]:
        """Of the things that a pixel can show."""

    def segments(self, index: int) -> NDArray[np.uint8]:
        """Of each pixel of an image (H, W) its place in the names."""


@dataclass(frozen=True, kw_only=True)
class Views:
    """The images, and how encoders see them.

    Attributes:
        train: Images to fit on.
        test: Images to test.
        grid: (rows, columns) of patches.
        mean: Of the channels, in [0, 1].
        std: Of the channels, in [0, 1].
        batch_size: Images encoded at once.
        num_workers: Processes that decode.
        bars: Shows how far encoding is.
    """

    train: ImageDataset
    test: ImageDataset
    grid: tuple[int, int]
    mean: Sequence[float]
    std: Sequence[float]
    batch_size: int = 64
    num_workers: int = 0
    bars: Bars = no_bar

    def batches(
        self, dataset: ImageDataset, rows: NDArray[np.int64] | None = None
    ) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """Places (B,) and normalised images (B, C, H, W) of all images, or of some."""
        batches = evaluate_batches(dataset, rows, batch_size=self.batch_size, num_workers=self.num_workers)
        with self.bars(len(dataset) if rows is None else len(rows)) as bar:
            for batch in batches:
                yield batch.samples, normalise(batch.images, mean=self.mean, std=self.std)
                bar.advance(len(batch.samples))


def dense_depth(encoders: Mapping[str, Patches], views: Views) -> dict[str, dict[str, float]]:
    """Depth from the features of patches, by several encoders in one pass over the images.

    Args:
        encoders: By name.
        views: Images whose source knows depth.

    Returns:
        By the encoder's name ``rmse`` and ``delta1`` on the test images, and the ``penalty`` that was chosen; under
        ``constant`` what the training images' mean depth of each patch position reaches.

    Raises:
        DataError: A source knows no depth, or its maps are not of the images' shape.
    """
    sums = {name: (_Sums(), _Sums()) for name in encoders}
    usual, num = torch.zeros(views.grid, dtype=torch.float64), 0

    def both(dataset: ImageDataset) -> Iterator[tuple[NDArray[np.int64], dict[str, Tensor], Tensor]]:
        for samples, images in views.batches(dataset):
            features = {name: encode(images).float().cpu() for name, encode in encoders.items()}
            yield samples, features, _patch_depth(dataset, samples, views.grid)

    for samples, features, depth in both(views.train):
        chosen = torch.from_numpy(samples % _EVERY == 1)
        usual, num = usual + depth.double().sum(0), num + len(depth)
        for name, found in features.items():
            for part, rows in zip(sums[name], (~chosen, chosen), strict=True):
                if rows.any():
                    part.add(found[rows].flatten(0, 1), depth[rows].flatten())
    solved: dict[str, tuple[float, Tensor]] = {}
    for name, (fit, validation) in sums.items():
        tried = {penalty: fit.solve(penalty) for penalty in PENALTIES}
        best = min(tried, key=lambda penalty: validation.error(tried[penalty]))
        solved[name] = best, tried[best]

    answers: dict[str, list[Tensor]] = {name: [] for name in [*encoders, "constant"]}
    truth = []
    for _, features, depth in both(views.test):
        truth.append(depth.flatten())
        answers["constant"].append((usual / num).expand(len(depth), -1, -1).flatten())
        for name, found in features.items():
            answers[name].append(_with_one(found.flatten(0, 1)) @ solved[name][1])
    real = torch.cat(truth).double()
    scores = {name: _depth_scores(torch.cat(parts), real) for name, parts in answers.items()}
    for name, (penalty, _) in solved.items():
        scores[name]["penalty"] = penalty
    return scores


def segmentation(
    encoders: Mapping[str, Patches], views: Views, *, seed: int = 0
) -> dict[str, dict[str, float]]:
    """What most of a patch shows, from its features, by several encoders.

    Args:
        encoders: By name.
        views: Images whose source knows what each pixel shows.
        seed: Of the validation split.

    Returns:
        By the encoder's name ``miou`` and ``top1`` on patches of test images; under ``constant`` what the most frequent
        thing of the training images reaches.

    Raises:
        DataError: A source does not know what pixels show, or differs from the other in the things it knows.
    """
    names = [_segment_names(dataset) for dataset in (views.train, views.test)]
    if names[0] != names[1]:
        raise DataError(
            f"segmentation: --train knows {names[0]}, --test {names[1]}; both must know the same things"
        )
    most = max(1, MOST_PATCHES // (views.grid[0] * views.grid[1]))
    features: list[dict[str, Tensor]] = []
    labels: list[Tensor] = []
    for dataset in (views.train, views.test):
        parts: dict[str, list[Tensor]] = {name: [] for name in encoders}
        shown = []
        for samples, images in views.batches(dataset, spread(len(dataset), most)):
            shown.append(_patch_segments(dataset, samples, views.grid).flatten())
            for name, encode in encoders.items():
                parts[name].append(encode(images).float().cpu().flatten(0, 1))
        features.append({name: torch.cat(part) for name, part in parts.items()})
        labels.append(torch.cat(shown))
    present, train_y = labels[0].unique(return_inverse=True)  # the fit wants every class to be there
    scores = {}
    for name in encoders:
        found = logistic(features[0].pop(name), train_y, features[1].pop(name), labels[1], seed=seed)
        scores[name] = _segment_scores(present[found.predictions.cpu()], labels[1])
    scores["constant"] = _segment_scores(labels[0].mode().values.expand_as(labels[1]), labels[1])
    return scores


def raw_patches(grid: tuple[int, int]) -> Patches:
    """The pixels of each patch and its position, as an encoder: (B, C, H, W) -> (B, N, C·h·w + N)."""
    num = grid[0] * grid[1]

    def cut(images: Tensor) -> Tensor:
        height, width = images.shape[2] // grid[0], images.shape[3] // grid[1]
        pixels = F.unfold(images, (height, width), stride=(height, width)).mT  # (B, N, C·h·w)
        return torch.cat([pixels, torch.eye(num, device=images.device).expand(len(images), -1, -1)], dim=2)

    return cut


class _Sums:
    """Normal equations of a linear map with a bias from features to depth."""

    def __init__(self) -> None:
        self.xx: Tensor | float = 0.0  # (D + 1, D + 1)
        self.xy: Tensor | float = 0.0  # (D + 1,)
        self.yy = 0.0
        self.num = 0

    def add(self, features: Tensor, depth: Tensor) -> None:
        """Count patches: features (n, D), depth (n,)."""
        x, y = _with_one(features), depth.double()
        self.xx, self.xy = self.xx + x.T @ x, self.xy + x.T @ y
        self.yy += float(y @ y)
        self.num += len(y)

    def solve(self, penalty: float) -> Tensor:
        """Weights (D + 1,)."""
        assert isinstance(self.xx, Tensor)
        assert isinstance(self.xy, Tensor)
        ridge = penalty * self.xx.diagonal()[:-1].mean().item()
        diagonal = torch.full((len(self.xy),), ridge, dtype=torch.float64)
        diagonal[-1] = 0.0
        return torch.linalg.lstsq(self.xx + diagonal.diag(), self.xy[:, None]).solution[:, 0]

    def error(self, weights: Tensor) -> float:
        """Mean squared error of these weights on what was counted."""
        return float(self.yy - 2 * weights @ self.xy + weights @ self.xx @ weights) / self.num


def _patch_depth(dataset: ImageDataset, samples: NDArray[np.int64], grid: tuple[int, int]) -> Tensor:
    """Mean depth of each patch (B, rows, columns)."""
    source = dataset.source
    if not isinstance(source, WithDepth):
        raise DataError(f"dense_depth: {source.name} has no depth maps; scenes has")
    maps = torch.from_numpy(np.stack([source.depth(int(sample)) for sample in samples]))
    return F.adaptive_avg_pool2d(_as_seen(maps, dataset)[:, None], grid)[:, 0]


def _segment_names(dataset: ImageDataset) -> tuple[str, ...]:
    source = dataset.source
    if not isinstance(source, WithSegments):
        raise DataError(f"segmentation: {source.name} does not know what each pixel shows; scenes does")
    return source.segment_names


def _patch_segments(dataset: ImageDataset, samples: NDArray[np.int64], grid: tuple[int, int]) -> Tensor:
    """What most of each patch shows (B, rows, columns) int64."""
    source = dataset.source
    assert isinstance(source, WithSegments)
    maps = torch.from_numpy(np.stack([source.segments(int(sample)) for sample in samples])).long()
    shares = F.one_hot(_as_seen(maps, dataset), len(source.segment_names)).float()  # (B, H, W, K)
    return F.adaptive_avg_pool2d(shares.permute(0, 3, 1, 2), grid).argmax(dim=1)


def _as_seen(maps: Tensor, dataset: ImageDataset) -> Tensor:
    """Maps (B, H, W) of whole images, which must have the views' shape."""
    if maps.shape[1] * dataset.image_size[1] != maps.shape[2] * dataset.image_size[0]:
        raise DataError(
            f"{dataset.source.name}: its maps are {tuple(maps.shape[1:])}, of another shape than the views, "
            f"{dataset.image_size}; evaluate an encoder of images of that shape"
        )
    return maps


def _with_one(features: Tensor) -> Tensor:
    return F.pad(features.double(), (0, 1), value=1.0)


def _depth_scores(found: Tensor, real: Tensor) -> dict[str, float]:
    near = torch.maximum(found / real, real / found) < 1.25
    return {
        "rmse": (found - real).square().mean().sqrt().item(),
        "delta1": (near & (found > 0)).double().mean().item(),
    }


def _segment_scores(found: Tensor, real: Tensor) -> dict[str, float]:
    overlaps = [
        ((found == thing) & (real == thing)).sum() / ((found == thing) | (real == thing)).sum()
        for thing in real.unique()
    ]
    return {"miou": float(torch.stack(overlaps).mean()), "top1": (found == real).double().mean().item()}
