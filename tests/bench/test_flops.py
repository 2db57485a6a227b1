"""How much arithmetic pretraining is: the formula beside what PyTorch counts of a real step."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from openjepa.bench.flops import description_flops, image_flops, pretraining_flops
from openjepa.config import Config
from openjepa.hub import model_of
from openjepa.masks import make_masks
from openjepa.models.architecture import architecture_of
from openjepa.settings import load_config


def config(*changes: str) -> Config:
    return load_config({}, overrides=["data.image_size=32", "model.name=vit_nano", *changes])


@pytest.mark.parametrize(
    "changes",
    [
        ["masks.name=multiblock"],
        ["masks.name=multiblock", "model.shared_context=true"],
        ["method=mae", "masks.name=random", "masks.target_fraction=0.75"],
        ["model.embed_dim=64", "model.mlp_ratio=2", "masks.name=random"],
    ],
)
def test_the_formula_is_what_pytorch_counts(changes: Sequence[str]) -> None:
    settings = config(*changes)
    sampler = make_masks(
        settings.masks.name, grid=architecture_of(settings).grid, **settings.masks.settings()
    )
    zeros = np.zeros(2, np.int64)
    masks = sampler(seed=0, step=0, epochs=zeros, samples=zeros)
    model = model_of(settings)
    with (
        FlopCounterMode(display=False) as counted,
        sdpa_kernel(SDPBackend.MATH),
    ):  # it knows no fused one on CPUs
        model(torch.zeros(2, 3, 32, 32), masks).loss.backward()
    found = image_flops(
        settings, context_patches=masks.context.shape[2], target_patches=masks.target.shape[2]
    )
    # The predictor's last block computes less than a whole one, and the first layers no gradient of their input.
    assert counted.get_total_flops() / 2 == pytest.approx(found, rel=0.1)
    assert counted.get_total_flops() / 2 < found


def test_a_run_is_its_images_and_what_its_teacher_describes() -> None:
    settings = config("masks.name=random", "masks.target_fraction=0.75")
    rows = [
        {"images": 640, "context_patches": 16, "target_patches": 48},
        {"images": 1280, "context_patches": 16, "target_patches": 32},
    ]
    each = [image_flops(settings, context_patches=16, target_patches=tokens) for tokens in (48, 32)]
    assert pretraining_flops(settings, rows, num_images=100) == pytest.approx(1280 * sum(each) / 2)
    assert description_flops(settings, num_images=100, crops=1000) == 0
    salt = config("masks.name=random", "objective.whole_weight=2", "ema.generations=2", "init_from=x")
    forward = 4 * (24 * 64 * 128**2 + 4 * 64**2 * 128) + 2 * 64 * 48 * 128
    for num_images, crops, described in ((100, 1000, 100), (10**7, 10**4, 5000), (10**7, 1000, 2048)):
        found = description_flops(salt, num_images=num_images, crops=crops)
        assert found == pytest.approx(2 * described * forward)
