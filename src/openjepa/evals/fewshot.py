"""Few labels: the paper's linear heads on small subsets of the training images, several of each size.

    scores = fewshot(train_x, train_y, test_x, test_y)     # {"0.01": {"top1": …, "std": …}, "0.10": …}

A subset has the same part, or the same number, of each class, and is a pure function of labels, size and seed.
"""

from collections.abc import Sequence
from statistics import mean, pstdev
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openjepa.errors import DataError
from openjepa.evals.linear import linear
from openjepa.evals.splits import all_views
from openjepa.rng import uniform

FEWEST = 2
"""Images of a class: one to fit, one to choose settings on."""


class Size(NamedTuple):
    """How many images of each class keep their labels: a part of them, or a number."""

    part: float | None = None
    number: int | None = None

    @property
    def name(self) -> str:
        """In results: "0.01", or "5 a class"."""
        return f"{self.part:.2f}" if self.part is not None else f"{self.number} a class"

    def of(self, num: int) -> int:
        """Of so many images."""
        return round(self.part * num) if self.part is not None else self.number or 0


def sizes(*, fractions: Sequence[float], per_class: Sequence[int]) -> list[Size]:
    """All sizes that are asked for."""
    return [*(Size(part=part) for part in fractions), *(Size(number=number) for number in per_class)]


def subset(
    labels: NDArray[np.int64], size: Size, *, seed: int, classes: Sequence[str] | None = None
) -> NDArray[np.int64]:
    """Rows of a subset, sorted.

    Args:
        labels: (N,) from 0.
        size: Of each class.
        seed: Another seed, another subset.
        classes: Names for errors.

    Raises:
        DataError: A class has too few images.
    """
    order = np.lexsort((uniform(seed, "fewshot", np.arange(len(labels)), num=1)[:, 0], labels))
    ranked = labels[order]
    kept = []
    for label in np.unique(labels):
        rows = order[ranked == label]
        wanted = size.of(len(rows))
        if not FEWEST <= wanted <= len(rows):
            name = repr(classes[label]) if classes else f"number {label}"
            raise DataError(
                f"fewshot {size.name}: class {name} has {len(rows)} training images, of which {wanted} would be used; "
                f"it takes at least {FEWEST}, and no more than there are: change fewshot.fractions or fewshot.per_class"
            )
        kept.append(rows[:wanted])
    return np.sort(np.concatenate(kept))


def fewshot(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    *,
    fractions: Sequence[float] = (0.01, 0.1),
    per_class: Sequence[int] = (),
    subsets: int = 3,
    seed: int = 0,
    num_views: int = 1,
    classes: Sequence[str] | None = None,
    **settings: Any,
) -> dict[str, dict[str, Any]]:
    """Accuracy of `linear` on all test images, fitted on subsets of the training images.

    Args:
        train_x: Training features (N, D) or (N, L, D).
        train_y: Training labels (N,) int64, from 0.
        test_x: Test features, alike.
        test_y: Test labels (T,).
        fractions: Parts of each class that keep their labels.
        per_class: Numbers of images of each class that keep them.
        subsets: Of each size; their seeds are ``seed``, ``seed`` + 1, …
        seed: Of the first subset.
        num_views: How often each training image is there, see `validation_split`.
        classes: Names for errors.
        **settings: As `linear`'s.

    Returns:
        By the size's name the mean ``top1``, its ``std`` over the subsets, ``predictions`` (S, T) from each subset,
        ``num_train`` images, and ``subsets``: the accuracy of each.

    Raises:
        DataError: A class has too few images.
    """
    labels = train_y[: len(train_y) // num_views].cpu().numpy()
    scores = {}
    for size in sizes(fractions=fractions, per_class=per_class):
        found, answers = [], []
        for number in range(seed, seed + subsets):
            few = subset(labels, size, seed=number, classes=classes)
            rows = all_views(torch.from_numpy(few), len(labels), num_views).to(train_x.device)
            fitted = linear(
                train_x[rows], train_y[rows], test_x, test_y, seed=number, num_views=num_views, **settings
            )
            found.append(fitted.top1)
            answers.append(fitted.predictions)
        scores[size.name] = {
            "top1": mean(found),
            "std": pstdev(found),
            "predictions": torch.stack(answers),
            "num_train": len(few),
            "subsets": found,
        }
    return scores
