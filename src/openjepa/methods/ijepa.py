"""I-JEPA: predict the representation of hidden blocks of an image from a visible one (arXiv 2301.08243, section 3).

A context encoder sees the visible patches. A predictor, told only where, predicts what the target
encoder says about hidden blocks. The target encoder sees the whole image, gets no gradient, and is
the exponential moving average of the context encoder. The loss lives in representation space.

Shapes: B images, C context blocks, M target blocks, Nc and Nt patches in each, N patches, D width.
"""

import copy
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openjepa.masks import Masks
from openjepa.models.architecture import Architecture
from openjepa.models.predictor import Predictor
from openjepa.models.transformer import gather_tokens
from openjepa.models.vit import VisionTransformer

Loss = Literal["mse", "smooth_l1"]
TargetNorm = Literal["none", "layer", "centred"]


class Preprocessing(Protocol):
    """How an image becomes the encoder's input; what it is exactly, the data side knows."""

    @property
    def mean(self) -> tuple[float, ...]:
        """Channel means in [0, 1]."""

    @property
    def std(self) -> tuple[float, ...]:
        """Channel standard deviations in [0, 1]."""

    def __call__(self, image: Any) -> Tensor:
        """An image, or the path of one -> (1, c, H, W), normalised."""


@dataclass(frozen=True)
class IJEPAOutput:
    """What one forward pass gives."""

    loss: Tensor
    """Mean over all elements of the chosen distance, a scalar."""
    predictions: Tensor
    """(B, C, M, Nt, D)."""
    targets: Tensor
    """(B, M, Nt, D), without gradient."""


class IJEPA(nn.Module):
    """Context encoder, predictor and target encoder, with the objective that trains them.

    Args:
        encoder: The context encoder; the target encoder starts as its copy.
        predictor: The predictor.
        loss: ``mse`` (the paper) or ``smooth_l1`` (the authors' code, β = 1).
        target_norm: `none` (the paper), `layer`: targets pass one more LayerNorm, without parameters (the
            authors' code), or `centred`: before it, each position's mean over the batch is taken away, so that
            nothing is gained by features that only tell the position.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        predictor: Predictor,
        *,
        loss: Loss = "smooth_l1",
        target_norm: TargetNorm = "layer",
    ) -> None:
        super().__init__()
        self.context_encoder = encoder
        self.predictor = predictor
        self.target_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.preprocess: Preprocessing | None = None  # set by whoever knows the images (openjepa.load)
        self.architecture: Architecture | None = None  # set by build_ijepa
        self.loss: Loss = loss
        self.target_norm: TargetNorm = target_norm

    def forward(self, images: Tensor, masks: Masks) -> IJEPAOutput:
        """Loss, predictions and targets of a batch.

        Args:
            images: (B, c, H, W), normalised.
            masks: Which patches are context and which are targets.

        Returns:
            The loss with everything that went into it. All context blocks share one target pass.
        """
        targets = gather_tokens(self.encode_targets(images), masks.target.flatten(1))  # (B, M·Nt, D)
        targets = targets.unflatten(1, masks.target.shape[1:])  # (B, M, Nt, D)
        context = self.encode_context(images, masks.context)  # (B, C, Nc, D)
        predictions = self.predictor(context, masks.context, masks.target)  # (B, C, M, Nt, D)

        distance = F.mse_loss if self.loss == "mse" else F.smooth_l1_loss
        loss = distance(predictions, targets[:, None].expand_as(predictions))
        return IJEPAOutput(loss=loss, predictions=predictions, targets=targets)

    def encode_context(self, images: Tensor, index: Tensor) -> Tensor:
        """Features of context blocks, each encoded by itself: (B, c, H, W), (B, C, Nc) -> (B, C, Nc, D)."""
        tokens = self.context_encoder.embed(images, index.flatten(1))  # (B, C·Nc, D)
        blocks = tokens.reshape(-1, index.shape[2], tokens.shape[2])  # (B·C, Nc, D)
        return self.context_encoder.encode(blocks).unflatten(0, index.shape[:2])

    @torch.no_grad()
    def encode_targets(self, images: Tensor) -> Tensor:
        """What is to be predicted, for every patch of whole images: (B, c, H, W) -> (B, N, D)."""
        features = self.target_encoder(images)
        if self.target_norm == "none":
            return features
        if self.target_norm == "centred":
            features = features - features.mean(dim=0)
        return F.layer_norm(features, features.shape[-1:])

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
    shape = architecture
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = VisionTransformer(
            shape.image_size,
            shape.patch_size,
            in_channels=shape.in_channels,
            embed_dim=shape.embed_dim,
            depth=shape.depth,
            num_heads=shape.num_heads,
            mlp_ratio=shape.mlp_ratio,
        )
        predictor = Predictor(
            shape.grid,
            embed_dim=shape.embed_dim,
            predictor_dim=shape.predictor_dim,
            depth=shape.predictor_depth,
            num_heads=shape.predictor_heads,
            shared_context=shape.shared_context,
        )
    model = IJEPA(encoder, predictor, loss=loss, target_norm=target_norm)
    model.architecture = architecture
    return model
