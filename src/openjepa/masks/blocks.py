"""What the mask samplers share: their result, their interface and the geometry of blocks of patches.

Legend: B images, C context blocks, M target blocks, H x W the grid, N = H * W patches, of which a
context block keeps Nc and a target block Nt.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openjepa.errors import UserError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Range = tuple[float, float]


@dataclass(frozen=True)
class Masks:
    """Flat patch indices (row * W + column), ascending within a block.

    Attributes:
        context: (B, C, Nc) int64, the patches that the context encoder sees.
        target: (B, M, Nt) int64, the patches to predict.
    """

    context: Tensor
    target: Tensor

    @staticmethod
    def of(context: Ints, target: Ints) -> "Masks":
        """Masks from NumPy arrays, which are not copied."""
        return Masks(torch.from_numpy(context), torch.from_numpy(target))

    def to(self, device: torch.device | str) -> "Masks":
        """The same masks on another device."""
        return Masks(self.context.to(device), self.target.to(device))


class MaskSampler(Protocol):
    """What the training step needs of a sampler."""

    @property
    def context_patches(self) -> int | None:
        """Nc when it is the same at every step, else None."""

    def __call__(self, *, seed: int, step: int, epochs: Ints, samples: Ints) -> Masks:
        """Masks of one batch: sizes from (seed, step), positions from (seed, epoch, sample).

        Args:
            seed: The run's seed.
            step: The training step.
            epochs: (B,) epoch in which each image is seen.
            samples: (B,) index of each image in the data set.
        """


def cover(corners: Ints, shape: Ints, grid: tuple[int, int]) -> Bools:
    """Which patches lie in any of an image's blocks.

    Args:
        corners: (B, K, 2) top and left of each block.
        shape: (2,) height and width of all blocks, or (B, 1, 2) where images differ.
        grid: (H, W).

    Returns:
        (B, N) bool.
    """
    row, column = (line.ravel().astype(np.uint16) for line in np.indices(grid))
    top, left = np.moveaxis(corners.astype(np.uint16), -1, 0)
    height, width = np.moveaxis(shape.astype(np.uint16), -1, 0)
    covered = np.zeros((len(corners), row.size), dtype=bool)
    for block in range(top.shape[1]):
        # Unsigned: a patch above or left of the corner wraps round to a large distance.
        covered |= (row - top[:, block, None] < height) & (column - left[:, block, None] < width)
    return covered


def block_indices(corners: Ints, shape: Ints, grid: tuple[int, int]) -> Ints:
    """Indices (B, K, h * w) of the patches of blocks of one shape (2,) at these corners (B, K, 2)."""
    height, width = shape
    inside = (np.arange(height)[:, None] * grid[1] + np.arange(width)).ravel()
    first = corners[..., 0] * grid[1] + corners[..., 1]
    indices: Ints = first[..., None] + inside
    return indices


def indices_of(chosen: Bools) -> Ints:
    """Indices (..., n) of the patches chosen (..., N), where each row has the same number n."""
    num_patches = chosen.shape[-1]
    counts = chosen.sum(-1)
    assert (counts == counts.flat[0]).all(), "rows of different lengths"
    indices: Ints = np.flatnonzero(chosen) % num_patches
    return indices.reshape(*chosen.shape[:-1], counts.flat[0])


def smallest(order: Floats, num: int, *, among: Bools | None = None) -> Bools:
    """The `num` patches of each row with the smallest order in [0, 1), (..., N), ties broken by index.

    Args:
        order: (..., N) in [0, 1).
        num: How many, at least 1.
        among: (..., N) the patches to choose from, at least `num` a row; None: all.
    """
    num_patches = order.shape[-1]
    keys = (order * 2.0**40).astype(np.int64) * num_patches + np.arange(num_patches)  # no two are equal
    if among is not None:
        keys[~among] = np.iinfo(np.int64).max
    chosen: Bools = keys <= np.partition(keys, num - 1, axis=-1)[..., num - 1 : num]
    return chosen


def block_shapes(grid: tuple[int, int], scale: Range, aspect: Range) -> Ints:
    """The (K, 2) heights and widths, in whole patches, whose scale and aspect lie within the ranges.

    Raises:
        UserError: There is none; the message names the nearest.
    """
    num_patches = grid[0] * grid[1]
    height, width = np.indices(grid).reshape(2, -1) + 1
    outside = np.zeros(len(height))
    for value, (low, high) in ((height * width / num_patches, scale), (height / width, aspect)):
        outside += np.maximum(0, np.maximum(np.log(low / value), np.log(value / high)))
    if outside.min() > 1e-9:
        h, w = height[outside.argmin()], width[outside.argmin()]
        raise UserError(
            f"no block of whole patches on a {grid[0]}x{grid[1]} grid has a scale in "
            f"[{scale[0]:.4g}, {scale[1]:.4g}] and an aspect in [{aspect[0]:.4g}, {aspect[1]:.4g}]; the "
            f"nearest, {h}x{w}, has {h * w / num_patches:.4f} and {h / w:.4f}: let masks.target_scale and "
            "masks.target_aspect include these, or use smaller patches"
        )
    shapes: Ints = np.stack([height, width], axis=-1)[outside <= 1e-9]
    return shapes


def check(grid: tuple[int, int], **settings: int | Range) -> None:
    """Refuse a grid of one patch, a count below 1, and a range that is empty or reaches out of bounds.

    Raises:
        UserError: Naming the setting, its value and what is allowed.
    """
    if min(grid) < 1 or max(grid) < 2:
        raise UserError(f"a {grid[0]}x{grid[1]} grid has too few patches to mask: use smaller patches")
    for name, value in settings.items():
        most = 1.0 if name.endswith("scale") else 100.0
        if isinstance(value, int):
            if value < 1:
                raise UserError(f"masks.{name}={value} must be at least 1")
        elif not 0 < value[0] <= value[1] <= most:
            raise UserError(f"masks.{name}={value} must be (low, high) with 0 < low <= high <= {most:g}")
