"""TIFFs beyond what Pillow reads rightly, by tifffile: planes, 10 to 64 bits, extra samples, stacks, OME and ImageJ.

Pillow keeps the plain ones, which it reads faster and without an extra package. What can't be told is refused.
"""

import importlib
import io
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from openjepa.data.bad_files import BadImage
from openjepa.data.levels import Alpha, Bands

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_INSTALL = "pip install 'openjepa[tiff]'"
_LENGTH, _STRIPS, _ORIENTATION, _ROWS, _TILE_WIDTH = 257, 273, 274, 278, 322
_BITS, _PHOTOMETRIC, _DESCRIPTION, _SAMPLES, _PLANAR, _EXTRA, _FORMAT = 258, 262, 270, 277, 284, 338, 339
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3  # sample formats
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _MASK, _INKS, _LINEAR = 0, 1, 2, 3, 4, 5, 34892
_COLOURS: dict[int, tuple[Literal["grey", "rgb", "cmyk"], int]] = {
    _WHITE_IS_ZERO: ("grey", 1), _BLACK_IS_ZERO: ("grey", 1), _MASK: ("grey", 1), _RGB: ("rgb", 3),
    _LINEAR: ("rgb", 3), _INKS: ("cmyk", 4),
}  # fmt: skip
_ALPHA: dict[int, Alpha] = {1: "premultiplied", 2: "straight"}
_MOST_IN_STACKS = 3  # numbers of a stack of channels, over the most pixels of a picture


def is_plain(image: Image.Image, channels: int) -> bool:
    """Whether Pillow reads this TIFF rightly, opened and not yet loaded, as a picture of so many channels.

    Raises:
        BadImage: It lacks strips, which Pillow would leave black.
    """
    tags = image.tag_v2  # type: ignore[attr-defined]
    if _STRIPS in tags and _TILE_WIDTH not in tags:
        height = int(tags[_LENGTH])  # image.height is that of the picture set upright
        if len(_tuple(tags[_STRIPS])) * max(1, int(tags.get(_ROWS, height))) < height:
            raise BadImage("damaged or truncated: strips are missing")
    bits, samples = _tuple(tags.get(_BITS, 1)), int(tags.get(_SAMPLES, 1))
    format_, photometric = _tuple(tags.get(_FORMAT, 1)), int(tags.get(_PHOTOMETRIC, _BLACK_IS_ZERO))
    extra, planar = _tuple(tags.get(_EXTRA, ())), int(tags.get(_PLANAR, 1))
    said = str(tags.get(_DESCRIPTION, ""))
    if "ImageJ=" in said or "<OME" in said or channels not in (1, 3):
        return False
    if max(bits) <= 8:
        return set(format_) == {_UNSIGNED}
    if photometric == _BLACK_IS_ZERO and samples == 1:
        return (bits, format_) in (((16,), (_UNSIGNED,)), ((32,), (_FLOAT,)))
    return photometric == _RGB and bits == (16, 16, 16) and planar == 1 and not extra


def read_tiff(raw: bytes, channels: int, *, most_pixels: int, damage: tuple[type[Exception], ...]) -> Bands:
    """The first picture of a TIFF.

    Pages are bands where their number is that of the channels wanted, other than 1 and 3; else the first one is taken.
    Axes that are named as channels are bands.

    Args:
        raw: The file's bytes.
        channels: How many are wanted.
        most_pixels: Refuse what is larger.
        damage: What is raised on damaged files.

    Raises:
        BadImage: Damaged, too large, or of a kind that can't be told; or tifffile is missing.
    """
    try:
        tifffile: Any = importlib.import_module("tifffile")
    except ImportError as error:
        raise BadImage(f"a TIFF that Pillow cannot read: {_INSTALL}") from error
    try:
        with tifffile.TiffFile(io.BytesIO(raw)) as file:
            page = file.pages[0]
            return _bands(page, _upright(_picture(file, channels, most_pixels), page))
    except (*damage, tifffile.TiffFileError) as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        if "imagecodecs" in said:
            raise BadImage(f"a TIFF that needs a codec: {_INSTALL} ({said})") from error
        raise BadImage(f"damaged or truncated: {said}") from error


def _picture(file: Any, channels: int, most_pixels: int) -> NDArray[Any]:
    """The numbers (H, W, n) of the first picture."""
    series, page = file.series[0], file.pages[0]
    if page.imagelength * page.imagewidth > most_pixels:
        raise BadImage(
            f"too large: {page.imagewidth} x {page.imagelength} pixels, at most {most_pixels} are decoded"
        )
    axes = series.axes
    pages = axes[:-2] in ("I", "Q") and axes.endswith("YX") and series.shape[0] == channels not in (1, 3)
    bands = axes[0] if pages else "C"
    if bands not in axes or not axes.endswith("YX"):
        return _by_pixel(page.asarray(), page.axes)
    if series.size > _MOST_IN_STACKS * most_pixels:
        raise BadImage(f"too large: a stack of {series.size} numbers")
    first_of_stacks = tuple(slice(None) if axis in (bands, "Y", "X") else 0 for axis in axes)
    return np.moveaxis(series.asarray()[first_of_stacks], 0, -1)


def _upright(values: NDArray[Any], page: Any) -> NDArray[Any]:
    """Numbers (H, W, n) with the first row on top and the first column on the left, as the page says they lie."""
    turn = int(page.tags[_ORIENTATION].value) if _ORIENTATION in page.tags else 1
    if turn in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if turn in (3, 4, 7, 8):
        values = values[::-1]
    return values[:, ::-1] if turn in (2, 3, 6, 7) else values


def _by_pixel(values: NDArray[Any], axes: str) -> NDArray[Any]:
    """A page's numbers (H, W, n), whose axes are YX, YXS, or, plane by plane, SYX."""
    if axes == "YX":
        return values[:, :, None]
    if axes == "SYX":
        return np.moveaxis(values, 0, -1)
    if axes != "YXS":
        raise BadImage(f"a TIFF of axes {axes}: pictures are Y, X and samples")
    return values


def _bands(page: Any, values: NDArray[Any]) -> Bands:
    """What a page says of its numbers."""
    photometric, bits, num = int(page.photometric), page.bitspersample, values.shape[2]
    extra = [int(kind) for kind in page.extrasamples or ()]
    if photometric == _PALETTE:
        colours = np.asarray(page.colormap)  # (3, 2^bits) of 16 bits
        return Bands(np.moveaxis(colours[:, values[..., 0]], 0, -1), colour="rgb")
    white = None
    if values.dtype.kind == "u" and isinstance(bits, int) and bits < 8 * values.dtype.itemsize:
        white = float(2**bits - 1)
    if photometric not in _COLOURS:
        raise BadImage(f"a TIFF of colours {page.photometric.name}: grey, RGB, CMYK and palettes are read")
    colour, size = _COLOURS[photometric]
    alpha: Alpha = _ALPHA.get(extra[0], "none") if extra else "none"
    more = num - size
    if more < 0 or more > len(extra) or (more and colour == "grey" and alpha == "none"):
        return Bands(values, white)  # bands of which nothing is said
    return Bands(values, white, photometric == _WHITE_IS_ZERO, colour, alpha if more else "none")


def _tuple(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (int(value),)
