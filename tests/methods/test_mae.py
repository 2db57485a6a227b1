"""The masked autoencoder: its targets are pixels, its loss that of its authors, it has one encoder, and it learns."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import openjepa
from make_images import jpeg
from openjepa.masks import make_masks
from openjepa.methods import MAE, build
from openjepa.models.architecture import Architecture

SHAPE = Architecture((16, 24), (4, 8), 3, 16, 2, 2, 2.0, 8, 1, 2)


@pytest.fixture
def model() -> MAE:
    made = build("mae", SHAPE, loss="mse", target_norm="layer", seed=3)
    assert isinstance(made, MAE)
    return made


def test_targets_are_the_pixels_of_each_patch(model: MAE) -> None:
    images = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    pixels = model.raw_targets(images)
    assert pixels.shape == (2, 12, 3 * 4 * 8)
    assert torch.equal(pixels[1, 7].view(3, 4, 8), images[1, :, 8:12, 8:16])  # row 2, column 1 of 4 × 3


def test_the_loss_is_the_squared_error_of_normalised_pixels(model: MAE) -> None:
    images = torch.rand(3, 3, 16, 24, generator=torch.Generator().manual_seed(1))
    sampler = make_masks("random", grid=SHAPE.grid, target_fraction=0.75)
    masks = sampler(seed=0, step=0, epochs=np.zeros(3, np.int64), samples=np.arange(3))
    assert masks.context.shape == (3, 1, 3)
    assert masks.target.shape == (3, 1, 9)
    out = model(images, masks)
    total = 0.0
    for image, index, guesses in zip(images, masks.target[:, 0], out.predictions[:, 0, 0], strict=True):
        for place, guess in zip(index.tolist(), guesses, strict=True):
            row, column = divmod(place, 3)
            patch = image[:, 4 * row : 4 * row + 4, 8 * column : 8 * column + 8].flatten()
            normal = (patch - patch.mean()) / (patch.var(correction=0) + 1e-5).sqrt()
            total += ((guess - normal) ** 2).mean().item()
    assert out.loss.item() == pytest.approx(total / 27, rel=1e-4)


def test_there_is_one_encoder(model: MAE) -> None:
    assert model.target_encoder is model.context_encoder
    assert {name.split(".")[0] for name in model.state_dict()} == {"context_encoder", "predictor"}
    before = model.context_encoder.blocks[0].mlp.fc1.weight.clone()
    model.update_target(0.0)
    assert torch.equal(before, model.context_encoder.blocks[0].mlp.fc1.weight)


def test_a_run_learns_and_is_evaluated_like_any_other(tmp_path: Path) -> None:
    for name in ("red", "blue"):
        (tmp_path / name).mkdir()
        for number in range(8):
            (tmp_path / name / f"{number}.jpg").write_bytes(jpeg(32, 32 + number))
    run = openjepa.pretrain(
        data=tmp_path, out=tmp_path / "run", method="mae", preset="small", steps=40,
        set=["model.name=vit_pico", "data.batch_size=8", "log.every_steps=1", "log.tensorboard=false"],
    )  # fmt: skip
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["context_patches"] == 16
    assert rows[0]["target_patches"] == 48
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    model = openjepa.load(run)
    assert isinstance(model, MAE)
    result = openjepa.evaluate(run, train=tmp_path, test=tmp_path, protocols=["knn"], baselines=True)
    assert 0 <= result["protocols"]["knn"]["top1"] <= 1
