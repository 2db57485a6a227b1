"""What a look at a few images of a data set tells: their typical size and the statistics of their channels."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from openjepa.data.bad_files import BadImage
from openjepa.data.dataset import ImageDataset, spread
from openjepa.data.decode import decode, kind_of, wide_bands
from openjepa.data.levels import Bands, ValueRange, shared_scale
from openjepa.data.sources import Source
from openjepa.errors import DataError

_LOOK_AT = 64  # images, evenly spaced over the data set
_COUNTED_TOGETHER = 64  # images whose levels are counted at once
_LEVELS = 256
_GREY = ("1", "L", "LA", "La", "F")  # modes of Pillow, and all that begin with I


@dataclass(frozen=True)
class Look:
    """What a few images of a data set are like."""

    side: int
    """Median of their shorter sides, in pixels."""
    channels: int
    """1 where all are grey, the number of those that come as arrays of another one, else 3."""


def look(source: Source, *, channels: int | None = None) -> Look:
    """Look at a few images, evenly spaced over the data set.

    Args:
        source: The images.
        channels: How many they are to be decoded to; by default as many as they have.

    Raises:
        DataError: None of them can be read.
    """
    indices = spread(len(source), _LOOK_AT).tolist()
    channels = channels or shared_channels(_modes(source, indices))
    sides, reasons = [], []
    for index in indices:
        try:
            sides.append(min(decode(source.read(index), channels=channels).shape[:2]))
        except BadImage as error:
            reasons.append(f"{source.path(index)}: {error}")
    if not sides:
        raise DataError(
            f"{source.name}: none of {len(reasons)} images looked at can be used; the first: {reasons[0]}"
        )
    return Look(int(np.median(sides)), channels)


def _modes(source: Source, indices: Sequence[int]) -> Iterator[str]:
    for index in indices:
        try:
            yield kind_of(source.read(index))[1]
        except BadImage:  # told of when it is decoded
            continue


def shared_channels(modes: Iterable[str]) -> int:
    """The number of channels of images of these modes, as `kind_of` tells them: 3 where they differ or do not say."""
    found = {_num_channels(mode) for mode in modes if mode != "?"}
    return found.pop() if len(found) == 1 else 3


def _num_channels(mode: str) -> int:
    if " × " in mode:  # an array in memory
        return int(mode.rpartition(" × ")[2])
    return 1 if mode in _GREY or mode.startswith("I") else 3


def shared_value_range(source: Source, *, channels: int) -> ValueRange | None:
    """One scale for a data set, of whose numbers neither files nor types say what is white (`data.value_range`).

    Returns:
        Black and white, told by a few images; None where none of them needs it.
    """
    extremes, floating = [], False
    for index in spread(len(source), _LOOK_AT).tolist():
        try:
            bands = wide_bands(source.read(index), channels=channels)
        except BadImage:  # told of when it is decoded
            continue
        if bands is None or bands.says_what_is_white or (found := extremes_of(bands)) is None:
            continue
        extremes.append(found)
        floating |= bands.values.dtype.kind == "f"
    return shared_scale(extremes, floating=floating) if extremes else None


def extremes_of(bands: Bands) -> tuple[float, float] | None:
    """Nearly the smallest and nearly the largest number of an image: a thousandth lies beyond each."""
    if bands.values.dtype.kind not in "iuf":
        return None
    low, high = np.quantile(bands.values, (0.001, 0.999))
    return (float(low), float(high)) if np.isfinite(high - low) else None


def channel_statistics(
    dataset: ImageDataset, *, num_images: int = 1024
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, in [0, 1], over evenly spaced images.

    A constant channel gets standard deviation 1, so that it can be divided by.
    """
    counts = torch.zeros(dataset.channels, _LEVELS, dtype=torch.int64)  # how often a channel has a level
    samples = spread(len(dataset), num_images)
    for start in range(0, len(samples), _COUNTED_TOGETHER):
        images = dataset.evaluation_batch(samples[start : start + _COUNTED_TOGETHER]).images  # (n, C, h, w)
        for channel, pixels in zip(counts, images.unbind(1), strict=True):
            channel += torch.bincount(pixels.flatten(), minlength=_LEVELS)
    levels, total = torch.arange(_LEVELS).double() / 255, counts.sum(dim=1)  # (256,), (C,)
    mean = counts.double() @ levels / total
    deviations = (levels - mean[:, None]).square()  # (C, 256)
    std = ((counts * deviations).sum(dim=1) / (total - 1)).sqrt()
    std = std.where(std > 1e-3, 1.0)
    return tuple(round(value, 4) for value in mean.tolist()), tuple(round(value, 4) for value in std.tolist())
