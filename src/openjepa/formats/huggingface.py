"""Hugging Face transformers' `IJepaModel`: folders that it reads and that we read back, and the names of its tensors.

    config.json · model.safetensors · preprocessor_config.json     # theirs
    predictor.safetensors · openjepa.json · README.md              # beside them: what has no home there

`openjepa.json` says which encoder the folder holds, how the model was trained and the SHA-256 of the files. The names
of tensors are those that the files keep; in memory, versions of transformers call them differently.
"""

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openjepa.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess, imagenet_statistics
from openjepa.errors import CheckpointError, UserError
from openjepa.formats.exported import (
    CONFIG,
    WEIGHTS,
    Exported,
    likely_size,
    load_tensors,
    load_weights_of,
    read_json,
    save_tensors,
)
from openjepa.models.architecture import Architecture
from openjepa.models.transformer import LAYER_NORM_EPS
from openjepa.models.vit import VisionTransformer

_log = logging.getLogger(__name__)
PREPROCESSOR, PREDICTOR, FACTS, CARD = (
    "preprocessor_config.json",
    "predictor.safetensors",
    "openjepa.json",
    "README.md",
)
SCHEMA = 1

# Ours -> theirs: each a whole part of a dotted name.
_NAMES = {
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_OURS = {theirs: ours for ours, theirs in _NAMES.items()}
_POSITIONS = "embeddings.position_embeddings"
_BLOCK, _LAYER = re.compile(r"blocks\.(\d+)\."), re.compile(r"encoder\.layer\.(\d+)\.")
_PARTS = ("query", "key", "value")
_QKV = re.compile(r"attention\.attention\.(query|key|value)")
_FILTERS = {"bilinear": 2, "bicubic": 3}  # Pillow's numbers


def to_huggingface(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an encoder under the names of `IJepaModel`'s files.

    Args:
        state: The encoder's ``state_dict()``.
    """
    theirs: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name == "pos_embed":
            theirs[_POSITIONS] = tensor
            continue
        module, _, kind = _BLOCK.sub("", name).rpartition(".")
        block = f"encoder.layer.{match[1]}." if (match := _BLOCK.match(name)) else ""
        if module == "attn.qkv":  # (3D, …): rows of queries, keys, values
            for part, rows in zip(_PARTS, tensor.chunk(3), strict=True):
                theirs[f"{block}attention.attention.{part}.{kind}"] = rows.contiguous()
        else:
            theirs[f"{block}{_NAMES[module]}.{kind}"] = tensor
    return theirs


def from_huggingface(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An encoder's tensors under our names; names that are not theirs are kept, for whoever compares.

    Args:
        state: What `model.safetensors` holds, of `IJepaModel` or of `IJepaForImageClassification`.
    """
    ours: dict[str, Tensor] = {}
    for full, tensor in state.items():
        name = full.removeprefix("ijepa.")
        if name == _POSITIONS:
            ours["pos_embed"] = tensor
            continue
        if name.startswith("classifier."):
            continue
        module, _, kind = _LAYER.sub("", name).rpartition(".")
        block = f"blocks.{match[1]}." if (match := _LAYER.match(name)) else ""
        if part := _QKV.fullmatch(module):
            if part[1] == "query":
                rows = [state.get(full.replace(".query.", f".{other}.")) for other in _PARTS]
                if all(row is not None for row in rows):
                    ours[f"{block}attn.qkv.{kind}"] = torch.cat([row for row in rows if row is not None])
        else:
            ours[f"{block}{_OURS.get(module, module)}.{kind}"] = tensor
    return ours


def huggingface_config(encoder: VisionTransformer) -> dict[str, Any]:
    """What `config.json` says of an encoder.

    The LayerNorms' epsilon is not the default of transformers: without it, features differ.

    Raises:
        UserError: Images or patches that are not square.
    """
    projection = encoder.patch_embed.proj.weight  # (D, c, h, w)
    (rows, columns), (height, width) = encoder.grid, encoder.patch_embed.patch_size
    if (rows, height) != (columns, width):
        raise UserError(
            f"--to hf: images of {rows * height} × {columns * width} px in patches of {height} × {width}; IJepaModel "
            "takes square images and patches alone: use --to timm or --to onnx"
        )
    block: Any = encoder.blocks[0]
    return {
        "architectures": ["IJepaModel"],
        "model_type": "ijepa",
        "hidden_size": encoder.embed_dim,
        "num_hidden_layers": len(encoder.blocks),
        "num_attention_heads": encoder.num_heads,
        "intermediate_size": block.mlp.fc1.out_features,
        "hidden_act": "gelu",
        "layer_norm_eps": LAYER_NORM_EPS,
        "image_size": rows * height,
        "patch_size": height,
        "num_channels": projection.shape[1],
        "qkv_bias": True,
    }


def preprocessor_config(preprocess: Preprocess) -> dict[str, Any]:
    """What `preprocessor_config.json` says: shorter side resized, centre cut out, normalised."""
    height, width = preprocess.image_size
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": preprocess.channels == 3,
        "do_resize": True,
        "size": {"shortest_edge": min(height, width)},
        "resample": _FILTERS[preprocess.interpolation],
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }


def write_huggingface(
    folder: Path,
    model: Exported,
    config: Mapping[str, Any],
    *,
    head: tuple[Tensor, Tensor] | None = None,
    classes: Sequence[str] = (),
    card: str = "",
) -> None:
    """Write all files of a model.

    Args:
        folder: An empty folder.
        model: What to write.
        config: `huggingface_config` of its encoder.
        head: Weight (K, D) and bias (K,) of a linear classifier of the mean over patches; the folder is then one of
            `IJepaForImageClassification`.
        classes: K names.
        card: Text of the model card.
    """
    tensors, config = to_huggingface(model.encoder), dict(config)
    if head is not None:
        tensors = {f"ijepa.{name}": tensor for name, tensor in tensors.items()}
        tensors |= {"classifier.weight": head[0], "classifier.bias": head[1]}
        config["architectures"] = ["IJepaForImageClassification"]
        config["id2label"] = {str(place): name for place, name in enumerate(classes)}
        config["label2id"] = {name: place for place, name in enumerate(classes)}
    save_tensors(tensors, folder / WEIGHTS)
    if model.predictor:
        save_tensors(model.predictor, folder / PREDICTOR)
    _write(folder / CONFIG, config)
    _write(folder / PREPROCESSOR, preprocessor_config(model.preprocess))
    if card:
        (folder / CARD).write_text(card, encoding="utf-8")
    kept = [name for name in (WEIGHTS, PREDICTOR) if (folder / name).exists()]
    facts = {
        "schema": SCHEMA,
        "encoder": model.which,
        "loss": model.loss,
        "target_norm": model.target_norm,
        "architecture": model.architecture.as_dict(),
        "preprocess": asdict(model.preprocess),
        "sha256": {name: _digest(folder / name) for name in kept},
    }
    _write(folder / FACTS, facts)


def is_huggingface(folder: Path) -> bool:
    """Whether a folder is of a model that transformers knows."""
    return (folder / CONFIG).is_file() and "model_type" in read_json(folder / CONFIG)


_MOST_EPS = 1e-5  # of LayerNorm: up to it, features are those of 1e-6 but for their last digits


def read_huggingface(folder: Path, *, num_heads: int | None = None) -> Exported:
    """Read a folder that `write_huggingface` or transformers wrote.

    Args:
        folder: The folder.
        num_heads: What the caller believes; must be what the folder says.

    Raises:
        CheckpointError: It is no `IJepaModel`, something is missing or damaged, or the heads are others.
    """
    config = read_json(folder / CONFIG)
    _check(config, folder, num_heads)
    facts = read_json(folder / FACTS) if (folder / FACTS).exists() else {}
    for name, digest in facts.get("sha256", {}).items():
        if not (folder / name).is_file() or _digest(folder / name) != digest:
            raise CheckpointError(
                f"{folder / name}: missing, or not as it was written (its SHA-256 is in {FACTS}): export or fetch anew"
            )
    encoder = from_huggingface(load_weights_of(folder))
    predictor = load_tensors(folder / PREDICTOR) if (folder / PREDICTOR).exists() else {}
    architecture = _architecture(config, facts.get("architecture", {}))
    return Exported(
        architecture=architecture, encoder=encoder, predictor=predictor,
        preprocess=_preprocess(folder, facts, architecture), which=facts.get("encoder"),
        loss=facts.get("loss", "smooth_l1"), target_norm=facts.get("target_norm", "layer"),
    )  # fmt: skip


def _check(config: Mapping[str, Any], folder: Path, num_heads: int | None) -> None:
    where = folder / CONFIG
    if config.get("model_type") != "ijepa":
        raise CheckpointError(
            f"{where}: model_type is {config.get('model_type')!r}; only 'ijepa' can be read"
        )
    for key, value in (("hidden_act", "gelu"), ("qkv_bias", True)):
        if config.get(key, value) != value:
            raise CheckpointError(
                f"{where}: {key} is {config[key]!r}; this encoder has {value!r}, and no other"
            )
    if config.get("layer_norm_eps", 1e-12) > _MOST_EPS:
        raise CheckpointError(
            f"{where}: layer_norm_eps is {config['layer_norm_eps']}; this encoder has 1e-6, another number"
        )
    heads = config.get("num_attention_heads", 12)
    if num_heads is not None and num_heads != heads:
        raise CheckpointError(f"{where}: recorded with {heads} heads, --num-heads says {num_heads}")


def _architecture(config: Mapping[str, Any], ours: Mapping[str, Any]) -> Architecture:
    """From the configuration of transformers (its defaults where it is silent); the predictor's part is ours."""
    width, depth = config.get("hidden_size", 768), config.get("num_hidden_layers", 12)
    heads = config.get("num_attention_heads", 12)
    size, patch = _pair(config.get("image_size", 224)), _pair(config.get("patch_size", 16))
    alike = likely_size(width, depth)
    return Architecture(
        image_size=size,
        patch_size=patch,
        in_channels=config.get("num_channels", 3),
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        mlp_ratio=config.get("intermediate_size", 3072) / width,
        predictor_dim=ours.get("predictor_dim", alike.predictor_dim),
        predictor_depth=ours.get("predictor_depth", alike.predictor_depth),
        predictor_heads=ours.get("predictor_heads", alike.num_heads),
        shared_context=ours.get("shared_context", False),
    )


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _preprocess(folder: Path, facts: Mapping[str, Any], architecture: Architecture) -> Preprocess:
    """As `openjepa.json` says; else as the preprocessor of transformers says, but for a known mistake.

    The hub's conversions of the authors' models say mean and std 0.5; they were trained with ImageNet's.
    """
    channels = architecture.in_channels
    if known := facts.get("preprocess"):
        return Preprocess.of_facts(known)
    mean, std = imagenet_statistics(channels)
    told = read_json(folder / PREPROCESSOR) if (folder / PREPROCESSOR).exists() else {}
    said = [tuple(told.get(key, ())) for key in ("image_mean", "image_std")]
    if all(len(values) == channels for values in said) and said != [(0.5,) * channels] * 2:
        mean, std = said
    else:
        _log.warning("%s: images are normalised by ImageNet's mean %s and std %s, as the authors' were", folder,
                     IMAGENET_MEAN, IMAGENET_STD)  # fmt: skip
    filters = {number: name for name, number in _FILTERS.items()}
    filter_name = filters.get(told.get("resample", 2), "bilinear")
    return Preprocess(architecture.image_size, channels, mean, std, filter_name)  # type: ignore[arg-type]


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
