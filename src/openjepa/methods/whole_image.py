"""The whole image as one more target: what a teacher that is held still says about it, whitened over images.

Hidden patches ask for what is near them. This asks, from the same visible patches, for the mean of all patches of the
image, in which every direction counts as much as another: without whitening, colour and brightness would be most of
it. Whitened targets for their own sake: arXiv 2007.06346, which has them instead of a teacher that is held still.

Shapes: B images of a batch, N images of a data set, C context blocks, Nc patches in each, L layers, D width, K
directions.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openjepa.models.transformer import init_weights

NUM_LAYERS = 4
"""Of the teacher, the last of which the mean over patches is taken."""
_MOST_DIRECTIONS = 128
_RIDGE = 1e-3
"""Added to the variances, of the largest: directions that hardly vary are mostly noise (docs/log.md)."""


class WholeImage(nn.Module):
    """Predicts the target of the whole image from the mean of a context block's features.

    Args:
        width: Of the encoder, D.
        depth: Of the encoder, in blocks.
    """

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        directions = min(_MOST_DIRECTIONS, width * min(depth, NUM_LAYERS))
        self.head = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, directions))
        self.head.apply(init_weights)

    def forward(self, context: Tensor, targets: Tensor) -> Tensor:
        """How much of the targets the context blocks do not tell: 0 all is told, 1 nothing.

        Args:
            context: Features of context blocks, (B, C, Nc, D).
            targets: Rows of what `whiten` gave, (B, K); images without a target have NaN and are left out.

        Returns:
            Mean squared error, a scalar; 0 where no image has a target.
        """
        answers = self.head(context.mean(dim=2)).float()  # (B, C, K)
        has_one = targets.isfinite().all(dim=1)  # (B,)
        wanted = targets.where(has_one[:, None], 0.0)[:, None].expand_as(answers)
        missed = F.mse_loss(answers, wanted, reduction="none").mean(dim=(1, 2))
        return (missed * has_one).sum() / has_one.sum().clamp_min(1)


def whiten(descriptions: Tensor) -> Tensor:
    """The targets of images: their main directions of variation, each with the same variance.

    Args:
        descriptions: Means over patches after each of the last layers, (N, L, D); N at least 2.

    Returns:
        (N, K) float32, K = min(128, L·D), in decreasing order of what they explain; of mean square 1. (What is much
        weaker than a thousandth of the strongest direction stays small.)
    """
    with torch.autocast(descriptions.device.type, enabled=False):
        rows = descriptions.float().flatten(1)
        rows = (rows - rows.mean(dim=0)) / rows.std(dim=0).clamp_min(1e-6)
        variances, directions = torch.linalg.eigh(rows.T @ rows / len(rows))  # increasing
        variances = variances.flip(0)[:_MOST_DIRECTIONS].clamp_min(0)
        scale = (variances + _RIDGE * variances[0] + 1e-12).sqrt()
        found = rows @ directions.flip(1)[:, :_MOST_DIRECTIONS] / scale
        return found / found.square().mean().sqrt().clamp_min(1e-6)
