"""What the teacher of a run says about each image as a whole: targets that are computed once, before they are used."""

from collections.abc import Iterable

import torch
from torch import Tensor

from openjepa.data.dataset import Batch
from openjepa.methods import IJEPA
from openjepa.methods.whole_image import NUM_LAYERS, whiten
from openjepa.probes import prepare

MOST_IMAGES = 100_000
"""Images that get a target: with more, evenly spaced ones, so that no run spends its time on this."""


@torch.no_grad()
def whole_targets(model: IJEPA, batches: Iterable[Batch], num_images: int) -> Tensor:
    """The targets of whole images by sample, (N, K) float32 on the CPU; rows of images without one are NaN.

    A function of the teacher and the images alone, so that a resumed run computes the same again.

    Args:
        model: With a teacher that is held still.
        batches: Evaluation views, uint8.
        num_images: Of the data set, N.
    """
    assert model.teacher is not None, "the configuration was checked for it"
    samples, found = [], []
    for batch in batches:
        layers = model.teacher.layers(prepare(batch.images, model), NUM_LAYERS)  # (B, L, P, D)
        samples.append(torch.from_numpy(batch.samples))
        found.append(layers.float().mean(dim=2).cpu())
    targets = whiten(torch.cat(found))
    table = torch.full((num_images, targets.shape[1]), torch.nan)
    table[torch.cat(samples)] = targets
    return table
