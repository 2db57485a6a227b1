"""The authors' configuration files (`configs/*.yaml` of facebookresearch/ijepa), as settings of ours.

    openjepa pretrain photos --out run --config in1k_vith14_ep300.yaml

What their code has and ours has not is refused by name where it is in use.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from openjepa.errors import UserError

_log = logging.getLogger(__name__)
_SECTIONS = {"data", "mask", "meta", "optimization"}

_SAME = {
    "data.crop_size": "data.image_size",
    "data.crop_scale": "data.crop_scale",
    "data.num_workers": "data.num_workers",
    "data.use_horizontal_flip": "data.flip",
    "data.batch_size": "data.batch_size",
    "mask.patch_size": "model.patch_size",
    "mask.aspect_ratio": "masks.target_aspect",
    "mask.enc_mask_scale": "masks.context_scale",
    "mask.pred_mask_scale": "masks.target_scale",
    "mask.num_enc_masks": "masks.num_contexts",
    "mask.num_pred_masks": "masks.num_targets",
    "mask.min_keep": "masks.min_keep",
    "meta.model_name": "model.name",
    "meta.pred_depth": "model.predictor_depth",
    "meta.pred_emb_dim": "model.predictor_dim",
    "optimization.epochs": "budget.epochs",
    "optimization.lr": "optim.lr",
    "optimization.start_lr": "optim.start_lr",
    "optimization.final_lr": "optim.final_lr",
    "optimization.weight_decay": "optim.weight_decay",
    "optimization.final_weight_decay": "optim.final_weight_decay",
}
"""Theirs -> ours, the value being the same."""
_OTHER: dict[str, Callable[[Any, Mapping[str, Any]], dict[str, Any]]] = {
    "optimization.ema": lambda value, flat: {"ema.start": value[0], "ema.end": value[1]},
    "optimization.warmup": lambda value, flat: {"optim.warmup": value / flat["optimization.epochs"]},
    "meta.use_bfloat16": lambda value, flat: {"runtime.precision": "bfloat16" if value else "float32"},
}
"""Theirs -> settings of ours, of the value and all values."""
_NEEDLESS = {"data.root_path", "data.image_folder", "data.pin_mem", "data.color_jitter_strength", "meta.copy_data",
             "meta.read_checkpoint"}  # fmt: skip
"""Said on our command line, or of no use there."""
_ONLY = {
    "data.use_color_distortion": False,
    "data.use_gaussian_blur": False,
    "mask.allow_overlap": False,
    "meta.load_checkpoint": False,
    "optimization.ipe_scale": 1.0,
}
"""What we have not, and the value that asks for nothing."""


def is_reference_config(tree: Mapping[str, Any]) -> bool:
    """Whether a file's content is laid out as the authors'."""
    return tree.keys() >= _SECTIONS


def from_reference_config(tree: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Our settings by dotted key; a base for them is the preset `reference`.

    Args:
        tree: The file's content.
        where: The file, for errors.

    Raises:
        UserError: Keys that are not known here, or values that ask for what we have not.
    """
    flat = {
        f"{section}.{key}": value
        for section, values in tree.items()
        if section != "logging"
        for key, value in (values or {}).items()
    }
    known = _SAME.keys() | _OTHER.keys() | _NEEDLESS | _ONLY.keys()
    if unknown := sorted(flat.keys() - known):
        raise UserError(
            f"--config {where}: not supported: {', '.join(unknown)}; remove them from a copy of the file"
        )
    if asked := [f"{key}={flat[key]}" for key, value in _ONLY.items() if flat.get(key, value) != value]:
        meant = ", ".join(
            f"{key}={value}" for key, value in _ONLY.items() if key in flat and flat[key] != value
        )
        raise UserError(
            f"--config {where}: not supported: {', '.join(asked)}; set {meant} in a copy of the file"
        )
    settings: dict[str, Any] = {ours: flat[theirs] for theirs, ours in _SAME.items() if theirs in flat}
    try:
        for theirs, translate in _OTHER.items():
            if theirs in flat:
                settings |= translate(flat[theirs], flat)
    except (TypeError, KeyError, IndexError) as error:
        raise UserError(f"--config {where}: {theirs}={flat[theirs]!r} can't be read: {error!r}") from None
    if "data.batch_size" in settings:
        _log.warning(
            "%s: data.batch_size %s is of each of the authors' processes (they used 16); ours is of a step of all: "
            "set data.batch_size=%s for the same",
            where, settings["data.batch_size"], 16 * settings["data.batch_size"],
        )  # fmt: skip
    return settings
