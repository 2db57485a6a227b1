"""Images as a model takes them."""

from torch import Tensor

from openjepa.data.preprocess import normalise
from openjepa.methods import Method


def prepare(images: Tensor, model: Method) -> Tensor:
    """uint8 images (B, c, h, w), normalised as this model was trained, on its device."""
    assert model.preprocess is not None
    device = model.context_encoder.pos_embed.device
    images = images.to(device, non_blocking=True)
    return normalise(images, mean=model.preprocess.mean, std=model.preprocess.std)
