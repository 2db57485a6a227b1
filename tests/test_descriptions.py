"""Targets of whole images: one row a sample, whatever is read in which order, and none for images that cannot be."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from openjepa.config import Config
from openjepa.data.bad_files import BadFiles
from openjepa.data.dataset import ImageDataset, spread
from openjepa.data.loader import evaluate_batches
from openjepa.data.sources import open_source
from openjepa.descriptions import whole_targets
from openjepa.hub import model_of
from openjepa.methods import IJEPA
from openjepa.methods.whole_image import whiten
from openjepa.presets import preset
from openjepa.probes import prepare


@pytest.fixture
def dataset(tmp_path: Path) -> ImageDataset:
    """Twelve images, of which the third is broken."""
    draw = np.random.default_rng(0)
    for number in range(12):
        colours = Image.fromarray(draw.integers(0, 255, (3, 3, 3), dtype=np.uint8))
        colours.resize((40, 36)).save(tmp_path / f"{number:02}.png")
    (tmp_path / "02.png").write_bytes(b"no image")
    return ImageDataset(open_source(tmp_path), image_size=(32, 32))


def model() -> IJEPA:
    built = model_of(Config.model_validate(preset("salt")))
    assert isinstance(built, IJEPA)
    return built.eval()


def described(dataset: ImageDataset, teacher: IJEPA, samples: np.ndarray, batch_size: int) -> Tensor:
    bad = BadFiles(max_fraction=1.0)
    batches = evaluate_batches(dataset, samples, batch_size=batch_size, bad_files=bad)
    return whole_targets(teacher, batches, len(dataset))


def test_a_row_a_sample_and_none_for_bad_ones_and_those_left_out(dataset: ImageDataset) -> None:
    teacher = model()
    table = described(dataset, teacher, np.arange(12), 5)
    assert table.shape == (12, 128)
    good = [index for index in range(12) if index != 2]
    assert table[2].isnan().all()
    assert table[good].isfinite().all()
    assert teacher.teacher is not None
    with torch.no_grad():
        images = prepare(dataset.evaluation_batch(good).images, teacher)
        expected = whiten(teacher.teacher.layers(images, 4).mean(dim=2))
    torch.testing.assert_close(table[good] @ table[good].T, expected @ expected.T, rtol=1e-3, atol=1e-2)
    half = described(dataset, teacher, spread(12, 6), 5)
    assert half.isfinite().all(dim=1).sum() == len(spread(12, 6)) - (2 in spread(12, 6))
