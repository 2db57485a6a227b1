"""A linear probe on features that transformers computes from our weights finds what it finds on ours."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from openjepa.data.builtin import ArraySource
from openjepa.data.dataset import ImageDataset
from openjepa.evals.run import evaluate
from openjepa.formats.huggingface import huggingface_config, to_huggingface
from openjepa.models.vit import VisionTransformer

transformers = pytest.importorskip("transformers")


def images(num: int, *, seed: int) -> ImageDataset:
    """Five classes, each a wave of its own direction under much noise."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 5, num)
    rows, columns = np.mgrid[:32, :32]
    angles = labels * np.pi / 5
    phase = draw.uniform(0, 6, num)
    waves = np.sin(
        (rows * np.sin(angles)[:, None, None] + columns * np.cos(angles)[:, None, None]) / 2
        + phase[:, None, None]
    )
    pixels = 128 + 70 * waves[..., None] + draw.normal(0, 30, (num, 32, 32, 3))
    source = ArraySource(f"waves-{seed}", pixels.clip(0, 255).astype(np.uint8), labels, tuple("abcde"), "")
    return ImageDataset(source, image_size=(32, 32))


def test_accuracies_are_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = VisionTransformer((32, 32), (8, 8), embed_dim=32, depth=2, num_heads=2, mlp_ratio=2.0).eval()
    for parameter in encoder.parameters():  # as if trained: no part may be without effect
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    (tmp_path / "config.json").write_text(json.dumps(huggingface_config(encoder)))
    save_file(to_huggingface(encoder.state_dict()), tmp_path / "model.safetensors", metadata={"format": "pt"})
    transformers.logging.disable_progress_bar()
    theirs = transformers.IJepaModel.from_pretrained(tmp_path).eval()

    def by_transformers(pictures: Tensor) -> Tensor:
        hidden: Tensor = theirs(pixel_values=pictures).last_hidden_state
        return hidden

    train, test = images(1000, seed=1), images(1000, seed=2)
    scores = [
        evaluate(
            encode,
            train=train,
            test=test,
            mean=(0.5,) * 3,
            std=(0.25,) * 3,
            protocols=["linear", "knn", "logistic"],
        )["protocols"]
        for encode in (encoder, by_transformers)
    ]
    for protocol, found in scores[0].items():
        assert found["top1"] > 0.3
        assert scores[1][protocol]["top1"] == pytest.approx(found["top1"], abs=0.002), protocol
