"""What a teacher says about a sample of whole images: whatever is read in which order, without those that cannot be."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from openjepa.config import Config
from openjepa.data.bad_files import BadFiles
from openjepa.data.dataset import ImageDataset
from openjepa.data.loader import evaluate_batches
from openjepa.data.sources import open_source
from openjepa.descriptions import fit_whitening
from openjepa.hub import model_of
from openjepa.methods import IJEPA
from openjepa.methods.whole_image import whitening
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


def test_whitening_is_fitted_to_what_the_teacher_says_of_those_that_can_be_read(
    dataset: ImageDataset,
) -> None:
    student = model()
    assert student.whole_image is not None
    assert student.teacher is not None
    batches = evaluate_batches(dataset, np.arange(12), batch_size=5, bad_files=BadFiles(max_fraction=1.0))
    fit_whitening(student, batches)
    good = [index for index in range(12) if index != 2]
    with torch.no_grad():
        images = prepare(dataset.evaluation_batch(good).images, student)
        layers = student.teacher.layers(images, 4)
        mean, basis = whitening(layers.mean(dim=2))
        expected = (layers.mean(dim=2).flatten(1) - mean) @ basis
        found = student.whole_image.targets(layers)
    torch.testing.assert_close(found @ found.T, expected @ expected.T, rtol=1e-3, atol=1e-2)
    assert found.square().mean().item() == pytest.approx(1.0, rel=1e-3)
