"""What Pillow does not do for PNG: metadata that are too large or broken, and a transparent colour at any depth."""

import io
import struct
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_NEEDED = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"eXIf")
_LOW_BYTES = (
    "RGB;16L"  # of PNG's samples, whose high byte comes first, Pillow takes the low one for the colour so
)


def without_metadata(raw: bytes) -> bytes:
    """A PNG without its texts and profiles, which take no part in the picture; other damage stays as it is."""
    return SIGNATURE + b"".join(chunk for kind, chunk in _chunks(raw) if kind in _NEEDED)


def _chunks(raw: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = len(SIGNATURE)
    while place + 8 <= len(raw):
        size, kind = struct.unpack_from(">I4s", raw, place)
        yield kind, raw[place : place + 12 + size]
        place += 12 + size


def with_opacity(raw: bytes, image: Image.Image) -> Image.Image:
    """A PNG of 8 bits or fewer, or of 16-bit RGB, that names a transparent colour, with an opacity for each pixel.

    The colour is compared at the depth of the file: of fewer than 8 bits Pillow spreads the pixels over 0..255 but not
    the colour, and of 16-bit RGB it keeps the high byte of the pixels only.

    Args:
        raw: The file's bytes.
        image: The same, loaded.
    """
    colour, depth = image.info.get("transparency"), raw[24]
    if colour is None or image.mode not in ("1", "L", "RGB"):
        return image
    values = np.asarray(image).reshape(image.height, image.width, -1)
    if image.mode == "L":
        colour *= 255 // (2**depth - 1)
    elif image.mode == "RGB" and depth == 16:
        values = (values.astype(np.uint16) << 8) | _low_bytes(raw)
    clear = (values == np.asarray(colour, values.dtype)).all(axis=2)
    image = image.convert("L") if image.mode == "1" else image.copy()
    del image.info["transparency"]
    image.putalpha(Image.fromarray(np.where(clear, np.uint8(0), np.uint8(255))))
    return image


def _low_bytes(raw: bytes) -> NDArray[np.uint8]:
    """The lower half of 16-bit RGB (H, W, 3), which Pillow leaves out."""
    with Image.open(io.BytesIO(raw), formats=("PNG",)) as image:
        image.tile = [tile._replace(args=_LOW_BYTES) for tile in image.tile]
        return np.asarray(image)
