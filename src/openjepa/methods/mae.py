"""The masked autoencoder, the yardstick: predict the pixels of hidden patches (MAE, arXiv 2111.06377).

The encoder sees a quarter of the patches, drawn at random; the predictor, here called decoder by its authors, says
what the others look like, each patch's pixels made zero-mean and unit-variance. It differs from I-JEPA here in
what is predicted and in which patches are hidden, and in nothing else: encoder, predictor, data, step and evaluation
are shared. There is no second encoder: the one that is trained is the one that is used.
"""

from torch import Tensor

from openjepa.methods.losses import Loss
from openjepa.methods.method import Method, TargetNorm
from openjepa.models.architecture import Architecture
from openjepa.models.vit import VisionTransformer


class MAE(Method):
    """Encoder and decoder of a masked autoencoder. Arguments as `Method`'s; `mse` and `layer` are its authors'."""

    @property
    def target_encoder(self) -> VisionTransformer:  # type: ignore[override]
        """The encoder that is trained: there is no other."""
        return self.context_encoder

    def raw_targets(self, images: Tensor) -> Tensor:
        """The pixels of each patch: (B, c, H, W) -> (B, N, c·h·w)."""
        return self.context_encoder.patch_embed.cut(images)

    def update_target(self, momentum: float) -> None:
        """Nothing moves beside the optimiser."""


def build_mae(
    architecture: Architecture, *, loss: Loss = "mse", target_norm: TargetNorm = "layer", seed: int = 0
) -> MAE:
    """A new masked autoencoder of this shape, its weights drawn from the seed."""
    shape = architecture
    num_pixels = shape.in_channels * shape.patch_size[0] * shape.patch_size[1]
    encoder, decoder = architecture.build(seed=seed, predicted_dim=num_pixels)
    model = MAE(encoder, decoder, loss=loss, target_norm=target_norm)
    model.architecture = architecture
    return model
