"""TIFFs as cameras, scanners and microscopes write them: what they hold, or a reason; never something else."""

import io
import struct
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from openjepa.data.bad_files import BadImage
from openjepa.data.decode import decode

tifffile = pytest.importorskip("tifffile")

_RANDOM = np.random.default_rng(0)
RGB8 = _RANDOM.integers(0, 256, (24, 40, 3), dtype=np.uint8)
RGB16 = _RANDOM.integers(0, 65536, (24, 40, 3), dtype=np.uint16)
GREY8, GREY16 = RGB8[..., 0], RGB16[..., 0]


def tiff(values: NDArray[Any], **options: Any) -> bytes:
    """A TIFF as tifffile writes it."""
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def levels(values: NDArray[Any]) -> NDArray[np.float64]:
    """16 bits as 8."""
    return np.rint(values / 257.0)


def planes(values: NDArray[Any]) -> NDArray[Any]:
    """Bands first."""
    return np.moveaxis(values, -1, 0)


def opaque(colours: NDArray[Any]) -> NDArray[Any]:
    """With a band of full opacity."""
    return np.dstack([colours, np.full(colours.shape[:2], np.iinfo(colours.dtype).max, colours.dtype)])


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"compression": "lzw", "predictor": True}])
@pytest.mark.parametrize("planar", [False, True])
def test_16_bit_rgb(order: str, options: dict[str, Any], planar: bool) -> None:
    config = {"planarconfig": "separate"} if planar else {}
    values = planes(RGB16) if planar else RGB16
    raw = tiff(values, photometric="rgb", byteorder=order, **options, **config)
    np.testing.assert_allclose(decode(raw), levels(RGB16), atol=1)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (GREY8, 255.0 - GREY8),
        (GREY16, levels(65535 - GREY16)),
        (GREY16 / np.float32(65535), levels(65535 - GREY16)),
        (GREY8 > 127, (GREY8 <= 127) * 255.0),
    ],
)
def test_white_is_zero(values: NDArray[Any], expected: NDArray[Any]) -> None:
    np.testing.assert_allclose(
        decode(tiff(values, photometric="miniswhite"), channels=1)[..., 0], expected, atol=1
    )


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("channels", [1, 3])
def test_bits_that_the_file_declares(bits: int, channels: int) -> None:
    """Rows of samples, most significant bit first, each row filled up to a byte (TIFF 6.0)."""
    pytest.importorskip("imagecodecs")
    slope = (
        np.rint(np.linspace(0, 2**bits - 1, 24 * 40)).astype(np.int64).reshape(24, 40, 1).repeat(channels, 2)
    )
    spread = (slope.reshape(24, -1, 1) >> np.arange(bits)[::-1]) & 1
    data = np.packbits(spread.reshape(24, -1).astype(np.uint8), axis=1).tobytes()
    shapes = {
        256: 40,
        257: 24,
        259: 1,
        262: 2 if channels == 3 else 1,
        273: 8,
        277: channels,
        278: 24,
        279: len(data),
    }
    start = 8 + len(data) + len(data) % 2
    after = start + 2 + 12 * (len(shapes) + 1) + 4
    entries = sorted([*((tag, 3 if value < 2**16 else 4, 1, value) for tag, value in shapes.items()),
                      (258, 3, channels, bits if channels == 1 else after)])  # fmt: skip
    raw = (
        b"II*\0" + struct.pack("<I", start) + data + b"\0" * (len(data) % 2) + struct.pack("<H", len(entries))
    )
    raw += (
        b"".join(struct.pack("<HHII", *entry) for entry in entries)
        + bytes(4)
        + struct.pack("<3H", *[bits] * 3)
    )
    expected = np.rint(slope * (255 / (2**bits - 1)))
    np.testing.assert_allclose(decode(raw, channels=channels), expected, atol=1)


@pytest.mark.parametrize("extra", ["unspecified", "assocalpha", "unassalpha"])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("colours", [RGB8, RGB16])
def test_four_bands_asked_for_are_the_numbers_of_the_file(
    extra: str, planar: bool, colours: NDArray[Any]
) -> None:
    cube = np.dstack([colours, colours[..., 0]])
    config = {"planarconfig": "separate"} if planar else {}
    raw = tiff(planes(cube) if planar else cube, photometric="rgb", extrasamples=[extra], **config)
    expected = cube if cube.dtype == np.uint8 else levels(cube)
    np.testing.assert_allclose(decode(raw, channels=4), expected, atol=1)


@pytest.mark.parametrize("extra", ["assocalpha", "unassalpha", "unspecified"])
def test_of_a_picture_an_opaque_or_unknown_fourth_band_is_left_out(extra: str) -> None:
    raw = tiff(opaque(RGB16), photometric="rgb", extrasamples=[extra])
    np.testing.assert_allclose(decode(raw), levels(RGB16), atol=1)


@pytest.mark.parametrize("extra", ["assocalpha", "unassalpha"])
def test_what_is_transparent_is_mid_grey(extra: str) -> None:
    clear = np.dstack([RGB16 * 0, GREY16 * 0])
    assert np.unique(decode(tiff(clear, photometric="rgb", extrasamples=[extra]))).tolist() == [128]
    grey = np.dstack([GREY16 * 0, GREY16 * 0])
    raw = tiff(grey, photometric="minisblack", planarconfig="contig", extrasamples=[extra])
    assert np.unique(decode(raw)).tolist() == [128]


def test_grey_with_a_band_of_no_known_meaning_is_refused() -> None:
    raw = tiff(
        np.dstack([GREY16, GREY16]),
        photometric="minisblack",
        planarconfig="contig",
        extrasamples=["unspecified"],
    )
    with pytest.raises(BadImage, match="2 channels: 3 are wanted"):
        decode(raw)
    np.testing.assert_allclose(decode(raw, channels=2), levels(np.dstack([GREY16, GREY16])), atol=1)


def test_inks_and_palettes() -> None:
    inks = np.dstack([65535 - RGB16, GREY16 * 0])
    np.testing.assert_allclose(decode(tiff(inks, photometric="separated")), levels(RGB16), atol=1)
    table = np.stack([np.arange(256) * 257] * 3).astype(np.uint16)
    raw = tiff(GREY8, photometric="palette", colormap=table)
    np.testing.assert_array_equal(decode(raw), GREY8[..., None].repeat(3, 2))


@pytest.mark.parametrize("how", ["pages", "ome", "imagej"])
def test_channels_of_microscopes(how: str) -> None:
    options = {"pages": {}, "ome": {"ome": True, "metadata": {"axes": "CYX"}},
               "imagej": {"imagej": True, "metadata": {"axes": "CYX"}}}[how]  # fmt: skip
    cube = _RANDOM.integers(0, 65536, (4, 24, 40), dtype=np.uint16)
    raw = tiff(cube, photometric="minisblack", **options)
    np.testing.assert_allclose(decode(raw, channels=4), levels(np.moveaxis(cube, 0, -1)), atol=1)


def test_of_a_stack_the_first_picture_and_of_named_channels_all() -> None:
    cube = _RANDOM.integers(0, 65536, (5, 3, 24, 40), dtype=np.uint16)
    raw = tiff(cube, imagej=True, metadata={"axes": "ZCYX"})
    np.testing.assert_allclose(decode(raw), levels(np.moveaxis(cube[0], 0, -1)), atol=1)
    pages = tiff(cube[:, 0], photometric="minisblack")
    np.testing.assert_allclose(decode(pages, channels=1)[..., 0], levels(cube[0, 0]), atol=1)


def test_what_cannot_be_told_is_refused_in_words() -> None:
    with pytest.raises(BadImage, match="a TIFF of colours CFA"):
        decode(
            tiff(
                GREY16,
                photometric="cfa",
                extratags=[(33421, 3, 2, (2, 2), True), (33422, 1, 4, (0, 1, 1, 2), True)],
            )
        )
    with pytest.raises(BadImage, match="not numbers"):
        decode(tiff(GREY16.astype(np.complex64), photometric="minisblack"))


def test_a_codec_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPage, "asarray", refuse)
    with pytest.raises(BadImage, match=r"needs a codec: pip install 'openjepa\[tiff\]'"):
        decode(tiff(planes(RGB16), photometric="rgb", planarconfig="separate"))


@pytest.mark.parametrize("turn", range(1, 9))
def test_any_layout_is_set_upright_as_pillow_sets_the_plain_ones(turn: int) -> None:
    said = [(274, 3, 1, turn, True)]
    plain = decode(tiff(RGB8, photometric="rgb", extratags=said))
    wide = planes(RGB8.astype(np.uint16) * 257)
    raw = tiff(wide, photometric="rgb", planarconfig="separate", extratags=said)
    np.testing.assert_array_equal(decode(raw), plain)
