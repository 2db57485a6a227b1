"""The whole image as one more target: what a frozen teacher says about an image as a whole, whitened over images.

Hidden patches ask for what is near them. This asks, from the same visible patches, for the mean of all patches of the
image, in which every direction counts as much as another: without whitening, colour and brightness would be most of
it. Whitened targets for their own sake: arXiv 2007.06346, which has them instead of a frozen teacher.

Shapes: B images of a batch, N images of a sample, C context blocks, Nc patches in each, P patches of a view, L layers,
D width, K directions.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openjepa.models.transformer import init_weights

NUM_LAYERS = 4
"""Number of final teacher layers whose patch means form the target."""
_MOST_DIRECTIONS = 128
_RIDGE = 1e-3
"""Added to the variances, of the largest: directions that hardly vary are mostly noise (docs/log.md)."""


class WholeImage(nn.Module):
    """Predicts the target of the whole image from the mean of a context block's features.

    Args:
        width: Of the encoder, D.
        depth: Of the encoder, in blocks.

    Attributes:
        mean: Mean of the descriptions that were fitted, (L·D,).
        basis: What whitens a description less its mean, (L·D, K); zeros until `fit`. Both are saved with the weights.
    """

    mean: Tensor
    basis: Tensor

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        size = width * min(depth, NUM_LAYERS)
        directions = min(_MOST_DIRECTIONS, size)
        self.head = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, directions))
        self.head.apply(init_weights)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("basis", torch.zeros(size, directions))

    @property
    def fitted(self) -> bool:
        """Whether `fit` was called."""
        return bool(self.basis.any())

    def fit(self, descriptions: Tensor) -> None:
        """Choose what whitens: for targets of a new teacher.

        Args:
            descriptions: Of a sample of images, means over patches after each of the last layers, (N, L, D); N ≥ 2.
        """
        mean, basis = whitening(descriptions)
        self.mean.copy_(mean)
        self.basis.copy_(basis)

    def targets(self, descriptions: Tensor) -> Tensor:
        """Whitened descriptions: (B, L, D) -> (B, K) float32."""
        with torch.autocast(descriptions.device.type, enabled=False):
            return (descriptions.float().flatten(1) - self.mean) @ self.basis

    def forward(self, context: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error between predicted and whitened targets; about 1 for an uninformative prediction.

        Args:
            context: Features of context blocks, (B, C, Nc, D).
            targets: What `targets` gave, (B, K).
        """
        answers = self.head(context.mean(dim=2)).float()  # (B, C, K)
        return F.mse_loss(answers, targets[:, None].expand_as(answers))


def describe(layers: Tensor) -> Tensor:
    """What a teacher's last layers say about views as a whole: the mean over patches, (B, L, P, D) -> (B, L, D)."""
    return layers.float().mean(dim=2)


def whitening(descriptions: Tensor) -> tuple[Tensor, Tensor]:
    """What makes the main directions of variation uncorrelated, each with about the same variance.

    Args:
        descriptions: (N, L, D), N at least 2.

    Returns:
        The mean (L·D,) and a basis (L·D, K), K = min(128, L·D), float32: ``(rows - mean) @ basis`` has directions in
        decreasing order of what they explain and a mean square of 1. (What is much weaker than a thousandth of the
        strongest direction stays small.)
    """
    with torch.autocast(descriptions.device.type, enabled=False):
        rows = descriptions.float().flatten(1)
        mean, std = rows.mean(dim=0), rows.std(dim=0).clamp_min(1e-6)
        rows = (rows - mean) / std
        variances, directions = torch.linalg.eigh(rows.T @ rows / len(rows))  # increasing
        variances = variances.flip(0)[:_MOST_DIRECTIONS].clamp_min(0)
        basis = directions.flip(1)[:, :_MOST_DIRECTIONS] / (variances + _RIDGE * variances[0] + 1e-12).sqrt()
        size = (rows @ basis).square().mean().sqrt().clamp_min(1e-6)
        return mean, basis / size / std[:, None]


def with_whitening(state: Mapping[str, Tensor], *, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model's tensors with those that whiten: older checkpoints lack them, and they are fitted anew.

    Args:
        state: Of a checkpoint.
        like: Of a new model of its architecture, that is with zeros for them.
    """
    missing = {
        name: own for name, own in like.items() if name.startswith("whole_image.") and name not in state
    }
    return {**state, **missing} if "whole_image.head.0.weight" in state else dict(state)
