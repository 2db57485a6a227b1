"""Numbers of any type as 8-bit levels: what is black and what is white, by type, by file, or for a whole data set.

The scale of an image is never guessed from its own extremes where anything else tells it, for a single bright pixel
would then make the rest of its image black. In this order:

1. 8 bits, and booleans, are what they are.
2. ``data.value_range``, one scale for a data set, where it is given or was decided once (`openjepa.data.statistics`).
3. What the file declares: 4,095 is white in a TIFF of 12 bits.
4. The type: 65,535 is white in unsigned 16 bits.
5. Where the type says nothing (floating point, signed and wider integers), `scale_of` the values.

What lies outside of the scale is clipped.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from openjepa.data.bad_files import BadImage

Alpha = Literal["none", "straight", "premultiplied"]
ValueRange = tuple[float, float]
"""The numbers that are black and white."""

BACKGROUND = 128
"""What transparency is laid on: mid-grey, on which both black and white drawings stay visible."""
_FLOAT_SCALES, _INTEGER_SCALES = (1.0, 255.0), (255.0, 65535.0)
_DEPTHS = tuple(float(2**bits - 1) for bits in (8, 10, 12, 14, 16))
_OVER, _UNDER = 0.5, 0.1  # how far floats may lie above white and below black, as parts of the scale: glare


def scale_of(low: float, high: float, *, floating: bool) -> ValueRange | None:
    """The usual scale that values from low to high are on: 0..1 or 0..255 of floats, 8 or 16 bits of integers.

    Floats may overshoot a little at both ends, integers at the upper one.

    Returns:
        Black and white; None where the values are on neither, as CT numbers.
    """
    least = -_UNDER * high if floating else 0.0
    for white in _FLOAT_SCALES if floating else _INTEGER_SCALES:
        if least <= low and high <= (1 + _OVER) * white:
            return 0.0, white
    return None


def to_uint8(
    values: NDArray[Any], value_range: ValueRange | None = None, *, white: float | None = None
) -> NDArray[np.uint8]:
    """Numbers of any type as 8 bits; see the module's text.

    Args:
        values: Of any shape.
        value_range: Black and white; not used for 8 bits and booleans.
        white: What the file declares as white, black being 0.

    Raises:
        BadImage: Not numbers, or NaN or infinite among them.
    """
    kind, width = values.dtype.kind, values.dtype.itemsize
    if kind not in "buif":
        raise BadImage(f"not numbers: an array of type {values.dtype}")
    if kind == "b":
        return values.astype(np.uint8) * np.uint8(255)
    if kind == "u" and width == 1 and white is None:
        return np.array(values, dtype=np.uint8, order="C")
    low, high = float(values.min()), float(values.max())
    if not math.isfinite(high - low):
        raise BadImage("NaN or infinite pixels")
    if value_range is not None:
        black, top = value_range
    elif white is not None:
        black, top = 0.0, white
    elif kind == "u" and width == 2:
        black, top = 0.0, 65535.0
    else:  # on no usual scale: stretched
        black, top = scale_of(low, high, floating=kind == "f") or (low, high)
    # float64: the differences of large integers must not drown in rounding
    scaled = values.astype(np.float64)
    scaled -= black
    scaled *= 255.0 / ((top - black) or 1.0)
    np.rint(scaled, out=scaled)
    return np.clip(scaled, 0, 255, out=scaled).astype(np.uint8)


def shared_scale(extremes: Sequence[ValueRange], *, floating: bool) -> ValueRange:
    """One scale for many images.

    Args:
        extremes: Of each, nearly the smallest and nearly the largest number.
        floating: Whether they are floats.

    Returns:
        A usual scale where they are on one, of integers also 10, 12 or 14 bits; else from the smallest to the largest.
    """
    low, high = min(low for low, _ in extremes), max(high for _, high in extremes)
    if not floating and low >= 0:
        return next(((0.0, white) for white in _DEPTHS if high <= white), (low, high))
    return scale_of(low, high, floating=floating) or (float(f"{low:.4g}"), float(f"{high:.4g}"))


class Bands(NamedTuple):
    """An image's numbers as its file has them, and what they mean."""

    values: NDArray[Any]
    """(H, W, n)."""
    white: float | None = None
    """What the file declares as white, where its type alone does not say."""
    inverted: bool = False
    """Whether 0 is white, of a grey picture."""
    colour: Literal["bands", "grey", "rgb", "cmyk"] = "bands"
    """What the first bands are; of "bands" nothing is known."""
    alpha: Alpha = "none"
    """What the band after them is."""

    @property
    def says_what_is_white(self) -> bool:
        """Whether file or type tell it."""
        kind, width = self.values.dtype.kind, self.values.dtype.itemsize
        return self.white is not None or kind == "b" or (kind == "u" and width <= 2)

    def pixels(self, channels: int, value_range: ValueRange | None = None) -> NDArray[np.uint8]:
        """As (H, W, channels) uint8: of 1 or 3 channels a picture, of any other number the bands as they are.

        Raises:
            BadImage: Not numbers, or of another number of channels.
        """
        if self.colour != "bands" and channels in (1, 3):
            levels = self._picture(value_range)
        else:
            levels = to_uint8(self.values, value_range, white=self.white)
        found = levels.shape[2]
        if found != channels and (found, channels) not in ((1, 3), (3, 1)):
            told = f"{found} channels: {channels} are wanted; "
            if self.values.shape[0] in (1, 3, channels):
                told += f"arrays are (height, width, channels), and this one, {self.values.shape}, looks otherwise"
            else:
                told += f"set --channels {found} to train on these"
            raise BadImage(told)
        levels = np.ascontiguousarray(levels)
        if found == channels:
            return levels
        if channels == 3:
            return np.repeat(levels, 3, axis=2)
        return np.array(Image.fromarray(levels).convert("L"))[:, :, None]

    def _picture(self, value_range: ValueRange | None) -> NDArray[np.uint8]:
        """A grey or RGB picture (H, W, 1 or 3) without transparency; the opacity has a scale of its own."""
        size = {"grey": 1, "rgb": 3, "cmyk": 4}[self.colour]
        colours = to_uint8(self.values[..., :size], value_range, white=self.white)
        if self.inverted:
            colours = np.uint8(255) - colours
        if self.colour == "cmyk":
            ink = Image.fromarray(np.ascontiguousarray(colours), "CMYK")
            colours = np.asarray(ink.convert("RGB"))
        if self.alpha == "none":
            return colours
        opacity = to_uint8(self.values[..., size : size + 1], white=self.white)
        return on_background(colours, opacity, premultiplied=self.alpha == "premultiplied")


def on_background(
    colours: NDArray[np.uint8], opacity: NDArray[np.uint8], *, premultiplied: bool = False
) -> NDArray[np.uint8]:
    """Colours (H, W, n) with an opacity (H, W, 1) of 0 to 255, laid on mid-grey."""
    share = opacity.astype(np.float32) / 255
    front = colours if premultiplied else colours * share
    return np.clip(np.rint(front + BACKGROUND * (1 - share)), 0, 255).astype(np.uint8)
