"""Whole-image targets: of the whole image of each crop, described once, whatever was asked before."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from openjepa.config import Config
from openjepa.data.dataset import ImageDataset
from openjepa.data.loader import Loader
from openjepa.data.sources import open_source
from openjepa.descriptions import Descriptions
from openjepa.hub import model_of
from openjepa.inputs import prepare
from openjepa.methods import IJEPA
from openjepa.methods.whole_image import describe, whitening
from openjepa.presets import preset

NUM, BROKEN = 100, 2


@pytest.fixture
def loader(tmp_path: Path) -> Loader:
    """A hundred images, of which the third is broken."""
    draw = np.random.default_rng(0)
    for number in range(NUM):
        colours = Image.fromarray(draw.integers(0, 255, (3, 3, 3), dtype=np.uint8))
        colours.resize((40, 36)).save(tmp_path / f"{number:02}.png")
    (tmp_path / f"{BROKEN:02}.png").write_bytes(b"no image")
    return Loader(ImageDataset(open_source(tmp_path), image_size=(32, 32)), batch_size=16, seed=0)


@pytest.fixture
def model() -> IJEPA:
    built = model_of(Config.model_validate(preset("salt")))
    assert isinstance(built, IJEPA)
    return built.eval()


def said(model: IJEPA, loader: Loader, samples: list[int]) -> torch.Tensor:
    assert model.teacher is not None
    with torch.no_grad():
        images = prepare(loader.dataset.evaluation_batch(samples).images, model)
        return describe(model.teacher.layers(images, 4))


def test_targets_are_those_of_the_whole_image_and_of_the_crop_where_that_cannot_be_read(
    loader: Loader, model: IJEPA
) -> None:
    descriptions = Descriptions(model, loader)
    descriptions.fit()
    assert model.whole_image is not None
    crops = torch.randn(4, model.whole_image.basis.shape[1])
    found = descriptions.of(np.array([5, BROKEN, 99, 5]), crops)
    expected = model.whole_image.targets(said(model, loader, [5, 99, 5]))
    torch.testing.assert_close(found[[0, 2, 3]], expected, rtol=2e-3, atol=2e-3)
    assert torch.equal(found[1], crops[1])


def test_whitening_is_fitted_to_all_images_that_can_be_read(loader: Loader, model: IJEPA) -> None:
    Descriptions(model, loader).fit()
    assert model.whole_image is not None
    readable = said(model, loader, [index for index in range(NUM) if index != BROKEN])
    mean, basis = whitening(readable)
    expected, found = (readable.flatten(1) - mean) @ basis, model.whole_image.targets(readable)
    torch.testing.assert_close(found @ found.T, expected @ expected.T, rtol=1e-3, atol=5e-2)
    assert found.square().mean().item() == pytest.approx(1.0, rel=1e-3)


def test_each_image_is_described_once_and_the_same_whatever_was_asked_before(
    loader: Loader, model: IJEPA, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Descriptions(model, loader)
    whole.fit()
    crops = torch.zeros(16, 128)
    expected = [whole.of(loader.batch(step).samples, crops) for step in range(12)]
    seen: list[int] = []
    batches = loader.dataset.evaluation_batch
    monkeypatch.setattr(
        loader.dataset, "evaluation_batch", lambda samples: (seen.extend(samples), batches(samples))[1]
    )
    for step in range(12):
        whole.of(loader.batch(step).samples, crops)
    assert not seen
    resumed = Descriptions(model, loader)  # the model has its whitening already
    resumed.fit()
    for step in (11, 3, 7):  # of the second epoch and of the first
        assert torch.equal(resumed.of(loader.batch(step).samples, crops), expected[step])
    assert len(seen) == len(set(seen))


def test_a_single_image_has_nothing_to_be_told_apart_from(tmp_path: Path, model: IJEPA) -> None:
    Image.new("RGB", (40, 36), (9, 99, 199)).save(tmp_path / "alone.png")
    alone = Loader(ImageDataset(open_source(tmp_path), image_size=(32, 32)), batch_size=1, seed=0)
    Descriptions(model, alone).fit()
    assert model.whole_image is not None
    assert not model.whole_image.fitted


def test_a_new_teacher_is_asked_anew(loader: Loader, model: IJEPA) -> None:
    descriptions, crops = Descriptions(model, loader), torch.zeros(2, 128)
    descriptions.fit()
    before = descriptions.of(np.array([0, 1]), crops)
    assert model.whole_image is not None
    basis = model.whole_image.basis.clone()
    with torch.no_grad():
        for parameter in model.target_encoder.parameters():
            parameter.mul_(1.5)
    model.renew_teacher()
    descriptions.fit(anew=True)
    assert not torch.equal(model.whole_image.basis, basis)
    assert not torch.equal(descriptions.of(np.array([0, 1]), crops), before)
