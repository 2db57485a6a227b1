"""Views of an image: the random resized crop of training and the centre crop of evaluation.

A view is a box of whole pixels, cut out, resized to the size of the model and perhaps mirrored.
Random crops follow torchvision's ``RandomResizedCrop`` in distribution (Szegedy et al., 2015,
section 6), the only augmentation I-JEPA needs (arXiv 2301.08243, section 4). Boxes are pure functions
of (seed, epoch, sample).

There is one definition of the resize, Pillow's: a separable filter, widened when it shrinks
(antialiasing), weights clipped to the box and normalised, whole levels after each pass. Two ways compute it,
and which one takes an image follows from its size alone, so that no pixel depends on the batch it was computed in:

- ``resize_batch``, many small images at once as two matrix products. Weights are multiples of 2^-22 in float64,
  so every sum is exact: it agrees with Pillow to the last bit, whatever the number of threads.
- ``resize_one``, any image by PyTorch's vectorised 8-bit kernel, two and a half times as fast as Pillow. It agrees
  with Pillow to one level of 255 (bilinear) or two (bicubic, on black and white noise).
"""

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.nn import functional as F

from openjepa.rng import uniform

Interpolation = Literal["bilinear", "bicubic"]
Images = NDArray[np.uint8]

_TRIES = 10  # of a random crop before the centre one, as in torchvision
_WEIGHT_BITS = 22  # Pillow's fixed-point precision for 8-bit images
_BATCHED_SIDE = 40  # the longest side, in or out, up to which the matrix products are quicker (measured)
_GROUP = 32  # images resized together: their float64 copies stay in the processor's cache (twice as fast)
_SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}  # half width of the filter, in pixels


def crop_boxes(
    seed: int,
    *,
    epochs: ArrayLike,
    samples: ArrayLike,
    heights: ArrayLike,
    widths: ArrayLike,
    scale: tuple[float, float] = (0.3, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> NDArray[np.int64]:
    """Random crops: area uniform in ``scale``, log-aspect uniform in ``aspect``, place uniform.

    The first of ten tries that fits is taken; where none does (very long images), the largest
    centre crop whose aspect lies within the limits.

    Args:
        seed: The run's seed.
        epochs: (B,) epoch of each sample.
        samples: (B,) index of each sample.
        heights: (B,) height of each image in pixels.
        widths: (B,) width of each image in pixels.
        scale: Smallest and largest area of the crop, as a fraction of the image's.
        aspect: Smallest and largest width over height of the crop.

    Returns:
        (B, 4) boxes: top, left, height, width.
    """
    random = uniform(seed, "crop", epochs, samples, num=2 * _TRIES + 2)  # (B, 22)
    image_height = np.asarray(heights, dtype=np.int64).reshape(-1, 1)  # (B, 1)
    image_width = np.asarray(widths, dtype=np.int64).reshape(-1, 1)

    area = image_height * image_width * (scale[0] + (scale[1] - scale[0]) * random[:, :_TRIES])  # (B, 10)
    low, high = np.log(aspect)
    ratio = np.exp(low + (high - low) * random[:, _TRIES : 2 * _TRIES])
    height = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    width = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    fits = (height > 0) & (height <= image_height) & (width > 0) & (width <= image_width)

    # An eleventh column that always fits: the fallback, the whole image cut down to the aspect limits.
    highest = np.maximum(1, np.rint(image_width / aspect[0]).astype(np.int64))
    widest = np.maximum(1, np.rint(image_height * aspect[1]).astype(np.int64))
    height = np.hstack([height, np.minimum(highest, image_height)])
    width = np.hstack([width, np.minimum(widest, image_width)])
    choice = np.hstack([fits, np.ones_like(image_height, dtype=bool)]).argmax(axis=1)[:, None]
    height, width = (np.take_along_axis(side, choice, axis=1) for side in (height, width))

    free = np.hstack([image_height - height, image_width - width])  # (B, 2): room for the top left corner
    corner = np.where(choice == _TRIES, free // 2, (random[:, -2:] * (free + 1)).astype(np.int64))
    return np.hstack([corner, height, width])


def coin_flips(seed: int, *, epochs: ArrayLike, samples: ArrayLike) -> NDArray[np.bool_]:
    """Whether each sample is mirrored left to right in its epoch: (B,), true half of the time."""
    return uniform(seed, "flip", epochs, samples, num=1)[:, 0] < 0.5


def centre_box(height: int, width: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The evaluation view: the largest centred box (top, left, height, width) with the aspect of ``size``.

    The same as resizing the shorter side to ``size`` and cutting the centre out, but for pixels beyond
    the box, which have no part in it. Where the image has that size already, the view is the image.
    """
    box_height = min(height, max(1, round(width * size[0] / size[1])))
    box_width = min(width, max(1, round(height * size[1] / size[0])))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def resize(
    images: Sequence[Images],
    boxes: NDArray[np.int64],
    flips: NDArray[np.bool_],
    size: tuple[int, int],
    interpolation: Interpolation = "bilinear",
) -> Images:
    """Resize boxes of images of any shapes (H, W, C) in one of two ways, by the size of each.

    A box that has the size of the result is copied: both ways would give its pixels as they are.

    Returns:
        (B, C, h, w) uint8.
    """
    views = np.empty((len(images), images[0].shape[2], *size), np.uint8)
    alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for place, image in enumerate(images):
        top, left, height, width = boxes[place].tolist()
        if (height, width) == size:
            view = image[top : top + height, left : left + width].transpose(2, 0, 1)  # (C, h, w)
            views[place] = view[:, :, ::-1] if flips[place] else view
        elif max(*image.shape[:2], *size) <= _BATCHED_SIDE:
            alike[image.shape].append(place)
        else:
            views[place] = resize_one(
                image, (top, left, height, width), bool(flips[place]), size, interpolation
            )
    for places in alike.values():
        for start in range(0, len(places), _GROUP):
            group = places[start : start + _GROUP]
            together = np.stack([images[place] for place in group])
            views[group] = resize_batch(together, boxes[group], flips[group], size, interpolation)
    return views


def resize_one(
    image: Images,
    box: Sequence[int],
    flip: bool,
    size: tuple[int, int],
    interpolation: Interpolation = "bilinear",
) -> Images:
    """Cut a box out of one image and resize it.

    Args:
        image: (H, W, C) uint8, any number of channels.
        box: Top, left, height, width in pixels.
        flip: Mirror left to right.
        size: (h, w) of the result.
        interpolation: The filter.

    Returns:
        (C, h, w) uint8.
    """
    top, left, height, width = box
    crop = torch.from_numpy(image[top : top + height, left : left + width])
    planes = crop.permute(2, 0, 1)[None]  # (1, C, height, width)
    resized = F.interpolate(planes, size, mode=interpolation, antialias=True, align_corners=False)
    view: Images = resized[0].numpy()
    return view[:, :, ::-1] if flip else view


def resize_batch(
    images: Images,
    boxes: NDArray[np.int64],
    flips: NDArray[np.bool_],
    size: tuple[int, int],
    interpolation: Interpolation = "bilinear",
) -> Images:
    """The same as ``resize_one`` for a batch of images of one shape, in two matrix products.

    Args:
        images: (B, H, W, C) uint8.
        boxes: (B, 4) top, left, height, width in pixels.
        flips: (B,) mirror left to right.
        size: (h, w) of the result.
        interpolation: The filter.

    Returns:
        (B, C, h, w) uint8.
    """
    batch, height, width, channels = images.shape
    top, left, box_height, box_width = boxes.T.tolist()
    across = _weight_matrices(left, box_width, flips.tolist(), width, size[1], interpolation)  # (B, w, W)
    down = _weight_matrices(top, box_height, [False] * batch, height, size[0], interpolation)  # (B, h, H)

    rows = images.transpose(0, 1, 3, 2).astype(np.float64, order="C").reshape(batch, height * channels, width)
    rows = _whole_levels(rows @ across.transpose(0, 2, 1))  # (B, H*C, w)
    columns = down @ rows.reshape(batch, height, channels * size[1])  # (B, h, C*w)
    pixels = _whole_levels(columns).astype(np.uint8)
    return pixels.reshape(batch, size[0], channels, size[1]).transpose(0, 2, 1, 3)


def _whole_levels(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round halves up and clip to 0..255, in place: what Pillow does after each of the two passes."""
    values += 0.5
    np.floor(values, out=values)
    return np.clip(values, 0, 255, out=values)


def _weight_matrices(
    starts: list[int],
    lengths: list[int],
    flips: list[bool],
    size_in: int,
    size_out: int,
    interpolation: Interpolation,
) -> NDArray[np.float64]:
    """For each image the matrix (size_out, size_in) that resizes [start, start + length) along an axis."""
    matrices = np.zeros((len(starts), size_out, size_in))
    for matrix, start, length, flip in zip(matrices, starts, lengths, flips, strict=True):
        weights = _filter_weights(length, size_out, interpolation)
        matrix[:, start : start + length] = weights[::-1] if flip else weights
    return matrices


@lru_cache(maxsize=4 * _BATCHED_SIDE)
def _filter_weights(length: int, size_out: int, interpolation: Interpolation) -> NDArray[np.float64]:
    """Weights (size_out, length) of a resize from ``length`` to ``size_out``, in multiples of 2^-22."""
    ratio = length / size_out
    stretch = max(ratio, 1.0)  # the filter spans the pixels that are merged: no aliasing
    centres = (np.arange(size_out) + 0.5) * ratio
    distance = np.abs(np.arange(length) - centres[:, None] + 0.5) * (1.0 / stretch)
    if interpolation == "bilinear":
        weights = np.maximum(1.0 - distance, 0.0)
    else:  # cubic convolution (Keys, 1981) with a = -1/2
        near = (1.5 * distance - 2.5) * distance**2 + 1.0
        far = ((-0.5 * distance + 2.5) * distance - 4.0) * distance + 2.0
        weights = np.where(distance < 1.0, near, np.where(distance < 2.0, far, 0.0))
    weights /= weights.sum(axis=1, keepdims=True)
    units = np.copysign(np.floor(np.abs(weights) * 2.0**_WEIGHT_BITS + 0.5), weights)
    return np.asarray(units * 2.0**-_WEIGHT_BITS)
