"""The contrast with other images: against a slow definition, its bounds, and what it makes of constant features."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from openjepa.health import explained_variance
from openjepa.masks import Masks, make_masks
from openjepa.methods.ijepa import IJEPA, build_ijepa
from openjepa.methods.losses import contrastive_loss, fitted_length
from openjepa.models.architecture import Architecture

SHAPE = Architecture((32, 32), (4, 4), 3, 16, 1, 2, 2.0, 8, 1, 2)
NUM_IMAGES = 5


def example(*, num_contexts: int = 2, num_targets: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions (B, C, M, Nt, K), targets (B, N, K), index (B, M, Nt); target blocks overlap."""
    generator = torch.Generator().manual_seed(3)
    sampler = make_masks("multiblock", grid=(8, 8), num_targets=num_targets, num_contexts=num_contexts)
    masks = sampler(seed=0, step=0, epochs=np.zeros(NUM_IMAGES, np.int64), samples=np.arange(NUM_IMAGES))
    predictions = torch.randn(
        NUM_IMAGES, num_contexts, num_targets, masks.target.shape[2], 6, generator=generator
    )
    return predictions, torch.randn(NUM_IMAGES, 64, 6, generator=generator), masks.target


def test_it_is_the_cross_entropy_over_images_at_the_same_position() -> None:
    predictions, targets, index = example()
    losses = []
    for image, context, block, patch in np.ndindex(predictions.shape[:4]):
        position = index[image, block, patch]
        scores = F.cosine_similarity(predictions[image, context, block, patch], targets[:, position]) / 0.3
        losses.append(F.cross_entropy(scores, torch.tensor(image)))
    torch.testing.assert_close(
        contrastive_loss(predictions, targets, index, temperature=0.3), torch.stack(losses).mean()
    )


def test_what_tells_the_position_only_is_worth_log_b() -> None:
    predictions, targets, index = example()
    everywhere = targets[:1].expand_as(targets)  # differs by position, not by image
    known = everywhere[torch.arange(NUM_IMAGES)[:, None, None], index][:, None].expand_as(predictions)
    assert contrastive_loss(known, everywhere, index).item() == pytest.approx(math.log(NUM_IMAGES), abs=1e-5)


def test_perfect_predictions_of_differing_targets_are_worth_little() -> None:
    _, targets, index = example()
    perfect = targets[torch.arange(NUM_IMAGES)[:, None, None], index][:, None]
    assert contrastive_loss(perfect, targets, index, temperature=0.02).item() < 0.1 * math.log(NUM_IMAGES)


def test_the_length_of_predictions_does_not_matter_and_is_fitted() -> None:
    predictions, targets, index = example(num_contexts=1)
    torch.testing.assert_close(
        contrastive_loss(7 * predictions, targets, index), contrastive_loss(predictions, targets, index)
    )
    wanted = targets[torch.arange(NUM_IMAGES)[:, None, None], index][:, None]
    torch.testing.assert_close(fitted_length(0.1 * wanted, wanted), wanted)


@pytest.fixture
def model() -> IJEPA:
    return build_ijepa(SHAPE, loss="contrastive", target_norm="centred")


def test_a_method_learns_by_it_and_its_predictions_can_be_measured(model: IJEPA) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(16, 3, 1, 1, generator=generator) + 0.1 * torch.randn(
        16, 3, 32, 32, generator=generator
    )
    numbers = np.arange(16)
    masks: Masks = make_masks("random", grid=(8, 8))(seed=0, step=0, epochs=0 * numbers, samples=numbers)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    losses = []
    for _ in range(100):
        out = model(images, masks)
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(out.loss.item())
    assert losses[-1] < 0.7 * math.log(16) < losses[0]
    found = model(images, masks)
    assert not found.predictions.requires_grad
    full_targets = model.encode_targets(images)
    # Of any length, predictions would be worse than the mean; of the fitted one they can't be, where it is zero.
    assert explained_variance(found.predictions, full_targets=full_targets, target_index=masks.target) > 0.2
