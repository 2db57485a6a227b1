"""I-JEPA: predict the representation of hidden blocks of an image from a visible one (arXiv 2301.08243, section 3).

A context encoder sees the visible patches. A predictor, told only where, predicts what the target
encoder says about hidden blocks. The target encoder sees the whole image, gets no gradient, and is
the exponential moving average of the context encoder. The loss lives in representation space.

Shapes: B images, C context blocks, M target blocks, Nc and Nt patches in each, N patches, D width.
"""

import copy

import torch
from torch import Tensor

from openjepa.methods.losses import Loss
from openjepa.methods.method import Method, TargetNorm
from openjepa.models.architecture import Architecture
from openjepa.models.predictor import Predictor
from openjepa.models.vit import VisionTransformer


class IJEPA(Method):
    """Context encoder, predictor and target encoder, with the objective that trains them. Arguments as `Method`'s.

    The target encoder starts as a copy of the context encoder. Of the normalisations of targets, `none` is the
    paper's, `layer` the authors' code's.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        predictor: Predictor,
        *,
        loss: Loss = "smooth_l1",
        target_norm: TargetNorm = "layer",
    ) -> None:
        super().__init__(encoder, predictor, loss=loss, target_norm=target_norm)
        self.target_encoder = copy.deepcopy(encoder).requires_grad_(False)

    def raw_targets(self, images: Tensor) -> Tensor:
        """What the target encoder says about whole images: (B, c, H, W) -> (B, N, D)."""
        return self.target_encoder(images)

    @torch.no_grad()
    def update_target(self, momentum: float) -> None:
        """One step of the moving average: target ← m·target + (1−m)·context.

        Its horizon is 1/(1−m) steps: a context encoder of k steps ago weighs (1−m)·mᵏ.

        Args:
            momentum: m in [0, 1].

        Raises:
            ValueError: m outside [0, 1].
        """
        if not 0.0 <= momentum <= 1.0:
            raise ValueError(f"EMA momentum must lie in [0, 1], got {momentum}")
        torch._foreach_lerp_(
            list(self.target_encoder.parameters()), list(self.context_encoder.parameters()), 1.0 - momentum
        )


def build_ijepa(
    architecture: Architecture, *, loss: Loss = "smooth_l1", target_norm: TargetNorm = "layer", seed: int = 0
) -> IJEPA:
    """A new model of this shape, its weights drawn from the seed (the global generator is left as it was)."""
    encoder, predictor = architecture.build(seed=seed)
    model = IJEPA(encoder, predictor, loss=loss, target_norm=target_norm)
    model.architecture = architecture
    return model
