"""How far predictions are from their targets: squared error, smooth L1, or a contrast with other images.

Shapes: B images, C context blocks, M target blocks, Nt patches in each, N patches, K numbers that are predicted of a
patch.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from openjepa.models.transformer import gather_tokens

Loss = Literal["mse", "smooth_l1", "contrastive"]
TEMPERATURE = 0.2
"""Of `contrastive`, in cosine: measured on CIFAR-10 (docs/log.md)."""


def pick_patches(tokens: Tensor, index: Tensor) -> Tensor:
    """The patches of target blocks: (B, N, K) and (B, M, Nt) -> (B, M, Nt, K)."""
    return gather_tokens(tokens, index.flatten(1)).unflatten(1, index.shape[1:])


def contrastive_loss(
    predictions: Tensor, full_targets: Tensor, target_index: Tensor, *, temperature: float = TEMPERATURE
) -> Tensor:
    """Which image of the batch does this prediction belong to? InfoNCE (arXiv 1807.03748).

    A prediction is compared, by cosine, with what the target encoder says about *all* images at the same position; the
    loss is the cross-entropy of picking its own. As all candidates share the position, nothing is gained by encoding
    it, and constant features are worth no more than a guess, log B, where a squared error calls them perfect.

    Args:
        predictions: (B, C, M, Nt, K).
        full_targets: For all patches of the same images, (B, N, K).
        target_index: The patches that were predicted, (B, M, Nt) int64.
        temperature: Differences of cosine that count.

    Returns:
        Mean over all predictions, a scalar; log B for predictions that tell nothing.
    """
    num_images, num_patches, width = full_targets.shape
    candidates = F.normalize(full_targets.float(), dim=2).permute(1, 2, 0)  # (N, K, B)
    units = F.normalize(predictions.float(), dim=4)
    total = units.new_zeros(())
    # Each position has as many predictions as images that have it in the block: a dense table of all positions, of
    # which absent ones are left out of the sum, is one product. Blocks may overlap, so each has a table of its own.
    for block, index in enumerate(target_index.unbind(dim=1)):  # (B, Nt)
        asked = torch.zeros(num_images, num_patches, dtype=torch.bool, device=index.device).scatter(
            1, index, True
        )
        for answers in units[:, :, block].unbind(dim=1):  # (B, Nt, K)
            table = answers.new_zeros(num_images, num_patches, width)
            table = table.scatter(1, index[..., None].expand_as(answers), answers)
            scores = torch.bmm(table.transpose(0, 1), candidates).float() / temperature  # (N, B, B)
            missed = scores.logsumexp(dim=2) - scores.diagonal(dim1=1, dim2=2)  # (N, B)
            total = total + (missed * asked.T).sum()
    return total / predictions.shape[:4].numel()


@torch.no_grad()
def fitted_length(predictions: Tensor, targets: Tensor) -> Tensor:
    """Predictions times the one number that brings them nearest to the targets: for a loss that ignores length.

    Both of the same shape, or of shapes that broadcast.
    """
    scale = (predictions * targets).sum() / predictions.square().sum().clamp_min(1e-12)
    return predictions * scale
