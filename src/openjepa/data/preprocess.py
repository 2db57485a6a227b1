"""What an encoder expects of an image: size, channels, filter and normalisation. It travels with the checkpoint."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from openjepa.config import DataConfig
from openjepa.data.decode import BadImage, Detail, decode
from openjepa.data.views import Interpolation, centre_box, resize
from openjepa.errors import DataError

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
    """

    image_size: tuple[int, int]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Interpolation = "bilinear"

    @staticmethod
    def of(data: DataConfig) -> "Preprocess":
        """As a resolved configuration says."""
        mean, std = imagenet_statistics(data.channels)
        return Preprocess(
            data.image_size, data.channels, data.mean or mean, data.std or std, data.interpolation
        )

    @staticmethod
    def imagenet(image_size: tuple[int, int], channels: int) -> "Preprocess":
        """As the authors': ImageNet's statistics."""
        return Preprocess(image_size, channels, *imagenet_statistics(channels))

    def __call__(self, image: Image.Image | NDArray[np.uint8] | str | os.PathLike[str]) -> Tensor:
        """Shortest side resized, centre cut out, normalised.

        Args:
            image: A path, a Pillow image, or (H, W, C) uint8.

        Returns:
            (1, C, h, w) float32.

        Raises:
            DataError: The image can't be read, or has other channels.
        """
        pixels = self._pixels(image)
        box = centre_box(pixels.shape[0], pixels.shape[1], self.image_size)
        boxes, flips = np.asarray([box]), np.zeros(1, bool)
        views = resize([pixels], boxes, flips, self.image_size, self.interpolation)  # (1, C, h, w)
        return normalise(torch.from_numpy(views), mean=self.mean, std=self.std)

    def shown(self, image: Image.Image | NDArray[np.uint8] | str | os.PathLike[str] | bytes) -> Image.Image:
        """An image for people's eyes; of many channels the first three.

        Raises:
            DataError: It can't be read.
        """
        pixels = self._pixels(image)
        return Image.fromarray(
            pixels[..., 0] if pixels.shape[2] < 3 else np.ascontiguousarray(pixels[..., :3])
        )

    def _pixels(
        self, image: Image.Image | NDArray[np.uint8] | str | os.PathLike[str] | bytes
    ) -> NDArray[np.uint8]:
        name = str(image) if isinstance(image, (str, os.PathLike)) else "image"
        try:
            if isinstance(image, (str, os.PathLike)):
                image = Path(image).read_bytes()
            if isinstance(image, bytes):
                detail = Detail.for_views(self.image_size)  # as a data set's images are decoded
                return decode(image, channels=self.channels, detail=detail)
            if isinstance(image, Image.Image):
                image = np.asarray(image.convert("L" if self.channels == 1 else "RGB"))
            return decode(image, channels=self.channels)
        except (OSError, BadImage) as error:
            raise DataError(f"{name}: can't be used as an image: {error}") from None


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
