"""Histograms of gradients: directions, cells, contrast; and a method that learns to predict them."""

import math

import numpy as np
import pytest
import torch

from openjepa.masks import make_masks
from openjepa.methods import build
from openjepa.methods.maskfeat import NUM_BINS, num_numbers, oriented_gradients
from openjepa.models.architecture import Architecture


@pytest.mark.parametrize("turn", range(8))
def test_a_slope_votes_for_its_direction(turn: int) -> None:
    """Images that rise along 0°, 45°, …: all of the histogram is in that bin."""
    angle = 2 * math.pi * turn / 8
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    image = (columns * math.cos(angle) + rows * math.sin(angle))[None, None]
    # Padding repeats the border, where gradients of oblique slopes are cut short: look at an inner patch.
    inner = oriented_gradients(torch.nn.functional.interpolate(image, size=24, mode="bilinear"), (4, 4))
    histogram = inner.view(6, 6, NUM_BINS + 1)[2, 3, :NUM_BINS]
    assert histogram.argmax().item() == turn
    assert histogram[turn] / histogram.sum() > 0.95


def test_a_direction_between_two_bins_is_shared() -> None:
    angle = 2 * math.pi * 0.5 / 8
    rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    image = (columns * math.cos(angle) + rows * math.sin(angle))[None, None]
    histogram = oriented_gradients(image, (4, 4)).view(3, 3, -1)[1, 1, :NUM_BINS]
    assert histogram[0].item() == pytest.approx(histogram[1].item(), rel=1e-3)
    assert histogram[2:].abs().max() < 1e-3


@pytest.mark.parametrize(
    ("patch", "cells"), [((4, 4), 1), ((8, 8), 1), ((16, 16), 4), ((14, 14), 4), ((16, 8), 2)]
)
def test_large_patches_have_several_cells(patch: tuple[int, int], cells: int) -> None:
    images = torch.randn(2, 3, 2 * patch[0], 3 * patch[1], generator=torch.Generator().manual_seed(0))
    numbers = oriented_gradients(images, patch)
    assert numbers.shape == (2, 6, num_numbers(3, patch)) == (2, 6, cells * 27)
    means = images[1, :, : patch[0], patch[1] : 2 * patch[1]].mean((1, 2))
    # The last three rows of numbers are the colours, cell by cell.
    colours = numbers[1, 1].view(27, cells)[24:].mean(dim=1)
    assert torch.allclose(colours, means, atol=1e-5)


def test_contrast_does_not_matter_but_faint_noise_stays_faint() -> None:
    images = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    strong, half, faint = (oriented_gradients(images * by, (4, 4))[..., :NUM_BINS] for by in (8, 4, 1e-4))
    assert torch.allclose(strong, half, rtol=0.05, atol=0.01)
    assert faint.abs().max() < 0.3


def test_it_learns() -> None:
    shape = Architecture((16, 16), (4, 4), 3, 32, 2, 2, 2.0, 16, 1, 2)
    model = build("maskfeat", shape, loss="mse", target_norm="none")
    images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)).cumsum(3) / 4
    sampler = make_masks("random", grid=(4, 4), target_fraction=0.75)
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=3e-3), []
    for step in range(30):
        masks = sampler(seed=0, step=step, epochs=np.full(8, step), samples=np.arange(8))
        loss = model(images, masks).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:3])
