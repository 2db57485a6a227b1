"""Batches of views, each a pure function of what is asked: no generator, no order of calls, no state.

Images are decoded when they are first asked for, and kept as long as there is room; whether they are changes no bit
of a batch. They are resized a few at a time as they are decoded, so that a batch of large photographs holds few of
them at their full size.

Bad images are skipped: in training another, drawn from the seed, takes the place of one, so that
positions keep their meaning; in evaluation they are left out.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from openjepa.data.bad_files import BadFile, BadImage, count_kinds
from openjepa.data.decode import Detail, decode, quiet
from openjepa.data.image_memory import RECENT_BYTES, ImageMemory
from openjepa.data.levels import ValueRange
from openjepa.data.sources import Source
from openjepa.data.views import Images, Interpolation, centre_box, coin_flips, crop_boxes, resize
from openjepa.errors import DataError
from openjepa.rng import uniform

_SUBSTITUTES = 20  # images tried in the place of a bad one; where half of all are bad, 1 in 10^6 finds none
_LOOKED_AT = 32  # images, by which it is judged whether all fit into memory
_HELD_BYTES = (
    32 * 2**20
)  # of decoded images that wait to be resized: 59 of 500 x 375 px, one of 12 megapixels


@dataclass(frozen=True)
class Batch:
    """Views of B samples.

    Attributes:
        images: (B, C, h, w) uint8.
        samples: (B,) int64, the samples asked for; crops and masks are functions of them.
        epochs: (B,) int64, the epoch of each (0 in evaluation).
        labels: (B,) int64, the classes of the images shown, -1 unknown; None where the source has none.
        bad: The images that were met and skipped.
    """

    images: Tensor
    samples: NDArray[np.int64]
    epochs: NDArray[np.int64]
    labels: NDArray[np.int64] | None
    bad: tuple[BadFile, ...] = ()


def spread(size: int, num: int) -> NDArray[np.int64]:
    """At most ``num`` indices, evenly spaced over ``range(size)``: data sets are often sorted by class."""
    return np.unique(np.linspace(0, size - 1, min(num, size)).astype(np.int64))


class ImageDataset:
    """The images of a source as batches of training or evaluation views.

    Args:
        source: Where the images come from.
        image_size: (h, w) of the views in pixels.
        channels: C, of the views.
        crop_scale: Area of the random crop, as a fraction of the image's.
        crop_aspect: Width over height of the random crop.
        flip: Mirror half of the training views.
        interpolation: Filter of the resize.
        min_side: Least side of an image in pixels; smaller ones are bad.
        value_range: The numbers that are black and white in images wider than 8 bits, see `openjepa.data.levels`.
        cache: "auto" keeps decoded images for the next time, "never" does not.
        cache_bytes: Most memory that they may take; the rest are decoded each time.
        max_bad_fraction: More bad images than this fraction are an error where they are evaluated.

    Attributes:
        cached: Whether all images will be kept, as far as a few of them tell.
        labels: (N,) int64, -1 unknown; None where the source has none.
    """

    def __init__(
        self,
        source: Source,
        *,
        image_size: tuple[int, int],
        channels: int = 3,
        crop_scale: tuple[float, float] = (0.3, 1.0),
        crop_aspect: tuple[float, float] = (3 / 4, 4 / 3),
        flip: bool = False,
        interpolation: Interpolation = "bilinear",
        min_side: int = 2,
        value_range: ValueRange | None = None,
        cache: Literal["auto", "never"] = "auto",
        cache_bytes: int = 2 * 2**30,
        max_bad_fraction: float = 0.01,
    ) -> None:
        self.source = source
        self.labels = source.labels
        self.image_size = image_size
        self.channels = channels
        self.crop_scale = crop_scale
        self.crop_aspect = crop_aspect
        self.flip = flip
        self.interpolation = interpolation
        self.min_side = min_side
        self.value_range = value_range
        self.max_bad_fraction = max_bad_fraction
        self._detail = Detail.for_views(image_size, crop_scale, crop_aspect)
        self._memory = ImageMemory(cache_bytes, RECENT_BYTES) if cache == "auto" else ImageMemory(0)
        self._keeps = cache == "auto"
        self._bad: dict[int, str] = {}  # of the images that were to be kept: index -> reason
        self.cached = self._keeps and self.fits(cache_bytes)

    def __len__(self) -> int:
        return len(self.source)

    @property
    def view_bytes(self) -> int:
        """Size of a view."""
        return self.channels * self.image_size[0] * self.image_size[1]

    def batch(self, samples: ArrayLike, epochs: ArrayLike, seed: int) -> Batch:
        """Training views: random crops, mirrored or not, each a pure function of (seed, epoch, sample).

        Args:
            samples: (B,) indices into the source.
            epochs: The epoch of each, (B,) or one for all.
            seed: The run's seed.

        Raises:
            DataError: A bad image for which no substitute was found.
        """
        samples, epochs = np.broadcast_arrays(np.asarray(samples, np.int64), np.asarray(epochs, np.int64))
        bad: list[BadFile] = []
        pairs = zip(samples.tolist(), epochs.tolist(), strict=True)
        shown: list[int] = []

        def boxes(images: Sequence[Images], part: slice) -> NDArray[np.int64]:
            return crop_boxes(
                seed,
                epochs=epochs[part],
                samples=samples[part],
                heights=[len(image) for image in images],
                widths=[image.shape[1] for image in images],
                scale=self.crop_scale,
                aspect=self.crop_aspect,
            )

        images = (self._find(sample, epoch, seed, shown, bad) for sample, epoch in pairs)
        flips = coin_flips(seed, epochs=epochs, samples=samples) & self.flip
        return self._batch(self._views(images, boxes, flips), samples, epochs, shown, bad)

    def evaluation_batch(self, samples: ArrayLike) -> Batch:
        """Evaluation views, centre crops, of the samples (B,) that can be read: bad ones are left out."""
        indices = np.asarray(samples, np.int64).tolist()
        good: list[int] = []
        bad: list[BadFile] = []

        def boxes(images: Sequence[Images], part: slice) -> NDArray[np.int64]:
            return np.array([centre_box(len(image), image.shape[1], self.image_size) for image in images])

        views = self._views(self._readable(indices, good, bad), boxes, np.zeros(len(indices), bool))
        places = np.asarray(good, np.int64)
        return self._batch(views, places, np.zeros_like(places), good, bad)

    def _views(
        self,
        images: Iterator[Images],
        boxes: Callable[[Sequence[Images], slice], NDArray[np.int64]],
        flips: NDArray[np.bool_],
    ) -> Images:
        """Views (B, C, h, w) of images (H, W, C), each let go of before many more are decoded.

        Args:
            images: Decoded as they are asked for.
            boxes: For some of the images, and their places among all, the boxes (n, 4) to cut out.
            flips: Mirror left to right; one for each image, and more where fewer than asked for can be read.
        """
        views = np.empty((len(flips), self.channels, *self.image_size), np.uint8)
        done = 0
        with quiet:
            while held := _next_few(images):
                part = slice(done, done + len(held))
                views[part] = resize(
                    held, boxes(held, part), flips[part], self.image_size, self.interpolation
                )
                done = part.stop
                held.clear()  # before the next are decoded, not after
        return views[:done]

    def _batch(
        self,
        views: Images,
        samples: NDArray[np.int64],
        epochs: NDArray[np.int64],
        shown: list[int],
        bad: list[BadFile],
    ) -> Batch:
        labels = None if self.labels is None else self.labels[np.asarray(shown, np.int64)]
        return Batch(torch.from_numpy(views), samples, epochs, labels, tuple(bad))

    def pixels(self, index: int) -> Images:
        """The pixels (H, W, C) of an image, as large as its views need them.

        Raises:
            BadImage: It cannot be used.
        """
        if index in self._bad:
            raise BadImage(self._bad[index])
        if (image := self._memory.get(index)) is not None:
            return image
        try:
            raw = self.source.read(index)
            image = decode(
                raw, channels=self.channels, min_side=self.min_side, detail=self._detail,
                value_range=self.value_range,
            )  # fmt: skip
        except BadImage as error:
            if self._keeps:
                self._bad[index] = str(error)
            raise
        self._memory.put(index, image)
        return image

    def fits(self, num_bytes: int) -> bool:
        """Whether all images together, decoded, take at most so many bytes, as far as a few of them tell."""
        good: list[int] = []
        looked_at = spread(len(self), _LOOKED_AT).tolist()
        sizes = [image.nbytes for image in self._readable(looked_at, good, [])]
        return bool(sizes) and len(self) * sum(sizes) <= num_bytes * len(sizes)

    def _readable(self, indices: Iterable[int], good: list[int], bad: list[BadFile]) -> Iterator[Images]:
        """The pixels of images that can be read; adds to ``good`` and ``bad``."""
        for index in indices:
            try:
                yield self.pixels(index)  # held by no name here while the next one is decoded
            except BadImage as error:
                bad.append(BadFile(self.source.path(index), str(error)))
            else:
                good.append(index)

    def _find(self, sample: int, epoch: int, seed: int, shown: list[int], bad: list[BadFile]) -> Images:
        """The sample's pixels, or those of the first good substitute; adds to ``shown`` and ``bad``."""
        found: list[BadFile] = []
        index = sample
        for attempt in range(1 + _SUBSTITUTES):
            if attempt:
                draw = uniform(seed, "substitute", epoch, sample, attempt, num=1).item()
                index = int(draw * len(self))
            try:
                image = self.pixels(index)
            except BadImage as error:
                found.append(BadFile(self.source.path(index), str(error)))
            else:
                bad += found
                shown.append(index)
                return image
        raise DataError(
            f"{self.source.name}: {len(found)} images drawn and none can be used: "
            f"{count_kinds(Counter(file.kind for file in found))}. The first was {found[0].path}. "
            "Repair or remove the bad images, or give other data."
        )


def _next_few(images: Iterator[Images]) -> list[Images]:
    """The next images up to `_HELD_BYTES` together, at least one of them; none at the end."""
    few: list[Images] = []
    held = 0
    for image in images:
        few.append(image)
        held += image.nbytes
        if held >= _HELD_BYTES:
            break
    return few
