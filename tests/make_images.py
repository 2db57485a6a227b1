"""Images of every odd kind, good and bad, made by a script: `python tests/make_images.py FOLDER` writes them.

`ODD` are images that must be decoded, `BAD` are files that must be skipped; both map a file name to
its bytes. The picture is always the same: a bright top-left quarter on a dark slope, so that a test
can see whether it was turned, inverted or clipped.
"""

import io
import struct
import sys
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HEIGHT, WIDTH = 24, 32


def picture(height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """The picture, (height, width, 3) uint8: rows rise from 0 to 120 in red, the top-left quarter is 230."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 120, height).astype(np.uint8)[:, None]
    pixels[..., 2] = 60
    pixels[: height // 2, : width // 2] = 230
    return pixels


def encode(image: Image.Image | NDArray[Any], kind: str = "PNG", **options: Any) -> bytes:
    """An image as the bytes of a file of Pillow's format `kind`."""
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def npy(values: NDArray[Any], *, allow_pickle: bool = False) -> bytes:
    """An array as the bytes of an .npy file."""
    file = io.BytesIO()
    np.save(file, values, allow_pickle=allow_pickle)
    return file.getvalue()


def jpeg(height: int = HEIGHT, width: int = WIDTH, **options: Any) -> bytes:
    """The picture as a good JPEG."""
    return encode(picture(height, width), "JPEG", **({"quality": 95} | options))


def rotated_jpeg(orientation: int) -> bytes:
    """A JPEG whose EXIF says how it must be turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return jpeg(exif=exif, subsampling=0)


def png_header(width: int, height: int) -> bytes:
    """A PNG of almost nothing that claims to be large: a decompression bomb."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(100)))
        + chunk(b"IEND", b"")
    )


def five_band_tiff(height: int = 4, width: int = 6) -> bytes:
    """An uncompressed TIFF of five 8-bit bands, which Pillow cannot read; pixel values count up from 0."""
    data = (np.arange(height * width * 5) % 256).astype(np.uint8).tobytes()
    # (tag, type 3 = 16 bits or 4 = 32 bits, count, value); the ten bytes of bits per band follow the entries.
    entries = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 5, 0), (259, 3, 1, 1), (262, 3, 1, 1)]
    entries += [(273, 4, 1, 0), (277, 3, 1, 5), (278, 3, 1, height), (279, 4, 1, len(data)), (284, 3, 1, 1)]
    bits_at = 8 + 2 + 12 * len(entries) + 4
    places = {258: bits_at, 273: bits_at + 10}
    raw = b"II*\0" + struct.pack("<IH", 8, len(entries))
    for tag, kind, count, value in entries:
        raw += struct.pack("<HHII", tag, kind, count, places.get(tag, value))
    return raw + struct.pack("<I5H", 0, *[8] * 5) + data


def _with_broken_exif() -> bytes:
    raw = jpeg()
    segment = b"Exif\0\0II*\0\xff\xff\xff\x7f" + bytes(7)
    return raw[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + raw[2:]


def _odd() -> dict[str, bytes]:
    rgb = Image.fromarray(picture())
    grey = rgb.convert("L")
    alpha = Image.fromarray(
        np.where(np.arange(WIDTH) < WIDTH // 2, 255, 0).astype(np.uint8)[None].repeat(HEIGHT, 0)
    )
    rgba, la = rgb.copy(), grey.copy()
    rgba.putalpha(alpha)
    la.putalpha(alpha)
    slope = np.linspace(0, 1, WIDTH, dtype=np.float32)[None].repeat(HEIGHT, 0)
    other = Image.fromarray(255 - picture())
    return {
        "good.jpg": jpeg(),
        "png-named.jpg": encode(rgb),
        "grey.png": encode(grey),
        "grey.jpg": encode(grey, "JPEG"),
        "progressive.jpg": jpeg(progressive=True),
        "cmyk.jpg": encode(rgb.convert("CMYK"), "JPEG", quality=95),
        "cmyk.tif": encode(rgb.convert("CMYK"), "TIFF"),
        "ycbcr.tif": encode(rgb.convert("YCbCr"), "TIFF", compression="jpeg", quality=95),
        "lab.tif": encode(
            Image.frombytes("LAB", (WIDTH, HEIGHT), bytes([200, 0, 40]) * (WIDTH * HEIGHT)), "TIFF"
        ),
        "uint16.png": encode((slope * 65535).astype(np.uint16)),
        "uint16.tif": encode((slope * 65535).astype(np.uint16), "TIFF"),
        "uint16.pgm": b"P5 32 24 65535\n" + (slope * 65535).astype(">u2").tobytes(),
        "int32.tif": encode((slope * 2_000_000_000).astype(np.int32), "TIFF"),
        "float.tif": encode(slope, "TIFF"),
        "palette.png": encode(rgb.convert("P", palette=Image.Palette.ADAPTIVE, colors=64)),
        "palette-transparent.png": encode(rgba.convert("P", palette=Image.Palette.ADAPTIVE), transparency=0),
        "palette-transparent-bytes.png": encode(
            rgb.convert("P", palette=Image.Palette.ADAPTIVE, colors=8), transparency=bytes([0, 128, 255])
        ),
        "rgb-key.png": encode(rgb, transparency=(230, 230, 230)),
        "one-bit.png": encode(grey.point(lambda value: value > 100 and 255).convert("1")),
        "la.png": encode(la),
        "rgba.png": encode(rgba),
        "rgba.webp": encode(rgba, "WEBP", lossless=True),
        "animated.gif": encode(rgb, "GIF", save_all=True, append_images=[other], duration=100),
        "animated.png": encode(rgb, save_all=True, append_images=[other]),
        "animated.webp": encode(rgb, "WEBP", save_all=True, append_images=[other], lossless=True),
        "pages.tif": encode(rgb, "TIFF", save_all=True, append_images=[other]),
        "image.bmp": encode(rgb, "BMP"),
        "image.ppm": encode(rgb, "PPM"),
        "image.jp2": encode(rgb, "JPEG2000"),
        "rotated.jpg": rotated_jpeg(6),
        "broken-exif.jpg": _with_broken_exif(),
        "broken-icc.jpg": jpeg(icc_profile=b"no profile at all"),
        "broken-icc.png": encode(rgb, icc_profile=b"no profile at all"),
        "thin.png": encode(np.zeros((1, 10000, 3), np.uint8)),
        "array.npy": npy(picture()),
        "array-grey.npy": npy(slope),
    }


def _bad() -> dict[str, bytes]:
    good, whole = jpeg(96, 96), encode(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    return {
        "empty.jpg": b"",
        "text.jpg": b"This is no image.\n",
        "page.jpg": b"<!DOCTYPE html><html><body>404 not found</body></html>",
        "zeros.jpg": bytes(1000),
        "noise.jpg": np.random.default_rng(1).bytes(1000),
        "script.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        "truncated.jpg": good[: len(good) // 2],
        "header-only.jpg": good[:20],
        "truncated.png": whole[: len(whole) // 2],
        "truncated.tif": encode(picture(), "TIFF")[:900],
        "bomb.png": png_header(60_000, 60_000),
        "smaller-bomb.png": png_header(14_000, 14_000),
        "nan.tif": encode(np.full((HEIGHT, WIDTH), np.nan, np.float32), "TIFF"),
        "truncated.npy": npy(picture())[:-1],
        "huge-header.npy": npy(np.zeros((2, 2), np.uint8)).replace(b"(2, 2), ", b"(9999999, 9999999), ", 1),
        "objects.npy": npy(np.array([[None, 1]], dtype=object), allow_pickle=True),
        "complex.npy": npy(np.zeros((4, 4), np.complex64)),
        "four-dimensions.npy": npy(np.zeros((2, 2, 2, 2), np.uint8)),
        "six-bands.npy": npy(np.zeros((4, 4, 6), np.uint8)),
    }


@cache
def odd_images() -> dict[str, bytes]:
    """Files that must be decoded to three channels: name -> bytes."""
    return _odd()


@cache
def bad_images() -> dict[str, bytes]:
    """Files that must be skipped: name -> bytes."""
    return _bad()


def main(folder: str) -> None:
    """Write all of them into a folder."""
    for name, raw in (odd_images() | bad_images() | {"five-bands.tif": five_band_tiff()}).items():
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, name).write_bytes(raw)


if __name__ == "__main__":
    main(*sys.argv[1:])
