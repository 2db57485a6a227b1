"""MaskFeat: as the masked autoencoder, but what is predicted are histograms of gradients (arXiv 2112.09133).

Where edges lie and how they run says more about what an image shows than its pixels do, and needs no training: targets
that mean something from the first step. A good first stage for I-JEPA on small data (docs/log.md).

Shapes: B images, c channels, N patches, K numbers a patch.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from openjepa.methods.losses import Loss
from openjepa.methods.mae import MAE
from openjepa.methods.method import TargetNorm
from openjepa.models.architecture import Architecture

NUM_BINS = 8
"""Directions of a gradient that are told apart, over the whole circle."""
_LARGEST_CELL = 8  # pixels; MaskFeat's, and that of Dalal and Triggs (2005)
_FAINT = 0.1  # a gradient, in standard deviations of the pixels, below which contrast is not stretched
_SCALE = 3.0  # brings the histograms' variance near that of the mean colours beside them


class MaskFeat(MAE):
    """Encoder and decoder; arguments as `Method`'s. `mse` without normalisation is its authors'."""

    def raw_targets(self, images: Tensor) -> Tensor:
        """Histograms and mean colours of each patch: (B, c, H, W) -> (B, N, K)."""
        return oriented_gradients(images, self.context_encoder.patch_embed.patch_size)


def build_maskfeat(
    architecture: Architecture, *, loss: Loss = "mse", target_norm: TargetNorm = "none", seed: int = 0
) -> MaskFeat:
    """A new MaskFeat of this shape, its weights drawn from the seed."""
    encoder, decoder = architecture.build(
        seed=seed, predicted_dim=num_numbers(architecture.in_channels, architecture.patch_size)
    )
    model = MaskFeat(encoder, decoder, loss=loss, target_norm=target_norm)
    model.architecture = architecture
    return model


def num_numbers(channels: int, patch_size: tuple[int, int]) -> int:
    """K of `oriented_gradients`: for each cell and channel the bins and a mean."""
    return channels * (NUM_BINS + 1) * math.prod(_cells(patch_size))


def oriented_gradients(images: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """What each patch looks like in terms of edges and mean colours.

    Each pixel votes for the two directions next to its gradient's, weighted by nearness and length; a cell of at most
    8 × 8 pixels takes the mean of its pixels' votes, its square root (faint edges count too), and is divided by the
    norm over the 3 × 3 cells around it (local contrast).

    Args:
        images: (B, c, H, W), normalised.
        patch_size: (height, width) in pixels.

    Returns:
        (B, N, K), K as `num_numbers`.
    """
    batch, channels, height, width = images.shape
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    across = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
    down = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    length = (across.square() + down.square()).sqrt()
    direction = torch.atan2(down, across) * (NUM_BINS / (2 * math.pi))  # in bins, -4 to 4
    lower = direction.floor()
    weight, bins = direction - lower, lower.long() % NUM_BINS
    votes = images.new_zeros(batch, channels, NUM_BINS, height, width)
    votes.scatter_(2, bins[:, :, None], (length * (1 - weight))[:, :, None])
    votes.scatter_add_(2, ((bins + 1) % NUM_BINS)[:, :, None], (length * weight)[:, :, None])

    rows, columns = _cells(patch_size)
    cell = (patch_size[0] // rows, patch_size[1] // columns)
    histograms = F.avg_pool2d(votes.flatten(1, 2), cell).sqrt()  # (B, c·8, cells down, cells across)
    around = F.avg_pool2d(
        F.pad(histograms.square().sum(dim=1, keepdim=True), (1, 1, 1, 1), mode="replicate"), 3, stride=1
    ).sqrt()
    colours = F.avg_pool2d(images, cell)
    numbers = torch.cat([_SCALE * histograms / (around + _FAINT), colours], dim=1)
    numbers = numbers.unflatten(2, (-1, rows)).unflatten(
        4, (-1, columns)
    )  # (B, ·, down, rows, across, columns)
    return numbers.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def _cells(patch_size: tuple[int, int]) -> tuple[int, int]:
    """Cells in a patch, down and across: the fewest equal ones that are not too large."""
    down, across = (
        next(count for count in range(1, side + 1) if side % count == 0 and side // count <= _LARGEST_CELL)
        for side in patch_size
    )
    return down, across
