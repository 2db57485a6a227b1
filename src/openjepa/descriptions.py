"""What a new teacher says about a sample of crops: from it follows how whole-image targets are whitened."""

from collections.abc import Iterable

import torch

from openjepa.data.dataset import Batch
from openjepa.methods import IJEPA
from openjepa.methods.whole_image import NUM_LAYERS
from openjepa.probes import prepare

NUM_CROPS = 2048
"""Crops of the sample: three times as many as the numbers that a small encoder describes one with."""


@torch.no_grad()
def fit_whitening(model: IJEPA, batches: Iterable[Batch]) -> None:
    """Fit the model's whole-image targets to its frozen teacher.

    Args:
        model: With a frozen teacher and whole-image targets.
        batches: Views, uint8; two at least.
    """
    assert model.teacher is not None, "the configuration was checked for it"
    assert model.whole_image is not None
    found = [
        model.teacher.layers(prepare(batch.images, model), NUM_LAYERS).float().mean(dim=2)  # (B, L, D)
        for batch in batches
    ]
    model.whole_image.fit(torch.cat(found))
