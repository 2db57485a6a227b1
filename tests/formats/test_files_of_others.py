"""Encoders as others save them: read rightly, or refused in words; never read as something else."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import openjepa
from openjepa.apps.export import _to_reference
from openjepa.errors import CheckpointError, UserError
from openjepa.formats.reference import write_reference
from openjepa.methods.ijepa import IJEPA, build_ijepa
from openjepa.models.architecture import Architecture

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
         "image_size": 32, "patch_size": 8, "layer_norm_eps": 1e-6}  # fmt: skip
ARGUMENTS = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 4, "class_token": False,
             "global_pool": "avg", "num_classes": 0, "fc_norm": False}  # fmt: skip


def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def theirs(folder: Path, **options: Any) -> Tensor:
    """A folder that transformers wrote, and what its model says of `images`."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.IJepaConfig(**SIZES | options.pop("config", {}))
    model = transformers.IJepaModel(config, add_pooling_layer=False).eval()
    model.save_pretrained(folder, **options)
    with torch.no_grad():
        return model(images()).last_hidden_state


def test_weights_in_parts(tmp_path: Path) -> None:
    expected = theirs(tmp_path, max_shard_size="100KB")
    assert not (tmp_path / "model.safetensors").exists()
    with torch.no_grad():
        found = openjepa.load(tmp_path).target_encoder(images())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    next(tmp_path.glob("model-00002-*")).unlink()
    with pytest.raises(CheckpointError, match="no such file"):
        openjepa.load(tmp_path)


@pytest.mark.parametrize("weights", ["../elsewhere.safetensors", 3])
def test_an_index_that_leads_elsewhere_is_refused(weights: object, tmp_path: Path) -> None:
    theirs(tmp_path, max_shard_size="100KB")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": weights}}))
    with pytest.raises(CheckpointError, match="names no parts"):
        openjepa.load(tmp_path)


def test_another_epsilon_is_refused(tmp_path: Path) -> None:
    theirs(tmp_path, config={"layer_norm_eps": 1e-2})
    with pytest.raises(CheckpointError, match=r"layer_norm_eps is 0\.01; this encoder has 1e-6"):
        openjepa.load(tmp_path)


def test_a_pickle_alone_is_refused_with_the_way_out(tmp_path: Path) -> None:
    theirs(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: not read.*save_pretrained"):
        openjepa.load(tmp_path)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"act_layer": "relu"}, r"act_layer='relu'; this encoder has 'gelu'"),
        ({"act_layer": "quick_gelu"}, r"act_layer='quick_gelu'"),
        ({"fc_norm": True}, r"fc_norm=True; this encoder has False"),
        ({"qkv_bias": False}, r"qkv_bias=False; this encoder has True"),
        ({"reg_tokens": 4}, r"reg_tokens=4"),
    ],
)
def test_a_network_of_timm_that_is_not_ours(more: dict[str, Any], words: str, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    arguments = ARGUMENTS | more
    network = timm.create_model("vit_small_patch16_224", **arguments)
    timm.models.save_for_hf(network, str(tmp_path), model_args=arguments, safe_serialization=True)
    with pytest.raises(CheckpointError, match=words):
        openjepa.load(tmp_path)


def small(image_size: tuple[int, int] = (32, 32)) -> IJEPA:
    shape = Architecture(image_size, (8, 8), 3, 16, 1, 2, 2.0, 8, 1, 2)
    model = build_ijepa(shape)
    return model.eval()


def _prefixed(prefix: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def change(content: dict[str, Any]) -> dict[str, Any]:
        parts = {part: content[part] for part in ("encoder", "target_encoder", "predictor")}
        return content | {
            part: {prefix + name.removeprefix("module."): tensor for name, tensor in tensors.items()}
            for part, tensors in parts.items()
        }

    return change


@pytest.mark.parametrize(
    "change",
    [
        _prefixed(""),
        _prefixed("_orig_mod."),
        _prefixed("module._orig_mod."),
        _prefixed("_orig_mod.module."),
        lambda content: content | {"loss": np.float64(0.1), "lr": np.float32(1e-3)},
    ],
    ids=["no prefix", "compiled", "compiled under DDP", "DDP compiled", "numbers of NumPy"],
)
def test_the_authors_file_as_people_pass_it_on(
    change: Callable[[dict[str, Any]], dict[str, Any]], tmp_path: Path
) -> None:
    model, path = small(), tmp_path / "model.pth.tar"
    write_reference(path, model.state_dict())
    torch.save(change(torch.load(path, weights_only=True)), path)
    found = openjepa.load(path, num_heads=2)
    for name, tensor in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name


def test_a_grid_that_is_not_square_has_no_authors_file(tmp_path: Path) -> None:
    """A grid of 4 × 9 has as many patches as one of 6 × 6."""
    with pytest.raises(UserError, match=r"4 × 9 patches.*Use --to timm or onnx"):
        _to_reference(small((32, 72)), tmp_path, "run")
    assert not list(tmp_path.iterdir())
