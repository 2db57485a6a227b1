"""The labels of the images that were embedded: matched by name between training and test images, and checked."""

import logging
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openjepa.data.sources import Source
from openjepa.errors import DataError

_log = logging.getLogger(__name__)


class Labels:
    """One label of the images that were embedded, for training and test images: which have it, and its values.

    Attributes:
        names: Of the classes; a value is a place in it.
        rows: Of the features, those of images that have the label.
        samples: Their places in the source.
        values: The label, (rows,).
        majority: Accuracy on the test images of always saying the most frequent class of the training images.

    Raises:
        DataError: As `shared_classes`, for the images that could be read.
    """

    def __init__(
        self,
        sources: tuple[Source, Source],
        samples: Sequence[NDArray[np.int64]],
        device: str | torch.device,
    ) -> None:
        found = [np.asarray(source.labels)[part] for source, part in zip(sources, samples, strict=True)]
        self.names = names = shared_classes(sources, found)
        self.rows, self.samples, self.values = [], [], []
        for source, numbers, places in zip(sources, found, samples, strict=True):
            rows = np.flatnonzero(numbers >= 0)
            if len(rows) < len(numbers):
                _log.warning("%s: %d images have no label", source.name, len(numbers) - len(rows))
            self.rows.append(torch.from_numpy(rows).to(device))
            self.samples.append(places[rows])
            self.values.append(_renumber(numbers[rows], source=source, names=names).to(device))
        self.majority = (self.values[1] == self.values[0].mode().values).double().mean().item()


def shared_classes(sources: tuple[Source, Source], labels: Sequence[NDArray[np.int64] | None]) -> list[str]:
    """Names of the classes of the training images; of some there may be no test image. -1 is an image without a label.

    Raises:
        DataError: No labels, one class only, or a class that has test images alone.
    """
    train, test = sources
    names = []
    for option, source, numbers in zip(("--train", "--test"), sources, labels, strict=True):
        present = [] if numbers is None else [source.classes[i] for i in np.unique(numbers[numbers >= 0])]
        if not present:
            raise DataError(
                f"{option} {source.name}: no image has a label; give a folder with a subfolder for each class, "
                "or name a manifest's label column with --target"
            )
        names.append(present)
    if unknown := sorted(set(names[1]) - set(names[0])):
        alike = {name.casefold(): name for name in names[0]}
        near = [f"{name!r} for {alike[name.casefold()]!r}" for name in unknown if name.casefold() in alike]
        raise DataError(
            f"--test {test.name} has images of {some(unknown)}, and --train {train.name} has none of "
            f"{'it' if len(unknown) == 1 else 'them'}; its classes are {some(names[0])}."
            + (f" Are names written in two ways ({', '.join(near)})?" if near else "")
            + " Add training images, or take these test images out"
        )
    if untested := sorted(set(names[0]) - set(names[1])):
        _log.warning("--test %s has no image of %s: not tested", test.name, some(untested))
    if len(names[0]) == 1:
        raise DataError(
            f"--train {train.name}: all images are of one class, {names[0][0]!r}; at least two are needed: "
            "give a folder with a subfolder for each class, or another --target"
        )
    return names[0]


def _renumber(labels: NDArray[np.int64], *, source: Source, names: Sequence[str]) -> Tensor:
    """The source's labels (N,) as places in ``names``, for every data set numbers its own classes."""
    places = {name: place for place, name in enumerate(names)}
    table = np.array([places.get(name, -1) for name in source.classes])
    return torch.from_numpy(table[labels])


def some(names: Sequence[str], *, most: int = 10) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more
