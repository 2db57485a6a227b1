"""Fine-tuning: it learns, its layers learn at their rates, and it leaves everything else alone."""

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from openjepa.data.builtin import ArraySource
from openjepa.data.dataset import ImageDataset
from openjepa.evals.config import FinetuneConfig
from openjepa.evals.finetune import Classifier, Task, finetune
from openjepa.models.vit import VisionTransformer

pytest.importorskip("torchvision")

PLAIN: dict[str, Any] = {"mixup": 0, "cutmix": 0, "randaugment_ops": 0, "drop_path": 0, "label_smoothing": 0}


def encoder() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(
        (16, 16), (4, 4), in_channels=3, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2.0
    )


def task(*, meaningless: bool = False) -> Task:
    """Stripes that lie or stand, (48, 32); or labels of the training images that half of each kind have."""
    draw = np.random.default_rng(0)
    parts = []
    for num in (48, 32):
        labels = np.arange(num) % 2
        stripes = np.where(np.arange(16)[:, None] // 2 % 2 == 1, 220, 30) * np.ones((16, 16))
        pixels = np.stack([stripes if label else stripes.T for label in labels])[..., None] + draw.normal(
            0, 20, (num, 16, 16, 3)
        )
        source = ArraySource(
            f"stripes-{num}", pixels.clip(0, 255).astype(np.uint8), labels, ("lying", "standing"), ""
        )
        parts.append((ImageDataset(source, image_size=(16, 16)), labels))
    (train, train_labels), (test, test_labels) = parts
    if meaningless:
        train_labels = np.arange(48) // 2 % 2
    return Task(
        train=train, test=test, train_rows=np.arange(48), train_labels=train_labels, test_rows=np.arange(32),
        test_labels=test_labels, num_classes=2, mean=(0.5,) * 3, std=(0.25,) * 3,
    )  # fmt: skip


@pytest.mark.parametrize("settings", [PLAIN, {}], ids=["plain", "as in the paper"])
def test_it_learns_what_is_there(settings: dict[str, Any]) -> None:
    config = FinetuneConfig(epochs=30, batch_size=16, lr=3e-3, **settings)
    found = finetune(encoder(), task(), config, from_scratch=True)
    assert found["top1"] > 0.9
    assert (found["num_train"], found["steps"]) == (48, 90)


def test_it_is_a_function_of_its_seed_and_changes_neither_encoder_nor_random_numbers() -> None:
    config, network = FinetuneConfig(epochs=2, batch_size=16), encoder()
    before, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    said: list[str] = []
    scores = [finetune(network, task(), config, seed=seed, say=said.append) for seed in (0, 0, 1)]
    answers = [one.pop("predictions") for one in scores]
    for one in scores:
        one.pop("seconds")
    assert scores[0] == scores[1]
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(state, torch.get_rng_state())
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    losses = [text.rpartition(" ")[2] for text in said if "loss" in text]
    assert losses[0] == losses[1] != losses[2]


def test_the_deeper_a_layer_the_slower_it_learns() -> None:
    model = Classifier(encoder(), num_classes=2, drop_path=0)
    groups = model.groups(layer_decay=0.5, weight_decay=0.05)
    scale = {id(p): group["scale"] for group in groups for p in group["params"]}  # type: ignore[attr-defined]
    network = model.encoder
    assert scale[id(model.head.weight)] == scale[id(network.norm.weight)] == 1
    assert scale[id(network.blocks[1].norm1.weight)] == 0.5  # type: ignore[union-attr]
    assert scale[id(network.blocks[0].norm1.weight)] == 0.25  # type: ignore[union-attr]
    assert scale[id(network.patch_embed.proj.weight)] == 0.125
    assert scale.keys() == {id(p) for p in model.parameters()}  # each of them, once
    assert sum(len(group["params"]) for group in groups) == len(scale)  # type: ignore[arg-type]
    for group in groups:
        assert all((p.ndim > 1) == (group["weight_decay"] == 0.05) for p in group["params"])  # type: ignore[attr-defined]


def test_without_drop_path_it_is_the_encoder_and_a_linear_head() -> None:
    model = Classifier(encoder(), num_classes=3, drop_path=0.5).eval()
    images = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(model(images), model.head(model.encoder(images).mean(dim=1)))
    model.train()
    assert not torch.allclose(model(images), model(images))


def test_labels_without_relation_give_chance() -> None:
    config = FinetuneConfig(epochs=20, batch_size=16, lr=3e-3, **PLAIN)
    scores = [
        finetune(encoder(), task(meaningless=True), config, from_scratch=True, seed=seed)["top1"]
        for seed in range(4)
    ]
    assert min(scores) <= 0.5  # stripes are one or the other, and so is the answer: all right or none


def test_the_test_images_choose_nothing() -> None:
    """Whatever is tested, the same weights are trained."""
    said: list[str] = []
    config, mine = FinetuneConfig(epochs=20, batch_size=16, lr=3e-3, **PLAIN), task()
    scores = [
        finetune(encoder(), dataclasses.replace(mine, test=test, test_labels=labels), config, say=said.append)
        for test, labels in ((mine.test, mine.test_labels), (mine.train, 1 - mine.test_labels))
    ]
    losses = [text.rpartition(" ")[2] for text in said if "loss" in text]
    assert losses[0] == losses[1]
    assert scores[0]["top1"] != scores[1]["top1"]


def test_the_time_is_told_first() -> None:
    said: list[str] = []
    finetune(encoder(), task(), FinetuneConfig(epochs=4, batch_size=16), say=said.append)
    assert said[0].startswith("finetune: 12 steps of 16 images, about ")
    assert said[1].startswith("finetune: trained in ")
