"""PNGs with metadata of any size and state, and with a transparent colour at any depth."""

import struct
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray

from make_images import encode, jpeg
from openjepa.data.bad_files import BadImage
from openjepa.data.decode import decode

RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
TEXT = (b"workflow " * 300_000)[:2_000_000]
PACKED = zlib.compress(TEXT)


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk with its checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize(
    "metadata",
    [
        chunk(b"zTXt", b"parameters\0\0" + PACKED),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + PACKED),
        chunk(b"tEXt", b"comment\0" + TEXT * 35),
        b"".join(chunk(b"zTXt", b"t%d\0\0" % i + zlib.compress(TEXT[:900_000])) for i in range(75)),
        chunk(b"iCCP", b"icc\0\0" + PACKED),
        chunk(b"iCCP", b"icc\0\0no zlib"),
        chunk(b"gAMA", b"\0"),
        chunk(b"pHYs", b""),
    ],
    ids=["zTXt", "iTXt", "tEXt", "many", "iCCP", "broken iCCP", "broken gAMA", "broken pHYs"],
)
@pytest.mark.parametrize("after", [False, True], ids=["before the pixels", "after them"])
def test_metadata_do_not_cost_the_picture(metadata: bytes, after: bool) -> None:
    plain = encode(RGB)
    place = len(plain) - 12 if after else 33
    np.testing.assert_array_equal(decode(plain[:place] + metadata + plain[place:]), RGB)


def test_damage_of_the_picture_stays_damage() -> None:
    plain = bytearray(encode(RGB))
    plain[60] ^= 255
    with pytest.raises(BadImage, match="damaged"):
        decode(bytes(plain[:33]) + chunk(b"zTXt", b"a\0\0" + PACKED) + bytes(plain[33:]))


def png(values: NDArray[np.uint16], depth: int, clear: tuple[int, ...]) -> bytes:
    """A PNG of samples (H, W, 1 or 3) of so many bits, with a transparent colour."""
    height, width, num = values.shape
    bits = ((values.reshape(height, -1, 1) >> np.arange(depth)[::-1]) & 1).astype(np.uint8)
    rows = np.packbits(bits.reshape(height, -1), axis=1)
    header = struct.pack(">IIBBBBB", width, height, depth, 0 if num == 1 else 2, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    colour = chunk(b"tRNS", struct.pack(f">{len(clear)}H", *clear))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + colour + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_grey_at_any_depth(depth: int) -> None:
    top = 2**depth - 1
    values = np.array([[0, 1, top - 1, top]], np.uint16)[..., None]
    picture = decode(png(values, depth, (1,)), channels=1).ravel()
    expected = np.where(values.ravel() == 1, 128, np.rint(values.ravel() * (255 / top)))
    np.testing.assert_allclose(picture, expected, atol=1)


@pytest.mark.parametrize("depth", [8, 16])
def test_a_transparent_colour_is_that_colour_and_no_near_one(depth: int) -> None:
    clear = (3, 1, 7)
    values = np.array([[clear, (3, 1, 8), (3, 0, 7), (2**depth - 1, 1, 7)]], np.uint16)
    picture = decode(png(values, depth, clear))
    np.testing.assert_array_equal(picture[0, 0], [128] * 3)
    np.testing.assert_allclose(picture[0, 1:], values[0, 1:] / (2**depth - 1) * 255, atol=1)


def test_a_jpeg_that_lacks_only_its_last_two_bytes_is_whole() -> None:
    whole = jpeg(200, 300)
    np.testing.assert_array_equal(decode(whole[:-2]), decode(whole))
    with pytest.raises(BadImage, match="damaged"):
        decode(whole[:-40])
