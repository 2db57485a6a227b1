"""What a look at a few images of a data set tells: their typical size and the statistics of their channels."""

import numpy as np

from openjepa.data.dataset import ImageDataset, spread
from openjepa.data.decode import BadImage, decode
from openjepa.data.sources import Source
from openjepa.errors import DataError

_LOOK_AT = 64  # images, evenly spaced over the data set


def typical_side(source: Source, *, channels: int) -> int:
    """Median of the shorter sides of a few images, in pixels.

    Raises:
        DataError: None of them can be read.
    """
    sides, reasons = [], []
    for index in spread(len(source), _LOOK_AT).tolist():
        try:
            sides.append(min(decode(source.read(index), channels=channels).shape[:2]))
        except BadImage as error:
            reasons.append(f"{source.path(index)}: {error}")
    if not sides:
        raise DataError(
            f"{source.name}: none of {len(reasons)} images looked at can be used; the first: {reasons[0]}"
        )
    return int(np.median(sides))


def channel_statistics(
    dataset: ImageDataset, *, num_images: int = 1024
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, in [0, 1], over evenly spaced images.

    A constant channel gets standard deviation 1, so that it can be divided by.
    """
    pixels = dataset.evaluation_batch(spread(len(dataset), num_images)).images.double() / 255  # (n, C, h, w)
    mean, std = pixels.mean(dim=(0, 2, 3)), pixels.std(dim=(0, 2, 3))
    std = std.where(std > 1e-3, 1.0)
    return tuple(round(value, 4) for value in mean.tolist()), tuple(round(value, 4) for value in std.tolist())
