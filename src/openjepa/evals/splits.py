"""Which training images a protocol fits on, and which it chooses its settings on."""

import numpy as np
import torch
from torch import Tensor

from openjepa.errors import DataError
from openjepa.rng import uniform


def validation_split(labels: Tensor, *, seed: int, num_views: int = 1) -> tuple[Tensor, Tensor]:
    """Splits the training images: rows to fit on (about 90 %) and rows to choose settings on.

    Within each class the images are ranked at random, and the 2nd, 12th, 22nd … are held out. So the split
    is stratified, no class loses its only image, and every class with two has one to validate on.

    Args:
        labels: (N,) int64.
        seed: The split is a pure function of the labels and the seed.
        num_views: Rows are so many views of the same images, all images once, then all again. All views of an image
            are on one side, and settings are chosen on the first.

    Returns:
        Row numbers of the two parts, int64; with one view together a permutation of range(N).

    Raises:
        DataError: No class has two images.
    """
    classes = labels[: len(labels) // num_views].cpu().numpy()
    order = np.lexsort((uniform(seed, "validation", np.arange(len(classes)), num=1)[:, 0], classes))
    rank = np.arange(len(classes)) - np.searchsorted(classes[order], classes[order])
    held_out = rank % 10 == 1
    if not held_out.any():
        raise DataError(
            f"the training data have {len(classes)} images of {len(np.unique(classes))} classes, one of each; "
            "a linear probe needs two of some class, one to fit and one to validate on: add images"
        )
    fit, validation = torch.from_numpy(order[~held_out]), torch.from_numpy(order[held_out])
    return all_views(fit, len(classes), num_views).to(labels.device), validation.to(labels.device)


def part_of_each(labels: Tensor, most: int, *, seed: int) -> Tensor:
    """Rows of about ``most`` images, where there are more: the same part of each class.

    A class keeps two images where it has them, one to fit and one to validate on, so that a rare one does not vanish.

    Args:
        labels: (N,) int64.
        most: How many images; a few more where classes are that small.
        seed: The rows are a pure function of the labels and the seed.

    Returns:
        Row numbers (n,) int64, sorted.
    """
    classes = labels.cpu().numpy()
    order = np.lexsort((uniform(seed, "part", np.arange(len(classes)), num=1)[:, 0], classes))
    rank = np.arange(len(classes)) - np.searchsorted(classes[order], classes[order])
    sizes = np.bincount(classes)[classes[order]]
    kept = rank < np.maximum(2, sizes * most // max(most, len(classes)))
    return torch.from_numpy(np.sort(order[kept])).to(labels.device)


def all_views(rows: Tensor, num_images: int, num_views: int) -> Tensor:
    """The rows (n,) of some images in all their views, (num_views · n,)."""
    return (rows + num_images * torch.arange(num_views)[:, None]).flatten()
