"""One door: a path, a file's bytes, a Pillow image, an array and a tensor of the same picture are prepared alike."""

import io
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from make_images import npy, odd_images
from openjepa.data.preprocess import Preprocess
from openjepa.data.sources import open_source
from openjepa.errors import DataError

PREPROCESS = Preprocess.imagenet((16, 16), 3)
RGB = np.random.default_rng(0).integers(0, 256, (20, 32, 3), dtype=np.uint8)
SIXTEEN = np.linspace(0, 65535, 24 * 32).reshape(24, 32).astype(np.uint16)


@pytest.mark.parametrize("name", [name for name in odd_images() if not name.endswith(".npy")])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # of Pillow, when the test opens it
def test_a_pillow_image_is_what_its_file_is(name: str, tmp_path: Path) -> None:
    raw = odd_images()[name]
    (tmp_path / name).write_bytes(raw)
    expected = PREPROCESS(tmp_path / name)
    assert torch.equal(PREPROCESS(raw), expected)
    with Image.open(io.BytesIO(raw)) as image:
        found = PREPROCESS(image)
    # JPEGs are decoded by another library from files: single levels
    assert (found - expected).abs().max() * 0.225 * 255 < 3.5


@pytest.mark.parametrize(
    ("values", "tolerance"),
    [(RGB, 0), (RGB / 255, 0), ((RGB / 255).astype(np.float32), 0), (RGB.astype(np.int64), 0),
     (RGB.astype(np.uint16) * 257, 0)],
    ids=["uint8", "float64", "float32", "int64", "uint16"],
)  # fmt: skip
def test_numbers_of_any_type_are_the_same_picture(values: np.ndarray, tolerance: float) -> None:
    expected = PREPROCESS(Image.fromarray(RGB))
    assert (PREPROCESS(values) - expected).abs().max() <= tolerance
    if values.dtype != np.uint16:
        channels_first = torch.from_numpy(values).permute(2, 0, 1)
        assert (PREPROCESS(channels_first) - expected).abs().max() <= tolerance


def test_grey_of_16_bits_in_memory() -> None:
    expected = PREPROCESS(npy(SIXTEEN))
    assert torch.equal(PREPROCESS(SIXTEEN), expected)
    assert torch.equal(PREPROCESS(Image.fromarray(SIXTEEN)), expected)


@pytest.mark.parametrize("values", [RGB / 127.5 - 1, RGB.astype(np.int16) * 20 - 1000])
def test_numbers_on_an_unknown_scale_are_refused_until_it_is_said(values: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"numbers from -\d.*value_range"):
        PREPROCESS(values)
    low, high = (-1, 1) if values.dtype.kind == "f" else (-1000, 4100)
    known = replace(PREPROCESS, value_range=(low, high))
    assert torch.equal(known(values), PREPROCESS(Image.fromarray(RGB)))


@pytest.mark.parametrize(
    "values", [np.zeros((4, 4, 2)), np.zeros((4,)), np.full((4, 4), np.nan), np.zeros((4, 4), "c8")]
)
def test_what_is_no_picture_is_refused(values: np.ndarray) -> None:
    with pytest.raises(DataError, match="can't be used as an image"):
        PREPROCESS(values)


def test_facts_come_back() -> None:
    known = replace(PREPROCESS, value_range=(0.0, 4095.0))
    assert Preprocess.of_facts(json.loads(json.dumps(asdict(known)))) == known
    earlier = {name: value for name, value in asdict(PREPROCESS).items() if name != "value_range"}
    assert Preprocess.of_facts(earlier) == PREPROCESS


def test_a_data_set_without_a_known_scale_gets_one(tmp_path: Path) -> None:
    for number, top in enumerate((0.2, 0.9, 1.1)):
        (tmp_path / f"{number}.npy").write_bytes(npy(RGB / 255 * top))
    assert PREPROCESS.on(open_source(tmp_path)).value_range == (0, 1)
    assert replace(PREPROCESS, value_range=(0, 3)).on(open_source(tmp_path)).value_range == (0, 3)
