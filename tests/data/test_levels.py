"""One scale for a data set: what is black and white follows from file, type or the whole set, not from an image."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from make_images import npy
from openjepa.config import DataConfig
from openjepa.data.bad_files import BadImage
from openjepa.data.dataset import ImageDataset
from openjepa.data.decode import decode
from openjepa.data.levels import Bands, scale_of, shared_scale, to_uint8
from openjepa.data.sources import open_source
from openjepa.data.statistics import shared_value_range

RAMP = np.linspace(0, 1, 64 * 64).reshape(64, 64)


@pytest.mark.parametrize(("extreme", "mean"), [(1.02, 127.5), (1.4, 127.5), (-0.05, 127.5)])
def test_one_pixel_beyond_the_scale_changes_no_other(extreme: float, mean: float) -> None:
    values = RAMP.copy()
    values[-1, -1] = extreme
    levels = to_uint8(values)
    assert levels.mean() == pytest.approx(mean, abs=0.5)
    assert levels[-1, -1] == (255 if extreme > 0 else 0)


def test_sixteen_bits_of_a_pgm_are_sixteen_bits_however_dark() -> None:
    dark = (RAMP * 250).astype(">u2")
    raw = b"P5 64 64 65535\n" + dark.tobytes()
    assert decode(raw, channels=1).max() == 1
    assert decode(b"P5 64 64 4095\n" + (RAMP * 4095).astype(">u2").tobytes(), channels=1).max() == 255


@pytest.mark.parametrize(
    ("low", "high", "floating", "expected"),
    [
        (0, 1, True, (0, 1)),
        (-0.05, 1.3, True, (0, 1)),
        (0, 200, True, (0, 255)),
        (-2.1, 2.6, True, None),
        (0, 3000, True, None),
        (0, 1, False, (0, 255)),
        (0, 300, False, (0, 255)),
        (0, 40_000, False, (0, 65535)),
        (-1024, 3071, False, None),
    ],
)
def test_the_usual_scales(
    low: float, high: float, floating: bool, expected: tuple[float, float] | None
) -> None:
    assert scale_of(low, high, floating=floating) == expected


def test_of_many_images_the_number_of_bits_is_told() -> None:
    assert shared_scale([(0, 90), (3, 3900)], floating=False) == (0, 4095)
    assert shared_scale([(-1000, 400), (-900, 1200)], floating=False) == (-1000, 1200)
    assert shared_scale([(0, 0.3), (0, 1.1)], floating=True) == (0, 1)


def _folder(place: Path, images: list[NDArray[np.generic]]) -> Path:
    place.mkdir()
    for number, values in enumerate(images):
        (place / f"{number}.npy").write_bytes(npy(values))
    return place


def test_ct_numbers_share_a_scale(tmp_path: Path) -> None:
    """Air alone and bone alone: each image stretched by itself would look the same."""
    air, bone = (
        np.linspace(*ends, 400).astype(np.int16).reshape(20, 20) for ends in ((-1000, -900), (300, 1900))
    )
    source = open_source(_folder(tmp_path / "ct", [air, bone]))
    low, high = shared_value_range(source, channels=1) or (0, 0)
    assert (low, high) == (pytest.approx(-1000, abs=1), pytest.approx(1899, abs=2))
    dataset = ImageDataset(source, image_size=(20, 20), channels=1, value_range=(low, high))
    dark, bright = dataset.evaluation_batch([0, 1]).images
    assert dark.max() < 10 < 100 < bright.min()


def test_types_and_files_that_say_it_need_no_scale(tmp_path: Path) -> None:
    images = [(RAMP * 255).astype(np.uint8), (RAMP * 4095).astype(np.uint16), RAMP > 0.5]
    source = open_source(_folder(tmp_path / "plain", images))  # type: ignore[arg-type]
    assert shared_value_range(source, channels=1) is None


def test_a_scale_that_is_given_is_for_more_than_8_bits() -> None:
    twelve = npy((RAMP * 4095).astype(np.uint16))
    assert decode(twelve, channels=1).max() == 16
    assert decode(twelve, channels=1, value_range=(0, 4095)).max() == 255
    eight = npy((RAMP * 200).astype(np.uint8))
    assert decode(eight, channels=1, value_range=(0, 4095)).max() == 200
    window = decode(npy(np.array([[-500, 0, 40, 80, 900]], np.int16)), channels=1, value_range=(0, 80))
    assert window.ravel().tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize("given", [(5, 5), (9, 1), (0, float("inf"))])
def test_a_scale_must_rise(given: tuple[float, float]) -> None:
    with pytest.raises(ValidationError, match="black must be less than white"):
        DataConfig(value_range=given)


def test_bands_that_nothing_is_known_of_are_not_a_picture() -> None:
    with pytest.raises(BadImage, match="2 channels: 3 are wanted"):
        Bands(np.zeros((4, 4, 2))).pixels(3)
    faint = Bands(np.array([[[255, 0], [255, 255]]], np.uint8), colour="grey", alpha="straight")
    assert faint.pixels(1).ravel().tolist() == [128, 255]


def test_channels_first_is_told_from_a_number_of_bands() -> None:
    with pytest.raises(BadImage, match=r"30 channels: 3 are wanted; arrays are \(height, width, channels\)"):
        decode(npy(np.zeros((3, 20, 30), np.uint8)))
    with pytest.raises(BadImage, match=r"5 channels: 3 are wanted; set --channels 5"):
        decode(npy(np.zeros((20, 30, 5), np.uint8)))


def test_opacity_is_neither_inverted_nor_scaled_as_the_picture_is() -> None:
    values = np.array([[[0, 0], [0, 65535], [4095, 65535], [4095, 32768]]], np.uint16)
    white = Bands(values, inverted=True, colour="grey", alpha="straight")
    assert white.pixels(1, (0, 4095)).ravel().tolist() == [128, 255, 0, 64]
