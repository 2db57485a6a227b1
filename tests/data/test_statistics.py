"""What a look at a few images tells: their size, and how many channels they have before anyone decodes them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from make_images import jpeg
from openjepa.data.dataset import Batch, ImageDataset, spread
from openjepa.data.sources import open_source
from openjepa.data.statistics import Look, channel_statistics, look, shared_channels
from openjepa.errors import DataError


def grey(path: Path, side: int, mode: str = "L") -> None:
    Image.fromarray(np.full((side, side + 9), 90, np.uint8)).convert(mode).save(path)


def test_grey_images_are_of_one_channel(tmp_path: Path) -> None:
    for number, mode in enumerate(("L", "1", "LA")):
        grey(tmp_path / f"{number}.png", 40, mode)
    (tmp_path / "broken.png").write_bytes(b"")
    source = open_source(tmp_path)
    assert look(source) == Look(40, 1)
    assert look(source, channels=3) == Look(40, 3)


def test_one_in_colour_makes_all_of_three(tmp_path: Path) -> None:
    grey(tmp_path / "grey.png", 40)
    (tmp_path / "colour.jpg").write_bytes(jpeg(32, 40))
    assert look(open_source(tmp_path)).channels == 3


def test_arrays_say_their_channels() -> None:
    assert shared_channels(["uint8 × 4", "uint8 × 4"]) == 4
    assert shared_channels(["uint8 × 1"]) == 1
    assert shared_channels(["uint8 × 4", "RGB"]) == 3
    assert shared_channels(["?", "L"]) == 1
    assert shared_channels(["array"]) == shared_channels([]) == 3  # a file's header does not say


def test_nothing_to_look_at(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="none of 1 images looked at"):
        look(open_source(tmp_path))


def test_channel_statistics_are_those_of_all_pixels_but_few_images_are_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(0)
    for number in range(150):
        pixels = generator.integers(0, 256, (9, 11, 3), dtype=np.uint8)
        pixels[..., 2] = 51  # a constant channel
        Image.fromarray(pixels).save(tmp_path / f"{number:03}.png")
    dataset = ImageDataset(open_source(tmp_path), image_size=(8, 8))
    shown = dataset.evaluation_batch(spread(150, 140)).images.double() / 255
    whole, sizes = dataset.evaluation_batch, []

    def count(samples: Sequence[int]) -> Batch:
        sizes.append(len(samples))
        return whole(samples)

    monkeypatch.setattr(dataset, "evaluation_batch", count)
    mean, std = channel_statistics(dataset, num_images=140)
    torch.testing.assert_close(torch.tensor(mean).double(), shown.mean(dim=(0, 2, 3)), rtol=0, atol=6e-5)
    torch.testing.assert_close(
        torch.tensor(std[:2]).double(), shown[:, :2].std(dim=(0, 2, 3)), rtol=0, atol=6e-5
    )
    assert (mean[2], std[2]) == (0.2, 1.0)
    assert sum(sizes) == 140
    assert max(sizes) <= 64
