"""Encoded bytes of any kind to (height, width, channels) uint8 pixels, or `BadImage` with a reason.

How what is not 8-bit RGB becomes so (the rules are fixed, so that a checkpoint's images look
the same everywhere):

- **Wider than 8 bits** is scaled, never clipped: see `to_uint8`.
- **Transparency** is laid on mid-grey, on which both black and white drawings stay visible.
- **CMYK, YCbCr, LAB, HSV, palettes** become RGB; embedded colour profiles are not applied.
- **EXIF orientation** is applied; broken metadata is ignored, its pixels are kept.
- **Animations and multi-page files** give their first frame.
- **One channel asked for**: luma (ITU-R 601). **Three asked for and one there**: repeated. **Any other
  number**: the file must have it, be it Pillow's bands, a TIFF, or an .npy array (H, W) or (H, W, C).
"""

import importlib
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

MAX_PIXELS = 178_956_970
"""Largest image decoded, in pixels: where Pillow itself speaks of a decompression bomb (0.5 GB as RGB)."""

# No EPS, WMF and the like, which run other programs, and no TGA, whose header any bytes can pass for.
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF")
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# What image libraries raise on damaged files.
_DAMAGE = (
    *(OSError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, SyntaxError),
    *(EOFError, MemoryError, RuntimeError, struct.error, tokenize.TokenError, zlib.error),
)
_BACKGROUND = (128, 128, 128, 255)
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


class BadImage(Exception):
    """A file that gives no image. Its text is the reason, one line: a kind, then ": " and details."""


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


def decode(
    raw: bytes | NDArray[Any], *, channels: int = 3, min_side: int = 1, detail: Detail = FULL
) -> NDArray[np.uint8]:
    """Decode one image.

    Args:
        raw: A file's bytes, or an array (H, W) or (H, W, C) of numbers.
        channels: Channels wanted, C.
        min_side: Least height and width in pixels.
        detail: What is enough: a JPEG that is larger is decoded at a half, a quarter or an eighth of its size,
            which takes a third of the time or less.

    Returns:
        Pixels, (H, W, C) uint8, a contiguous array of its own.

    Raises:
        BadImage: Empty, damaged, no image, too small, too large, or of another number of channels.
    """
    if isinstance(raw, np.ndarray):
        return _from_array(raw, channels, min_side)
    if not raw:
        raise BadImage("empty file")
    with quiet:
        if raw.startswith(b"\x93NUMPY"):
            return _from_array(_read_npy(raw), channels, min_side)
        image = _load(raw, min_side, detail)
        if isinstance(image, np.ndarray):
            return image if channels == 3 else _from_array(image, channels, min_side)
        # Pillow knows neither TIFFs of five bands nor bands kept as pages.
        unknown = image is None or (channels not in (1, 3) and len(image.getbands()) != channels)
        if unknown and raw.startswith(_TIFF_MAGIC):
            return _from_array(_read_tiff(raw), channels, min_side)
        if image is None:
            raise BadImage("not an image")
        return _from_image(image, channels, min_side)


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
            return ("TIFF", "array") if raw.startswith(_TIFF_MAGIC) else ("?", "?")


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


def to_uint8(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Numbers of any type as 8 bits, scaled by their type's range where it has one, never clipped.

    Booleans become 0 and 255; unsigned 16 bits are divided by 257 (65,535 becomes 255). Wider or
    signed integers are taken as 8-bit when all lie in 0..255, as 16-bit when all lie in 0..65,535;
    floating point as 0..1 when all lie there, else as 0..255. Values outside all of these are
    stretched so that the image's own minimum becomes 0 and its maximum 255.

    Raises:
        BadImage: Not numbers, or NaN or infinite among them.
    """
    kind, width = values.dtype.kind, values.dtype.itemsize
    if kind not in "buif":
        raise BadImage(f"not numbers: an array of type {values.dtype}")
    if kind == "b":
        return values.astype(np.uint8) * np.uint8(255)
    if kind == "u" and width == 1:
        return np.array(values, dtype=np.uint8, order="C")
    low, high = float(values.min()), float(values.max())
    if not math.isfinite(high - low):
        raise BadImage("NaN or infinite pixels")
    if kind == "u" and width == 2:
        start, span = 0.0, 65535.0
    else:
        ranges = (1.0, 255.0) if kind == "f" else (255.0, 65535.0)
        fitting = [span for span in ranges if low >= 0 and high <= span]
        start, span = (0.0, fitting[0]) if fitting else (low, high - low)
    # float64: the differences of large integers must not drown in rounding
    return np.rint((values.astype(np.float64) - start) * (255.0 / (span or 1.0))).astype(np.uint8)


def _check_size(width: int, height: int, min_side: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadImage(f"too large: {width} x {height} pixels, at most {MAX_PIXELS} are decoded")
    if min(width, height) < max(min_side, 1):
        raise BadImage(f"too small: {width} x {height} pixels, data.min_side is {min_side}")


def _load(raw: bytes, min_side: int, detail: Detail) -> Image.Image | NDArray[np.uint8] | None:
    """The upright image of a file, its size checked before its pixels are decoded; None if unidentified.

    Plain JPEGs, grey ones too, come as pixels (H, W, 3): simplejpeg gives those of Pillow a quarter sooner.
    """
    try:
        with Image.open(io.BytesIO(raw), formats=_formats()) as image:
            _check_size(*image.size, min_side)
            if image.format == "JPEG" and image.mode in ("RGB", "L") and _turn(image) is None:
                try:
                    return _decode_jpeg(raw, image.size, detail)
                except ValueError:
                    pass  # damaged: Pillow says how, or is more lenient
            image.load()
            turn = _turn(image)
            return image if turn is None else image.transpose(turn)
    except UnidentifiedImageError:
        return None
    except Image.DecompressionBombError as error:
        raise BadImage(f"too large: more than {MAX_PIXELS} pixels") from error
    except _DAMAGE as error:
        raise BadImage(f"damaged or truncated: {_one_line(error)}") from error


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


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How to set an image upright by its EXIF orientation, if it can be read (Pillow does it itself for TIFF)."""
    try:
        return _ORIENTATIONS.get(image.getexif().get(_ORIENTATION_TAG, 1))
    except _DAMAGE:
        return None


def _from_image(image: Image.Image, channels: int, min_side: int) -> NDArray[np.uint8]:
    """A loaded image as (H, W, C) uint8."""
    if image.mode == "F" or image.mode.startswith("I"):
        return _from_array(np.asarray(image), channels, min_side)
    if channels not in (1, 3):  # as the bands are, with no change of colour space
        if image.mode in ("P", "PA"):
            image = image.convert("RGBA" if image.has_transparency_data else "RGB")
        return _from_array(np.asarray(image), channels, min_side)
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, _BACKGROUND)
        canvas.alpha_composite(image.convert("RGBA"))
        image = canvas
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


def _from_array(values: NDArray[Any], channels: int, min_side: int) -> NDArray[np.uint8]:
    """An array (H, W) or (H, W, C) as (H, W, channels) uint8."""
    if values.ndim == 2:
        values = values[:, :, None]
    if values.ndim != 3:
        raise BadImage(f"shape {values.shape}: an array must be (height, width) or (height, width, channels)")
    height, width, found = values.shape
    _check_size(width, height, min_side)
    if found != channels and (found, channels) not in ((1, 3), (3, 1)):
        raise BadImage(f"{found} channels: {channels} are wanted; set --channels {found} to train on these")
    pixels = np.ascontiguousarray(to_uint8(values))
    if found == channels:
        return pixels
    if channels == 3:
        return np.repeat(pixels, 3, axis=2)
    return np.array(Image.fromarray(pixels).convert("L"))[:, :, None]


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


def _read_tiff(raw: bytes) -> NDArray[Any]:
    """The first image of a TIFF whose bands or numbers Pillow does not know; pages are taken as bands."""
    try:
        tifffile: Any = importlib.import_module("tifffile")
    except ImportError as error:
        raise BadImage("a TIFF that Pillow cannot read: pip install 'openjepa[tiff]'") from error
    try:
        with tifffile.TiffFile(io.BytesIO(raw)) as file:
            series = file.series[0]
            if series.size > 3 * MAX_PIXELS:
                raise BadImage(
                    f"too large: {series.size} numbers in a TIFF, at most {3 * MAX_PIXELS} are read"
                )
            values: NDArray[Any] = series.asarray()
            return np.moveaxis(values, 0, -1) if values.ndim == 3 and series.axes.endswith("YX") else values
    except (*_DAMAGE, tifffile.TiffFileError) as error:
        raise BadImage(f"damaged or truncated: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
