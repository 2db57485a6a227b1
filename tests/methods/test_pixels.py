"""A share of the loss on pixels, beside the features: against a definition, and what else it leaves alone."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from openjepa.config import Config
from openjepa.hub import model_of
from openjepa.masks import Masks, make_masks
from openjepa.methods.ijepa import IJEPA, build_ijepa
from openjepa.models.architecture import Architecture
from openjepa.presets import preset, with_method

SHAPE = Architecture((32, 32), (4, 4), 3, 16, 1, 2, 2.0, 8, 1, 2)


def batch(num_images: int = 6) -> tuple[Tensor, Masks]:
    numbers = np.arange(num_images)
    masks = make_masks("multiblock", grid=(8, 8), num_contexts=2)(
        seed=0, step=0, epochs=0 * numbers, samples=numbers
    )
    return torch.randn(num_images, 3, 32, 32, generator=torch.Generator().manual_seed(0)), masks


def both() -> tuple[IJEPA, IJEPA]:
    """The same weights, without and with a share of 0.3 of pixels."""
    plain, mixed = (build_ijepa(SHAPE, loss="contrastive", target_norm="centred", seed=4) for _ in range(2))
    mixed.ask_for_pixels(0.3, seed=4)
    return plain, mixed


def test_the_loss_is_that_of_features_and_of_normalised_pixels_by_share() -> None:
    plain, mixed = both()
    images, masks = batch()
    expected, found = plain(images, masks), mixed(images, masks)
    errors = []
    for image, context, block, patch in np.ndindex(expected.answers.shape[:4]):
        row, column = divmod(int(masks.target[image, block, patch]), 8)
        pixels = images[image, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].flatten()
        wanted = (pixels - pixels.mean()) / (pixels.var(correction=0) + 1e-5).sqrt()
        drawn = mixed.pixel_proj(expected.answers[image, context, block, patch])
        errors.append(F.mse_loss(drawn, wanted))
    torch.testing.assert_close(found.loss, 0.7 * expected.loss + 0.3 * torch.stack(errors).mean())
    torch.testing.assert_close(found.predictions, expected.predictions)
    torch.testing.assert_close(found.targets, expected.targets)


def test_weights_are_those_without_it_and_one_layer_more() -> None:
    plain, mixed = (model.state_dict() for model in both())
    assert mixed.keys() - plain.keys() == {"pixel_proj.weight", "pixel_proj.bias"}
    assert all(torch.equal(plain[name], mixed[name]) for name in plain)


def test_encoder_and_new_layer_learn_pixels_the_target_encoder_does_not() -> None:
    _, model = both()
    noise, masks = batch()
    images = noise[:, :, :4, :4].repeat(1, 1, 8, 8)  # each image one patch, again and again
    model.pixel_share = 0.999
    before = model(images, masks).loss
    before.backward()
    assert model.pixel_proj.weight.grad is not None
    assert model.context_encoder.patch_embed.proj.weight.grad is not None
    assert all(parameter.grad is None for parameter in model.target_encoder.parameters())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model(images, masks).loss.backward()
        optimizer.step()
    assert model(images, masks).loss < 0.8 * before


def test_a_configuration_asks_for_it_and_other_methods_refuse() -> None:
    settings = preset("small")
    settings["objective"] |= {"pixel_share": 0.25}
    model = model_of(Config.model_validate(settings))
    assert isinstance(model, IJEPA)
    assert model.pixel_share == 0.25
    assert model.pixel_proj.out_features == 48
    with pytest.raises(ValidationError, match=r"pixel_share: 0\.25 is for method ijepa"):
        Config.model_validate({**settings, "method": "mae"})
    assert Config.model_validate(with_method(settings, "mae")).objective.pixel_share == 0
