"""Features of frozen encoders: what every protocol is given, computed once for all of them.

"For downstream use, the target encoder, average-pooled over patches" (I-JEPA, arXiv 2301.08243, section 3).
An evaluator sees a callable, never a trainer or a model class:

    encoders = {"target": pooled(model.target_encoder)}
    features = extract(encoders, batches=batches, num_images=N, mean=mean, std=std)["target"]     # (N, D)

Shapes: B images of a batch, N images of a data set, L layers, P patches, D width, C channels.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from openjepa.data.preprocess import normalise
from openjepa.errors import CheckpointError, UserError
from openjepa.evals.heads import Head

Encoder = Callable[[Tensor], Tensor]
"""Normalised images (B, C, H, W) float32 -> patch representations (B, P, D), in evaluation mode; or (B, L, P, D), those
of the last layers, the last one last."""

Featuriser = Callable[[Tensor], Tensor]
"""Normalised images (B, C, H, W) float32 -> one vector an image (B, D), or one a layer (B, L, D)."""

RAW_SIDE = 32
"""Raw-pixel features of larger images are first averaged down to this many rows and columns: linear models on
224 x 224 x 3 = 150,528 pixels would be slow, and would fit noise rather than say more about the images."""


@dataclass(frozen=True)
class Result:
    """What a protocol found on the test images.

    Attributes:
        top1: Fraction of the test images that were classified correctly, in [0, 1].
        predictions: Predicted class of each test image, (num_test,) int64.
        settings: What the protocol was run with and what it chose, for the result file.
        head: What classifies, where it is a linear function.
    """

    top1: float
    predictions: Tensor
    settings: Mapping[str, Any] = field(default_factory=dict)
    head: Head | None = None


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Fraction of predictions that equal the labels, both (N,) int64."""
    return (predictions == labels).double().mean().item()


POOLINGS = ("mean", "max", "mean+max", "grid2", "grid3")
"""Ways to make one vector of the patches of an image: `gridS` is the means over S x S regions, side by side."""


def pool_patches(patches: Tensor, pooling: str = "mean", *, grid: tuple[int, int] | None = None) -> Tensor:
    """One vector of all patches of an image, in float32.

    Args:
        patches: (..., P, D), the rows of the grid one after another.
        pooling: One of ``POOLINGS``. Regions of patch grids that their number does not divide overlap, as in
            adaptive average pooling.
        grid: (rows, columns) of patches, P = rows · columns; needed for regions.

    Returns:
        (..., `pooled_size`); of several regions the features of the first, top left, come first.
    """
    patches = patches.float()
    if pooling == "mean":
        return patches.mean(dim=-2)
    if pooling == "max":
        return patches.amax(dim=-2)
    if pooling == "mean+max":
        return torch.cat([patches.mean(dim=-2), patches.amax(dim=-2)], dim=-1)
    assert pooling in POOLINGS, pooling
    assert grid is not None
    maps = patches.flatten(0, -3).mT.unflatten(-1, grid)  # (n, P, D) -> (n, D, rows, columns)
    regions = F.adaptive_avg_pool2d(maps, int(pooling.removeprefix("grid")))  # (n, D, S, S)
    return regions.flatten(2).mT.reshape(*patches.shape[:-2], -1)  # (..., S·S·D)


def pooled_size(pooling: str, width: int) -> int:
    """Numbers of a vector that `pool_patches` makes of patches of this width.

    Raises:
        UserError: No such pooling.
    """
    if pooling not in POOLINGS:
        raise UserError(f"pool {pooling!r}: expected {', '.join(POOLINGS[:-1])} or {POOLINGS[-1]}")
    return width * {"mean": 1, "max": 1, "mean+max": 2, "grid2": 4, "grid3": 9}[pooling]


def pooled(
    encode: Encoder, pooling: str = "mean", *, patch_size: tuple[int, int] | None = None
) -> Featuriser:
    """The encoder's output (B, P, D) pooled to (B, d), layer by layer where there are several.

    Args:
        encode: The encoder.
        pooling: One of ``POOLINGS``.
        patch_size: (height, width) of a patch in pixels; needed for regions.
    """

    def featurise(images: Tensor) -> Tensor:
        patches = encode(images)
        grid = patch_size and (images.shape[-2] // patch_size[0], images.shape[-1] // patch_size[1])
        return pool_patches(patches, pooling, grid=grid)

    return featurise


def remembering(encode: Encoder) -> Encoder:
    """An encoder that is asked once for each batch, however many featurisers want it in turn."""
    seen: list[tuple[Tensor, Tensor]] = []  # the last batch and its patches

    def remembered(images: Tensor) -> Tensor:
        if not seen or seen[0][0] is not images:
            seen[:] = [(images, encode(images))]
        return seen[0][1]

    return remembered


def by_layer(features: Tensor) -> Tensor:
    """(N, D) -> (N, 1, D): the features of one layer; those of several (N, L, D) as they are."""
    return features if features.ndim == 3 else features[:, None]


def raw_pixels(images: Tensor) -> Tensor:
    """The pixels themselves, (B, C, H, W) -> (B, C * h * w) with h = min(H, 32) and w = min(W, 32)."""
    height, width = images.shape[-2:]
    return F.adaptive_avg_pool2d(images, (min(height, RAW_SIDE), min(width, RAW_SIDE))).flatten(1)


@torch.no_grad()
def extract(
    featurisers: Mapping[str, Featuriser],
    *,
    batches: Iterable[Tensor],
    num_images: int,
    mean: Sequence[float],
    std: Sequence[float],
    device: str | torch.device = "cpu",
) -> dict[str, Tensor]:
    """Several kinds of features in one pass over the images, so that each image is decoded once.

    Args:
        featurisers: Functions of normalised images, under the names that errors and the result use.
        batches: Image batches (B, C, H, W) uint8, at least one.
        num_images: How many images they have together, at most: room is made for them once. Batches kept one by one
            would break up the memory between them, which then grows with every batch, and joining them takes it twice.
        mean: Mean of each channel, in [0, 1]; the preprocessing that the checkpoint holds.
        std: Standard deviation of each channel, in [0, 1].
        device: Where the featurisers run.

    Returns:
        For each name the features (N, D) or (N, L, D) float32 on the CPU, in the order of the batches.

    Raises:
        CheckpointError: Features are NaN or infinite.
    """
    kept: dict[str, Tensor] = {}
    done = 0
    for images in batches:
        inputs = normalise(images.to(device), mean=mean, std=std)
        for name, featurise in featurisers.items():
            features = featurise(inputs)
            require_finite(features, name, mean=mean, std=std)
            if name not in kept:
                kept[name] = torch.empty(num_images, *features.shape[1:])
            kept[name][done : done + len(images)] = features
        done += len(images)
    return {name: features[:done] for name, features in kept.items()}


def require_finite(features: Tensor, name: str, *, mean: Sequence[float], std: Sequence[float]) -> None:
    """Refuse features (B, …) that are NaN or infinite, of the encoder of this name.

    Raises:
        CheckpointError: Some are.
    """
    if not (finite := features.isfinite().flatten(1).all(dim=1)).all():
        raise CheckpointError(
            f"{name}: the features of {int((~finite).sum())} of {len(finite)} images of a batch are NaN or "
            "infinite; they must be finite. Use an earlier checkpoint, or check this one's weights, "
            f"mean {list(mean)} and std {list(std)}"
        )
