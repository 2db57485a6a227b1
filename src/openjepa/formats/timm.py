"""Folders of timm, `config.json` and `model.safetensors`: our encoder as its VisionTransformer, and back.

`timm.create_model("local-dir:FOLDER")` opens what is written.

timm's names are the authors', and ours. Its model gives the mean over patches: `fc_norm=False` leaves the final
LayerNorm before the mean, where I-JEPA has it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from openjepa.data.preprocess import Preprocess, imagenet_statistics
from openjepa.data.views import Interpolation
from openjepa.errors import CheckpointError, UserError
from openjepa.formats.exported import (
    CONFIG,
    WEIGHTS,
    Exported,
    encoder_architecture,
    load_weights_of,
    read_json,
)
from openjepa.models.architecture import Architecture

# Only a name to build from, every size is given; not `vit_base_patch16_gap_224`, which has 16 heads.
_BASE = "vit_small_patch16_224"
_OURS: dict[str, tuple[Any, ...]] = {
    "act_layer": (None, "gelu"), "norm_layer": (None, "layernorm"), "qkv_bias": (True,), "final_norm": (True,),
    "proj_bias": (True,),
}  # fmt: skip
"""Arguments of timm's VisionTransformer with the values that make it ours."""
_HARMLESS = frozenset([
    "img_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio", "num_classes", "global_pool",
    "drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate",
    "weight_init", "dynamic_img_size", "dynamic_img_pad", "class_token",
])  # fmt: skip
"""Those that tensors tell, or that only matter in training; a class token is found among the tensors."""


def write_timm(folder: Path, model: Exported) -> None:
    """Write a folder; its `pretrained_cfg.tag` says which encoder it is.

    Args:
        folder: An empty folder.
        model: What to write.

    Raises:
        UserError: timm is missing.
    """
    timm, arguments, data = _import_timm(), _arguments(model.architecture), _data(model)
    network = timm.create_model(_BASE, pretrained_cfg_overlay=data, **arguments)
    network.load_state_dict(dict(model.encoder))
    timm.models.save_for_hf(
        network,
        str(folder),
        model_config={"pretrained_cfg": data},
        model_args=arguments,
        safe_serialization=True,
    )
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)


def is_timm(folder: Path) -> bool:
    """Whether a folder is of a model of timm."""
    return (folder / CONFIG).is_file() and "architecture" in read_json(folder / CONFIG)


def read_timm(folder: Path, *, num_heads: int | None = None) -> Exported:
    """Read a folder of a ViT without class token.

    Args:
        folder: The folder.
        num_heads: Attention heads, where the folder does not say and the width was never published.

    Raises:
        CheckpointError: Files are missing or damaged, or the heads are others or unknown.
    """
    config, state = read_json(folder / CONFIG), load_weights_of(folder)
    state = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    _refuse_others(config.get("model_args", {}), folder / CONFIG)
    told = config.get("model_args", {}).get("num_heads")
    if None not in (told, num_heads) and told != num_heads:
        raise CheckpointError(f"{folder / CONFIG}: recorded with {told} heads, --num-heads says {num_heads}")
    try:
        size = config.get("model_args", {}).get("img_size")
        size = (size, size) if isinstance(size, int) else size and (size[0], size[1])
        architecture = encoder_architecture(state, heads=told or num_heads, where=folder, image_size=size)
    except KeyError as error:
        raise CheckpointError(
            f"{folder / WEIGHTS}: not a ViT without class token: no tensor {error}"
        ) from None
    data, channels = config.get("pretrained_cfg", {}), architecture.in_channels
    mean, std = (tuple(data.get(key, ())) for key in ("mean", "std"))
    if len(mean) != channels or len(std) != channels:
        mean, std = imagenet_statistics(channels)
    kind = data.get("interpolation", "bilinear")
    preprocess = Preprocess(
        architecture.image_size, channels, mean, std, kind if kind in get_args(Interpolation) else "bilinear"
    )
    return Exported(architecture=architecture, encoder=state, predictor={}, preprocess=preprocess)


def _refuse_others(arguments: Mapping[str, Any], where: Path) -> None:
    """Refuse what would make timm's network another one than ours with the same tensors.

    Raises:
        CheckpointError: An argument asks for something else.
    """
    for name, value in arguments.items():
        ours = _OURS.get(name, (None, False))
        if name not in _HARMLESS and value not in ours:
            raise CheckpointError(
                f"{where}: model_args say {name}={value!r}; this encoder has {ours[-1]!r}, and no other"
            )


def _arguments(architecture: Architecture) -> dict[str, Any]:
    return {
        "img_size": architecture.image_size,
        "patch_size": architecture.patch_size,
        "in_chans": architecture.in_channels,
        "embed_dim": architecture.embed_dim,
        "depth": architecture.depth,
        "num_heads": architecture.num_heads,
        "mlp_ratio": architecture.mlp_ratio,
        "class_token": False,
        "global_pool": "avg",
        "fc_norm": False,
        "num_classes": 0,
    }


def _data(model: Exported) -> dict[str, Any]:
    """For `timm.data.resolve_model_data_config`."""
    preprocess = model.preprocess
    return {
        "tag": f"{model.which}_encoder",
        "input_size": (preprocess.channels, *preprocess.image_size),
        "mean": preprocess.mean,
        "std": preprocess.std,
        "interpolation": preprocess.interpolation,
        "crop_pct": 1.0,
        "crop_mode": "center",
        "license": "unknown",
    }


def _import_timm() -> Any:
    try:
        import timm
    except ImportError:
        raise UserError("--to timm needs timm: pip install 'openjepa[timm]'") from None
    return timm
