"""Every odd image becomes the right pixels; every bad one a `BadImage` with its reason, and nothing else."""

import io
import struct
import sys
import threading
import warnings
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile

from make_images import (
    HEIGHT,
    WIDTH,
    bad_images,
    encode,
    five_band_tiff,
    jpeg,
    npy,
    odd_images,
    picture,
    png_header,
    rotated_jpeg,
)
from openjepa.data import decode as decode_module
from openjepa.data.bad_files import BadImage
from openjepa.data.decode import Detail, decode
from openjepa.data.levels import to_uint8
from openjepa.data.views import resize

GREY = [128, 128, 128]


@pytest.mark.parametrize("name", odd_images())
@pytest.mark.parametrize("channels", [1, 3])
def test_odd_images_are_decoded(name: str, channels: int) -> None:
    pixels = decode(odd_images()[name], channels=channels)
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == channels
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable  # or torch.from_numpy warns


@pytest.mark.parametrize("name", bad_images())
def test_bad_images_are_named_on_one_line(name: str) -> None:
    with pytest.raises(BadImage) as caught:
        decode(bad_images()[name])
    reason = str(caught.value)
    assert reason
    assert "\n" not in reason


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("empty.jpg", "empty file"),
        ("text.jpg", "not an image"),
        ("noise.jpg", "not an image"),
        ("script.eps", "not an image"),
        ("truncated.jpg", "damaged or truncated"),
        ("truncated.png", "damaged or truncated"),
        ("truncated.tif", "damaged or truncated"),
        ("truncated.npy", "damaged or truncated"),
        ("huge-header.npy", "damaged or truncated"),
        ("bomb.png", "too large"),
        ("smaller-bomb.png", "too large"),
        ("objects.npy", "not numbers"),
        ("nan.tif", "NaN or infinite pixels"),
        ("six-bands.npy", "6 channels"),
    ],
)
def test_kinds_of_faults(name: str, kind: str) -> None:
    with pytest.raises(BadImage) as caught:
        decode(bad_images()[name])
    assert str(caught.value).partition(":")[0] == kind


@pytest.mark.parametrize(
    "name", ["png-named.jpg", "image.bmp", "image.ppm", "image.jp2", "array.npy", "pages.tif"]
)
def test_lossless_pixels_are_exact(name: str) -> None:
    np.testing.assert_array_equal(decode(odd_images()[name]), picture())


@pytest.mark.parametrize("name", ["animated.gif", "animated.png", "animated.webp"])
def test_the_first_frame_is_taken(name: str) -> None:
    np.testing.assert_array_equal(decode(odd_images()[name]), picture())


@pytest.mark.parametrize(
    "name",
    [
        "cmyk.jpg",
        "cmyk.tif",
        "ycbcr.tif",
        "palette.png",
        "broken-exif.jpg",
        "broken-icc.jpg",
        "broken-icc.png",
    ],
)
def test_other_colour_spaces_and_broken_metadata_keep_the_picture(name: str) -> None:
    difference = np.abs(decode(odd_images()[name]).astype(int) - picture())
    assert difference.mean() < 2


def test_lab_is_converted() -> None:
    # L 78.4, a 0, b 40 in sRGB, from the definition of CIELAB (white point D50).
    np.testing.assert_allclose(decode(odd_images()["lab.tif"])[0, 0], [213, 192, 118], atol=3)


def test_one_channel_is_luma_and_grey_is_repeated() -> None:
    luma = decode(odd_images()["png-named.jpg"], channels=1)[..., 0]
    np.testing.assert_allclose(luma, picture() @ [0.299, 0.587, 0.114], atol=1)
    np.testing.assert_array_equal(decode(odd_images()["grey.png"], channels=1)[..., 0], luma)
    np.testing.assert_array_equal(decode(odd_images()["grey.png"]), luma[..., None].repeat(3, axis=2))
    np.testing.assert_array_equal(decode(picture(), channels=1)[..., 0], luma)


@pytest.mark.parametrize(
    "name", ["uint16.png", "uint16.tif", "uint16.pgm", "int32.tif", "float.tif", "array-grey.npy"]
)
def test_more_than_8_bits_are_scaled_not_clipped(name: str) -> None:
    row = decode(odd_images()[name])[0, :, 0]
    np.testing.assert_allclose(row, np.linspace(0, 255, WIDTH), atol=1)
    assert len(np.unique(row)) == WIDTH


@pytest.mark.parametrize("name", ["la.png", "rgba.png", "rgba.webp", "palette-transparent.png"])
def test_transparency_is_laid_on_mid_grey(name: str) -> None:
    pixels = decode(odd_images()[name])
    assert pixels[0, 0].tolist() == [230, 230, 230]
    assert pixels[0, -1].tolist() == GREY
    assert decode(odd_images()[name], channels=1)[0, -1].tolist() == GREY[:1]


def test_transparent_colours_are_laid_on_mid_grey() -> None:
    pixels = decode(odd_images()["rgb-key.png"])
    assert pixels[0, 0].tolist() == GREY
    assert pixels[0, -1].tolist() == [0, 0, 60]
    assert decode(odd_images()["palette-transparent-bytes.png"])[0, 0].tolist() == GREY


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    # What each value says: where the file's first row and first column belong in the picture.
    stored = decode(rotated_jpeg(1))
    turned = stored.swapaxes(0, 1)
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: turned,
        6: turned[:, ::-1],
        7: turned[::-1, ::-1],
        8: turned[::-1],
    }
    np.testing.assert_array_equal(decode(rotated_jpeg(orientation)), upright[orientation])


def test_orientation_of_png_webp_and_tiff_is_applied_once() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    expected = picture().swapaxes(0, 1)[:, ::-1]
    for kind in ("PNG", "WEBP", "TIFF"):
        raw = encode(picture(), kind, exif=exif, lossless=True)
        np.testing.assert_array_equal(decode(raw), expected)


def test_min_side_is_checked_before_decoding() -> None:
    assert decode(jpeg(1, 1)).shape == (1, 1, 3)
    assert decode(jpeg(4, 9), min_side=4).shape == (4, 9, 3)
    for raw in (jpeg(3, 90), npy(picture(90, 3)), picture(3, 3), png_header(3, 3)):
        with pytest.raises(BadImage, match=r"too small: .* data\.min_side is 4"):
            decode(raw, min_side=4)


def test_our_own_limit_of_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_module, "MAX_PIXELS", 99)
    for raw in (png_header(10, 10), npy(picture(10, 10)), picture(10, 10)):
        with pytest.raises(BadImage, match="too large: 10 x 10 pixels"):
            decode(raw)


@pytest.mark.parametrize(
    ("size", "found"),
    [
        ((600, 800), (150, 200)),  # a quarter leaves 150 × 200 ≥ 130²
        ((260, 1000), (130, 500)),  # at a quarter the shorter side would be 65
        ((255, 300), (255, 300)),
        ((1041, 1043), (131, 131)),  # odd sizes are rounded up
    ],
)
def test_large_jpegs_are_decoded_at_the_size_that_is_enough(
    size: tuple[int, int], found: tuple[int, int]
) -> None:
    assert decode(jpeg(*size), detail=Detail(130, 130**2)).shape == (*found, 3)
    assert decode(jpeg(*size)).shape == (*size, 3)


def test_grey_jpegs_are_decoded_as_coloured_ones_are() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (260, 270), dtype=np.uint8)
    raw = encode(grey, "JPEG", quality=92)
    with Image.open(io.BytesIO(raw)) as image:
        expected = np.asarray(image)
    for channels in (1, 3):
        np.testing.assert_array_equal(
            decode(raw, channels=channels), expected[..., None].repeat(channels, axis=2)
        )
        assert decode(raw, channels=channels, detail=Detail(130, 130**2)).shape == (130, 135, channels)


def test_every_crop_of_a_reduced_image_is_as_large_as_its_view() -> None:
    """The smallest crop has 0.3 of the area and an aspect of 3/4 or 4/3."""
    enough = Detail.for_views((96, 96))
    pixels = decode(jpeg(1200, 900), detail=enough)
    assert pixels.shape == (300, 225, 3)
    assert np.sqrt(0.3 * 300 * 225 * 3 / 4) >= 96


def test_a_view_of_a_reduced_image_differs_by_a_few_levels() -> None:
    """Large photographs: 0.3 levels on average (docs/log.md); a picture of waves of 8 to 40 pixels here."""
    rows, columns = np.mgrid[:768, :1024]
    waves = np.stack([np.sin(rows / n) * np.cos(columns / (n + 2)) for n in (8, 17, 40)], axis=-1)
    raw = encode((127.5 + 120 * waves).astype(np.uint8), "JPEG", quality=92)
    whole, reduced = (decode(raw, detail=detail) for detail in (decode_module.FULL, Detail(100, 100**2)))
    assert reduced.shape == (192, 256, 3)
    views = [
        resize([pixels], np.array([[0, 0, *pixels.shape[:2]]]), np.zeros(1, bool), (96, 128), "bilinear")
        for pixels in (whole, reduced)
    ]
    difference = np.abs(views[0].astype(int) - views[1].astype(int))
    assert difference.mean() < 1
    assert difference.max() <= 8


def test_thin_images_keep_their_shape() -> None:
    assert decode(odd_images()["thin.png"]).shape == (1, 10000, 3)


def test_nothing_global_is_changed() -> None:
    before, limit = warnings.filters[:], Image.MAX_IMAGE_PIXELS
    for raw in (odd_images()["broken-exif.jpg"], odd_images()["good.jpg"]):
        decode(raw)
    with pytest.raises(BadImage):
        decode(bad_images()["truncated.jpg"])
    assert warnings.filters == before
    assert limit == Image.MAX_IMAGE_PIXELS
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_warnings_stay_hidden_in_overlapping_threads() -> None:
    # The whole suite turns warnings into errors, so one that leaks would fail its thread.
    raw, failures = odd_images()["broken-exif.jpg"], []

    def work() -> None:
        try:
            for _ in range(30):
                decode(raw)
        except (UserWarning, BadImage) as error:
            failures.append(error)

    before = warnings.filters[:]
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert warnings.filters == before


def test_any_cut_of_a_file_is_refused_or_whole() -> None:
    for kind in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"):
        raw = encode(picture(), kind)
        whole = decode(raw)
        for length in range(0, len(raw), max(1, len(raw) // 60)):
            try:
                np.testing.assert_array_equal(decode(raw[:length]), whole)
            except BadImage:
                continue


def test_damaged_files_raise_nothing_else() -> None:
    generator = np.random.default_rng(0)
    for raw in [*odd_images().values(), five_band_tiff()]:
        for _ in range(6):
            damaged = np.frombuffer(raw, np.uint8).copy()
            places = generator.integers(0, min(len(raw), generator.choice([60, 100_000])), 5)
            damaged[places] = generator.integers(0, 256, 5)
            try:
                pixels = decode(damaged.tobytes())
            except BadImage:
                continue
            assert pixels.dtype == np.uint8
            assert pixels.shape[2] == 3


def _arrays() -> list[tuple[NDArray[Any], list[int]]]:
    return [
        (np.array([[False, True]]), [0, 255]),
        (np.array([[3, 200]], np.uint8), [3, 200]),
        (np.array([[0, 257, 65535]], np.uint16), [0, 1, 255]),
        (np.array([[0, 257, 65535]], ">u2"), [0, 1, 255]),
        (np.array([[0, 200]], np.int64), [0, 200]),
        (np.array([[0, 257, 65535]], np.int32), [0, 1, 255]),
        (np.array([[-1000, 0, 1000]], np.int16), [0, 128, 255]),
        (np.array([[0.0, 0.5, 1.0]]), [0, 128, 255]),
        (np.array([[0.0, 2.0, 254.6]], np.float32), [0, 2, 255]),
        (np.array([[-2.0, 0.0, 2.0]], np.float16), [0, 128, 255]),
        (np.array([[7e9, 7e9]]), [0, 0]),
        (np.array([[2**60, 2**60 + 2**54]]), [0, 255]),
    ]


@pytest.mark.parametrize(("values", "expected"), _arrays())
def test_the_rule_of_scaling(values: NDArray[Any], expected: list[int]) -> None:
    assert to_uint8(values).tolist() == [expected]


@pytest.mark.parametrize(
    "values",
    [np.array([[np.inf]]), np.array([[-1e308, 1e308]]), np.zeros((1, 1), complex), np.array([["a"]])],
)
def test_what_cannot_be_scaled(values: NDArray[Any]) -> None:
    with pytest.raises(BadImage):
        to_uint8(values)


def test_arrays_of_any_number_of_channels() -> None:
    values = np.random.default_rng(0).integers(0, 256, (4, 6, 5), np.uint8)
    np.testing.assert_array_equal(decode(npy(values), channels=5), values)
    np.testing.assert_array_equal(decode(npy(np.asfortranarray(values)), channels=5), values)
    assert decode(np.asfortranarray(values / 255), channels=5).flags.c_contiguous
    decoded = decode(values, channels=5)
    assert not np.shares_memory(decoded, values)
    with pytest.raises(BadImage, match="5 channels: 3 are wanted; set --channels 5"):
        decode(values)


def test_bands_of_files_are_kept_as_they_are() -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (4, 6, 4), np.uint8)
    np.testing.assert_array_equal(decode(encode(rgba), channels=4), rgba)
    assert decode(odd_images()["la.png"], channels=2).shape == (HEIGHT, WIDTH, 2)
    assert decode(odd_images()["cmyk.tif"], channels=4).shape == (HEIGHT, WIDTH, 4)
    with pytest.raises(BadImage, match="3 channels: 4 are wanted"):
        decode(odd_images()["palette.png"], channels=4)


def test_a_tiff_of_many_bands_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(BadImage, match=r"openjepa\[tiff\]"):
        decode(five_band_tiff(), channels=5)


def test_a_tiff_of_many_bands() -> None:
    pytest.importorskip("tifffile")
    pixels = decode(five_band_tiff(4, 6), channels=5)
    np.testing.assert_array_equal(pixels.ravel(), np.arange(4 * 6 * 5))
    with pytest.raises(BadImage, match="5 channels"):
        decode(five_band_tiff())
    for length in (10, 60, 150, len(five_band_tiff()) - 1):
        with pytest.raises(BadImage):
            decode(five_band_tiff()[:length], channels=5)


def test_pages_and_planes_of_a_tiff_are_bands() -> None:
    tifffile = pytest.importorskip("tifffile")
    planes = np.random.default_rng(0).integers(0, 256, (5, 16, 20), np.uint8)
    for planarconfig in (None, "separate"):
        file = io.BytesIO()
        tifffile.imwrite(file, planes, photometric="minisblack", planarconfig=planarconfig)
        np.testing.assert_array_equal(decode(file.getvalue(), channels=5), planes.transpose(1, 2, 0))


def test_a_python_2_header_of_npy_is_read_without_a_warning() -> None:
    raw = npy(np.zeros((3, 4), np.uint8)).replace(b"(3, 4), ", b"(3L, 4L), ", 1)
    size = struct.unpack("<H", raw[8:10])[0]
    raw = raw[:8] + struct.pack("<H", size + 2) + raw[10:]
    assert decode(raw, channels=1).shape == (3, 4, 1)
