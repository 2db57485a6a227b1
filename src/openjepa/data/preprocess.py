"""What an encoder expects of an image: size, channels, filter and normalisation. It travels with the checkpoint."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from openjepa.config import DataConfig
from openjepa.data.bad_files import BadImage
from openjepa.data.decode import Detail, Picture, decode, wide_bands
from openjepa.data.levels import ValueRange, scale_of
from openjepa.data.sources import Source
from openjepa.data.statistics import extremes_of, shared_value_range
from openjepa.data.views import Interpolation, centre_box, resize
from openjepa.errors import DataError

_log = logging.getLogger(__name__)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocess:
    """Turns any image into what the encoder was trained on; calling it gives a batch of one.

    Attributes:
        image_size: (height, width) in pixels.
        channels: Number of channels C.
        mean: Channel means in [0, 1].
        std: Channel standard deviations in [0, 1].
        interpolation: Filter of the resize.
        value_range: The numbers that are black and white in images wider than 8 bits; None: see `openjepa.data.levels`.
    """

    image_size: tuple[int, int]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Interpolation = "bilinear"
    value_range: ValueRange | None = None

    @staticmethod
    def of(data: DataConfig) -> "Preprocess":
        """As a resolved configuration says."""
        mean, std = imagenet_statistics(data.channels)
        return Preprocess(
            data.image_size, data.channels, data.mean or mean, data.std or std, data.interpolation,
            data.value_range,
        )  # fmt: skip

    @staticmethod
    def imagenet(image_size: tuple[int, int], channels: int) -> "Preprocess":
        """As the authors': ImageNet's statistics."""
        return Preprocess(image_size, channels, *imagenet_statistics(channels))

    @staticmethod
    def of_facts(facts: Mapping[str, Any]) -> "Preprocess":
        """From ``dataclasses.asdict``, written as JSON and read again."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, (list, tuple)) else value for name, value in facts.items()
        }
        return Preprocess(**values)

    def on(self, source: Source) -> "Preprocess":
        """The same for these images, one scale for all of them, where one is needed and none is known."""
        if self.value_range is not None:
            return self
        found = shared_value_range(source, channels=self.channels)
        if found is not None:
            _log.info("%s: %g is black and %g is white, by a look at a few images", source.name, *found)
        return replace(self, value_range=found)

    def __call__(self, image: Picture | str | os.PathLike[str] | bytes) -> Tensor:
        """Shortest side resized, centre cut out, normalised.

        Args:
            image: A path, a file's bytes, a Pillow image, an array (H, W) or (H, W, C) or a tensor (C, H, W), of 8
                bits, of unsigned 16 bits, or floats from 0 to 1 or 0 to 255.

        Returns:
            (1, C, h, w) float32.

        Raises:
            DataError: The image can't be read, or has other channels, or numbers on another scale.
        """
        pixels = self._pixels(image)
        box = centre_box(pixels.shape[0], pixels.shape[1], self.image_size)
        boxes, flips = np.asarray([box]), np.zeros(1, bool)
        views = resize([pixels], boxes, flips, self.image_size, self.interpolation)  # (1, C, h, w)
        return normalise(torch.from_numpy(views), mean=self.mean, std=self.std)

    def shown(self, image: Picture | str | os.PathLike[str] | bytes) -> Image.Image:
        """An image for people's eyes; of many channels the first three.

        Raises:
            DataError: It can't be read.
        """
        pixels = self._pixels(image)
        return Image.fromarray(
            pixels[..., 0] if pixels.shape[2] < 3 else np.ascontiguousarray(pixels[..., :3])
        )

    def _pixels(self, image: Picture | str | os.PathLike[str] | bytes) -> NDArray[np.uint8]:
        name = str(image) if isinstance(image, (str, os.PathLike)) else "image"
        try:
            if isinstance(image, (str, os.PathLike)):
                image = Path(image).read_bytes()
            elif isinstance(image, (np.ndarray, Tensor)) and self.value_range is None:
                _refuse_unknown_scale(image, self.channels)
            detail = Detail.for_views(self.image_size)  # as a data set's images are decoded
            return decode(image, channels=self.channels, detail=detail, value_range=self.value_range)
        except (OSError, BadImage) as error:
            raise DataError(f"{name}: can't be used as an image: {error}") from None


def _refuse_unknown_scale(image: NDArray[Any] | Tensor, channels: int) -> None:
    """Numbers in memory, of which it can't be told what is white: normalised ones, CT numbers.

    Raises:
        BadImage: They are such.
    """
    bands = wide_bands(image, channels=channels)
    if bands is None or bands.says_what_is_white or (found := extremes_of(bands)) is None:
        return
    if scale_of(*found, floating=bands.values.dtype.kind == "f") is None:
        raise BadImage(
            f"numbers from {found[0]:g} to {found[1]:g}: expected 8 bits, unsigned 16 bits, or floats from 0 to 1 or "
            "0 to 255, not normalised; for others say what is black and white: "
            "dataclasses.replace(model.preprocess, value_range=(BLACK, WHITE))"
        )


def imagenet_statistics(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of each channel; other than three channels take the average of ImageNet's."""
    if channels == 3:
        return IMAGENET_MEAN, IMAGENET_STD
    mean, std = (round(sum(values) / 3, 4) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (mean,) * channels, (std,) * channels


def normalise(images: Tensor, *, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(B, C, h, w) uint8 -> (x / 255 - mean) / std, float32, with one mean and std a channel (in [0, 1])."""
    shift, scale = (torch.tensor(values, device=images.device).view(-1, 1, 1) for values in (mean, std))
    return images.float().div_(255).sub_(shift).div_(scale)  # in place: a batch is tens of megabytes
