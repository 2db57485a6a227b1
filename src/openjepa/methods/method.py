"""What I-JEPA and the masked autoencoder share: an encoder sees part of an image, a predictor says what is hidden.

Methods differ in what is to be predicted (`raw_targets`) and in what moves after a step (`update_target`).

Shapes: B images, C context blocks, M target blocks, Nc and Nt patches in each, N patches, D width, K numbers that
are to be predicted of a patch, P the predictor's width.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openjepa.masks import Masks
from openjepa.methods.losses import TEMPERATURE, Loss, contrastive_loss, fitted_length, pick_patches
from openjepa.models.architecture import Architecture
from openjepa.models.predictor import Predictor
from openjepa.models.vit import VisionTransformer

TargetNorm = Literal["none", "layer", "centred", "double_centred"]


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


class Targets(NamedTuple):
    """What is to be predicted of a batch, without gradient; a function of the images, whatever is masked."""

    patches: Tensor
    """For all patches, (B, N, K)."""
    whole: Tensor | None = None
    """For each image as a whole, (B, W), where a method asks for it."""

    def to(self, dtype: torch.dtype) -> "Targets":
        """The same in another type."""
        return Targets(self.patches.to(dtype), None if self.whole is None else self.whole.to(dtype))

    def split(self, size: int) -> list["Targets"]:
        """Parts of so many images."""
        patches = self.patches.split(size)
        wholes = [None] * len(patches) if self.whole is None else self.whole.split(size)
        return [Targets(part, whole) for part, whole in zip(patches, wholes, strict=True)]


@dataclass(frozen=True)
class Output:
    """What one forward pass gives."""

    loss: Tensor
    """Mean over all elements of the chosen distance, or over all patches of the contrast, a scalar."""
    predictions: Tensor
    """(B, C, M, Nt, K); of a contrast, which asks for a direction only, at fitted length and without gradient."""
    targets: Tensor
    """(B, M, Nt, K), without gradient."""
    full_targets: Tensor
    """The targets of all patches, (B, N, K), without gradient."""
    answers: Tensor
    """(B, C, M, Nt, P), what the predictor's last layer read the predictions from."""
    context: Tensor
    """Features of the context blocks, (B, C, Nc, D)."""


class Method(nn.Module):
    """An encoder, a predictor, and the objective that trains them.

    Args:
        encoder: The context encoder.
        predictor: The predictor.
        loss: ``mse`` (the papers), ``smooth_l1`` (the authors' I-JEPA, β = 1), or ``contrastive``: not how far from its
            target a prediction is, but whether it is nearer to it than to other images' at that position.
        target_norm: `none`, `layer`: the targets of a patch pass a LayerNorm without parameters (the authors' I-JEPA;
            the "normalised pixels" of a masked autoencoder), `centred`: before it, each position's mean over the
            batch is taken away, so that nothing is gained by predictions that only tell the position, or
            `double_centred`: each image's mean over its patches, too, so that nothing is gained by telling only what
            any part of the image shows, as its overall colour and brightness.

    Attributes:
        target_encoder: What features are taken from, after training; never optimised by itself.
        preprocess: Set by whoever knows the images (openjepa.load).
        architecture: Set by whoever built it.
        temperature: Of the loss `contrastive`.
    """

    target_encoder: VisionTransformer

    def __init__(
        self, encoder: VisionTransformer, predictor: Predictor, *, loss: Loss, target_norm: TargetNorm
    ) -> None:
        super().__init__()
        self.context_encoder = encoder
        self.predictor = predictor
        self.preprocess: Preprocessing | None = None
        self.architecture: Architecture | None = None
        self.loss: Loss = loss
        self.target_norm: TargetNorm = target_norm
        self.temperature = TEMPERATURE

    def forward(self, images: Tensor, masks: Masks, asked: Targets | None = None) -> Output:
        """Loss, predictions and targets of a batch.

        Args:
            images: (B, c, H, W), normalised.
            masks: Which patches are context and which are targets.
            asked: What `ask` gave for these images, where it was called before; else it is called now.

        Returns:
            The loss with everything that went into it. All context blocks share one pass for targets.
        """
        full_targets = (asked or self.ask(images)).patches  # (B, N, K)
        targets = pick_patches(full_targets, masks.target)  # (B, M, Nt, K)
        context = self.encode_context(images, masks.context)  # (B, C, Nc, D)
        answers = self.predictor.answer(context, masks.context, masks.target)  # (B, C, M, Nt, P)
        predictions = self.predictor.predictor_proj(answers)  # (B, C, M, Nt, K)
        if self.loss == "contrastive":
            loss = contrastive_loss(predictions, full_targets, masks.target, temperature=self.temperature)
            predictions = fitted_length(predictions.detach(), targets[:, None])
        else:
            distance = F.mse_loss if self.loss == "mse" else F.smooth_l1_loss
            loss = distance(predictions, targets[:, None].expand_as(predictions))
        return Output(loss, predictions, targets, full_targets, answers, context)

    @property
    def shape(self) -> Architecture:
        """The architecture, which whoever built the model has set."""
        assert self.architecture is not None
        return self.architecture

    def encode_context(self, images: Tensor, index: Tensor) -> Tensor:
        """Features of context blocks, each encoded by itself: (B, c, H, W), (B, C, Nc) -> (B, C, Nc, D)."""
        tokens = self.context_encoder.embed(images, index.flatten(1))  # (B, C·Nc, D)
        blocks = tokens.reshape(-1, index.shape[2], tokens.shape[2])  # (B·C, Nc, D)
        return self.context_encoder.encode(blocks).unflatten(0, index.shape[:2])

    def ask(self, images: Tensor) -> Targets:
        """What is to be predicted of these images: (B, c, H, W), normalised."""
        return Targets(self.encode_targets(images))

    @torch.no_grad()
    def encode_targets(self, images: Tensor) -> Tensor:
        """What is to be predicted, for every patch of whole images: (B, c, H, W) -> (B, N, K)."""
        return self.normalise_targets(self.raw_targets(images))

    def normalise_targets(self, targets: Tensor) -> Tensor:
        """Targets as ``target_norm`` says: (B, N, K) -> (B, N, K)."""
        if self.target_norm == "none":
            return targets
        if self.target_norm in ("centred", "double_centred"):
            targets = targets - targets.mean(dim=0)
        if self.target_norm == "double_centred":
            targets = targets - targets.mean(dim=1, keepdim=True)
        return F.layer_norm(targets, targets.shape[-1:])

    @abstractmethod
    def raw_targets(self, images: Tensor) -> Tensor:
        """What is to be predicted before it is normalised: (B, c, H, W) -> (B, N, K)."""

    @abstractmethod
    def update_target(self, momentum: float) -> None:
        """What moves after a step beside the optimiser.

        Args:
            momentum: Of a moving average, in [0, 1].
        """

    def renew_teacher(self) -> None:
        """Take the next targets where they are held still for a while (I-JEPA with ``ema.generations``)."""
