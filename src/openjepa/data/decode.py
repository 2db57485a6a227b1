"""Encoded bytes of any kind to (height, width, channels) uint8 pixels, or `BadImage` with a reason.

How what is not 8-bit RGB becomes so (the rules are fixed, so that a checkpoint's images look
the same everywhere):

- **Wider than 8 bits** is scaled as `openjepa.data.levels` says.
- **Transparency** is laid on mid-grey, a transparent colour too.
- **CMYK, YCbCr, LAB, HSV, palettes** become RGB; embedded colour profiles are not applied.
- **EXIF orientation** is applied; broken metadata is ignored, its pixels are kept.
- **Animations and multi-page files** give their first frame.
- **One channel asked for**: luma (ITU-R 601). **Three asked for and one there**: repeated. **Any other
  number**: the file must have it, be it Pillow's bands, a TIFF, or an .npy array (H, W) or (H, W, C).
- **A Pillow image, an array or a tensor** gives what the file of the same picture gives.
"""

import contextlib
import io
import math
import struct
import threading
import tokenize
import warnings
import zlib
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageCms, UnidentifiedImageError
from torch import Tensor

from openjepa.data import png, tiff
from openjepa.data.bad_files import BadImage
from openjepa.data.levels import Bands, ValueRange, on_background

MAX_PIXELS = 178_956_970
"""Largest image decoded, in pixels: where Pillow itself speaks of a decompression bomb (0.5 GB as RGB)."""

# No EPS, WMF and the like, which run other programs, and no TGA, whose header any bytes can pass for.
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF")
# What image libraries raise on damaged files.
_DAMAGE = (
    *(OSError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, SyntaxError),
    *(EOFError, MemoryError, RuntimeError, struct.error, tokenize.TokenError, zlib.error),
)
# Modes of Pillow that have at most 8 bits.
_BYTES = ("1", "L", "P", "LA", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
_END_OF_JPEG = b"\xff\xd9"
_ORIENTATION_TAG = 0x0112
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Detail(NamedTuple):
    """How much of an image must be left where it is decoded smaller than it is."""

    side: int
    """Least height and width in pixels."""
    area: float
    """Least height times width."""

    @staticmethod
    def for_views(
        image_size: tuple[int, int],
        crop_scale: tuple[float, float] = (0.3, 1.0),
        crop_aspect: tuple[float, float] = (3 / 4, 4 / 3),
    ) -> "Detail":
        """Enough for views of this size, the smallest crop included: none is made larger for it."""
        side = max(image_size)
        return Detail(side, side**2 * max(crop_aspect[1], 1 / crop_aspect[0]) / crop_scale[0])


FULL = Detail(MAX_PIXELS, MAX_PIXELS)
"""Every pixel."""


Picture = Image.Image | NDArray[Any] | Tensor
"""In memory: a Pillow image, an array (H, W) or (H, W, C), a tensor (C, H, W), of any type of numbers."""


def decode(
    raw: bytes | Picture,
    *,
    channels: int = 3,
    min_side: int = 1,
    detail: Detail = FULL,
    value_range: ValueRange | None = None,
) -> NDArray[np.uint8]:
    """Decode one image.

    Args:
        raw: A file's bytes, or a picture in memory.
        channels: Channels wanted, C.
        min_side: Least height and width in pixels.
        detail: What is enough: a JPEG that is larger is decoded at a half, a quarter or an eighth of its size,
            which takes a third of the time or less.
        value_range: The numbers that are black and white in what is wider than 8 bits; None: see `levels`.

    Returns:
        Pixels, (H, W, C) uint8, a contiguous array of its own.

    Raises:
        BadImage: Empty, damaged, no image, too small, too large, or of another number of channels.
    """
    with quiet:
        found = _read(raw, channels, min_side, detail)
        return found.pixels(channels, value_range) if isinstance(found, Bands) else found


def wide_bands(raw: bytes | Picture, *, channels: int) -> Bands | None:
    """The numbers of an image that is wider than 8 bits; None of another.

    Raises:
        BadImage: As `decode`.
    """
    with quiet:
        if isinstance(raw, bytes) and kind_of(raw)[1] in _BYTES:
            return None
        found = _read(raw, channels, 1, FULL)
    return found if isinstance(found, Bands) and found.values.dtype.itemsize > 1 else None


def _read(raw: bytes | Picture, channels: int, min_side: int, detail: Detail) -> NDArray[np.uint8] | Bands:
    """An image as finished pixels (H, W, channels), or as numbers that are still to be scaled."""
    if isinstance(raw, Image.Image):
        return _from_image(_upright(raw), channels, min_side)
    if isinstance(raw, Tensor):
        raw = raw.detach().cpu().movedim(0, -1).numpy() if raw.ndim == 3 else raw.detach().cpu().numpy()
    if isinstance(raw, np.ndarray):
        return _from_array(raw, min_side)
    if not raw:
        raise BadImage("empty file")
    if raw.startswith(b"\x93NUMPY"):
        return _from_array(_read_npy(raw), min_side)
    return _from_file(raw, channels, min_side, detail)


def kind_of(raw: bytes | NDArray[Any]) -> tuple[str, str]:
    """Format and mode of an encoded image, as its header says, without decoding it; ("?", "?") where none says.

    Modes are Pillow's (RGB, L, P, CMYK, I;16 …); of arrays, their element type and number of channels.
    """
    if isinstance(raw, np.ndarray):
        return "pixels", f"{raw.dtype} × {raw.shape[2] if raw.ndim == 3 else 1}"
    if raw.startswith(b"\x93NUMPY"):
        return "NPY", "array"
    with quiet:
        try:
            with Image.open(io.BytesIO(raw), formats=_formats()) as image:
                return str(image.format), image.mode
        except (*_DAMAGE, UnidentifiedImageError, Image.DecompressionBombError):
            return ("TIFF", "array") if raw.startswith(tiff.MAGIC) else ("?", "?")


class _Quiet:
    """Hides the warnings of Pillow and NumPy: what is wrong with a file is told by `BadImage`.

    Filters of warnings belong to the whole process, so of threads that overlap the first one in sets
    them and the last one out puts back what was there.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_inside = 0

    def __enter__(self) -> None:
        with self._lock:
            self._num_inside += 1
            if self._num_inside == 1:
                self._before = warnings.catch_warnings()
                self._before.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\b")
                warnings.filterwarnings("ignore", message="Reading `.npy`")  # one that Python 2 wrote

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._num_inside -= 1
            if self._num_inside == 0:
                self._before.__exit__(None, None, None)


quiet = _Quiet()
"""Around each decoding, and around many of them: setting filters takes a seventh of the time of a small image."""


def _check_size(width: int, height: int, min_side: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadImage(f"too large: {width} x {height} pixels, at most {MAX_PIXELS} are decoded")
    if min(width, height) < max(min_side, 1):
        raise BadImage(f"too small: {width} x {height} pixels, data.min_side is {min_side}")


def _from_file(raw: bytes, channels: int, min_side: int, detail: Detail) -> NDArray[np.uint8] | Bands:
    """The first image of a file, its size checked before its pixels are decoded.

    Plain JPEGs, grey ones too, come as pixels (H, W, 3): simplejpeg gives those of Pillow a quarter sooner.
    """
    try:
        with Image.open(io.BytesIO(raw), formats=_formats()) as image:
            _check_size(*image.size, min_side)
            if image.format == "JPEG" and image.mode in ("RGB", "L") and _turn(image) is None:
                for whole in (raw, raw + _END_OF_JPEG):  # a file may lack its last two bytes and nothing else
                    with contextlib.suppress(ValueError):  # damaged: Pillow says how, or is more lenient
                        pixels = _decode_jpeg(whole, image.size, detail)
                        return pixels if channels == 3 else _from_array(pixels, min_side)
            if image.format == "TIFF" and not tiff.is_plain(image, channels):
                return _from_tiff(raw, channels, min_side)
            image.load()
            shown = png.with_opacity(raw, image) if image.format == "PNG" and channels in (1, 3) else image
            return _from_image(_upright(shown), channels, min_side)
    except UnidentifiedImageError:
        if raw.startswith(tiff.MAGIC):
            return _from_tiff(raw, channels, min_side)
        raise BadImage("not an image") from None
    except Image.DecompressionBombError as error:
        is_png = raw.startswith(png.SIGNATURE)
        size = "{} x {} pixels, ".format(*struct.unpack_from(">II", raw, 16)) if is_png else ""
        raise BadImage(f"too large: {size}at most {MAX_PIXELS} are decoded ({_one_line(error)})") from error
    except _DAMAGE as error:
        if raw.startswith(png.SIGNATURE) and len(plain := png.without_metadata(raw)) < len(raw):
            return _from_file(plain, channels, min_side, detail)
        raise BadImage(f"damaged or truncated: {_one_line(error)}") from error


def _from_tiff(raw: bytes, channels: int, min_side: int) -> Bands:
    bands = tiff.read_tiff(raw, channels, most_pixels=MAX_PIXELS, damage=_DAMAGE)
    return _from_array(bands.values, min_side)._replace(**bands._asdict())


def _decode_jpeg(raw: bytes, size: tuple[int, int], detail: Detail) -> NDArray[np.uint8]:
    """A JPEG of this (width, height) at the smallest of 1, 1/2, 1/4 and 1/8 of its size that leaves enough."""
    width, height = size
    fitting = (k for k in (8, 4, 2) if min(size) >= k * detail.side and width * height >= k * k * detail.area)
    factor = next(fitting, 1)
    least = {"min_height": -(-height // factor), "min_width": -(-width // factor)} if factor > 1 else {}
    return np.asarray(simplejpeg.decode_jpeg(raw, **least))


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """Those of our formats that this Pillow knows: AVIF came with 11.3."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _upright(image: Image.Image) -> Image.Image:
    turn = _turn(image)
    return image if turn is None else image.transpose(turn)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How to set an image upright by its EXIF orientation, if it can be read (Pillow does it itself for TIFF)."""
    try:
        return _ORIENTATIONS.get(image.getexif().get(_ORIENTATION_TAG, 1))
    except _DAMAGE:
        return None


def _from_image(image: Image.Image, channels: int, min_side: int) -> NDArray[np.uint8] | Bands:
    """A loaded image as (H, W, channels) uint8, or as numbers."""
    _check_size(*image.size, min_side)
    if image.mode == "I" and image.format == "PPM":  # which Pillow has spread over 16 bits
        return _from_array(np.asarray(image).astype(np.uint16), min_side)
    if image.mode == "I;16" and "transparency" in image.info and channels in (1, 3):
        values = np.asarray(image)
        opacity = np.where(values == image.info["transparency"], 0, 65535).astype(np.uint16)
        return Bands(np.stack([values, opacity], axis=-1), colour="grey", alpha="straight")
    if image.mode == "F" or image.mode.startswith("I"):
        return _from_array(np.asarray(image), min_side)
    if channels not in (1, 3):  # as the bands are, with no change of colour space
        if image.mode in ("P", "PA"):
            image = image.convert("RGBA" if image.has_transparency_data else "RGB")
        return _from_array(np.asarray(image), min_side)
    if image.has_transparency_data:
        rgba = np.asarray(image.convert("RGBA"))
        image = Image.fromarray(on_background(rgba[..., :3], rgba[..., 3:]))
    elif image.mode == "LAB":
        image = _lab_to_srgb(image)
    mode = "L" if channels == 1 else "RGB"
    pixels = np.array(image if image.mode == mode else image.convert(mode))
    return pixels.reshape(image.height, image.width, channels)


@lru_cache(maxsize=1)
def _lab_transform() -> ImageCms.ImageCmsTransform:
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(lab, srgb, "LAB", "RGB")


def _lab_to_srgb(image: Image.Image) -> Image.Image:
    converted = ImageCms.applyTransform(image, _lab_transform())
    assert converted is not None  # as it is for a transform in place
    return converted


def _from_array(values: NDArray[Any], min_side: int) -> Bands:
    """An array (H, W) or (H, W, C) as bands (H, W, C)."""
    if values.ndim == 2:
        values = values[:, :, None]
    if values.ndim != 3:
        raise BadImage(f"shape {values.shape}: an array must be (height, width) or (height, width, channels)")
    height, width, _ = values.shape
    _check_size(width, height, min_side)
    return Bands(values)


def _read_npy(raw: bytes) -> NDArray[Any]:
    """An .npy file's array; nothing is unpickled, or allocated for more than the file holds."""
    file = io.BytesIO(raw)
    try:
        old = np.lib.format.read_magic(file) == (1, 0)
        read_header = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = read_header(file)
        if dtype.hasobject:
            raise BadImage("not numbers: an array of Python objects")
        values = np.frombuffer(raw, dtype, math.prod(shape), file.tell())
        return values.reshape(shape, order="F" if by_columns else "C")
    except _DAMAGE as error:
        raise BadImage(f"damaged or truncated: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
