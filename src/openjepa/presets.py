"""Presets: settings for a kind of data, each derived from a parent. A preset is a nested dictionary of settings.

Chosen by name, or by the size of the images:

    openjepa pretrain photos --out run --preset standard
"""

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from openjepa.errors import UserError

Settings = dict[str, Any]


def small() -> Settings:
    """Images of 28 to 80 px on a CPU or a small GPU: ViT 128 wide, 4 deep, about 8 × 8 patches (0.9 M parameters)."""
    return {
        "data": {"image_size": 32, "batch_size": 64},
        # Context tokens computed once for all targets: a seventh more steps (docs/log.md).
        "model": {"name": "vit_nano", "patch_size": 4, "shared_context": True},
        # More context than the first draw always leaves, and targets without their position: docs/log.md.
        "masks": {"name": "multiblock", "context_fraction": 28 / 64},
        "objective": {"target_norm": "centred"},
        "optim": {"lr": 1.5e-3, "warmup": 0.1},
    }


def staged() -> Settings:
    """As `small`, for a few minutes to an hour on a CPU: not the paper's method alone.

    Three quarters of the time go to a first stage on histograms of gradients (MaskFeat), then I-JEPA goes on from its
    encoder with three quarters of the patches hidden at random (docs/log.md).
    """
    changes: Settings = {
        "data": {"batch_size": 32},
        "ema": {"start": 0.998},
        "optim": {"lr": 5e-4},
        "first_stage": {"method": "maskfeat", "share": 0.75, "lr": 1e-3},
    }
    return {**_derive(small(), changes), "masks": {"name": "random", "target_fraction": 0.75}}


def medium() -> Settings:
    """Images of about 80 to 160 px: ViT 192 wide, 6 deep, 12 × 12 patches of 8 px."""
    return _derive(
        small(),
        {"data": {"image_size": 96}, "model": {"name": "vit_micro", "patch_size": 8}, "optim": {"lr": 1e-3}},
    )


def standard() -> Settings:
    """Photographs at 224 px: ViT-S/16 with a predictor 192 wide and 6 deep, for a GPU."""
    return _derive(
        small(),
        {
            "data": {"image_size": 224, "batch_size": 256, "num_workers": 2},
            "model": {"name": "vit_small", "patch_size": 16},
            "optim": {"lr": 1e-3, "weight_decay": 0.04, "final_weight_decay": 0.4},
        },
    )


def reference() -> Settings:
    """The authors' ImageNet recipe for ViT-H/14 with all its habits (configs/in1k_vith14_ep300.yaml of their code)."""
    return {
        "data": {"image_size": 224, "batch_size": 2048, "num_workers": 10, "flip": False},
        "model": {"name": "vit_huge", "patch_size": 14, "shared_context": False},
        "masks": {"name": "reference"},
        "objective": {"loss": "smooth_l1", "target_norm": "layer"},
        "ema": {"start": 0.996, "end": 1.0},
        "optim": {
            "lr": 1e-3,
            "start_lr": 2e-4,
            "final_lr": 1e-6,
            "warmup": 40 / 300,
            "weight_decay": 0.04,
            "final_weight_decay": 0.4,
            "clip_norm": None,
        },
        "budget": {"epochs": 300},
    }


PRESETS: dict[str, Callable[[], Settings]] = {
    preset.__name__: preset for preset in (small, staged, medium, standard, reference)
}


def preset(name: str) -> Settings:
    """The settings of a preset.

    Raises:
        UserError: An unknown name.
    """
    if name not in PRESETS:
        close = get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(f"--preset {name!r} is unknown; {hint}Known: auto, {', '.join(PRESETS)}")
    return {"preset": name, **PRESETS[name]()}


def with_method(settings: Mapping[str, Any], method: str) -> Settings:
    """The settings with what another method than I-JEPA is trained with, its authors' where they carry over.

    The masked autoencoder (MAE, arXiv 2111.06377, table 8): three quarters of the patches hidden at random, squared
    error of pixels normalised by patch, AdamW with β₂ = 0.95. MaskFeat (arXiv 2112.09133) here as the masked
    autoencoder, with squared error of histograms.
    """
    if method == "ijepa":
        return dict(settings)
    changes: Settings = {
        "method": method,
        "objective": {"loss": "mse", "target_norm": "layer" if method == "mae" else "none"},
        "optim": {"betas": (0.9, 0.95), "lr": settings["optim"]["lr"] / 2},  # half: docs/log.md
    }
    masks = {"name": "random", "target_fraction": 0.75}
    return {**_derive(settings, changes), "masks": masks, "first_stage": {}}


def choose_preset(side: int, num_images: int) -> tuple[Settings, str]:
    """Settings for so many images of this typical shorter side in pixels, and the reason in words."""
    if side < 80:
        patch = 4 if side < 56 else 8
        name, size = (
            "small",
            max(28, patch * (side // patch)),
        )  # 7 × 7 patches are the fewest that the masks suit
    elif side < 160:
        name, size, patch = "medium", 8 * (side // 8), 8
    else:
        name, size, patch = "standard", 224, 16
    chosen = preset(name)
    largest = 1 << (num_images.bit_length() - 1)
    batch_size = min(chosen["data"]["batch_size"], largest)
    reason = f"{name} at {size} px, batch {batch_size}: {num_images:,} images, shorter side about {side} px"
    fitted = {"data": {"image_size": size, "batch_size": batch_size}, "model": {"patch_size": patch}}
    return _derive(chosen, fitted), reason


def _derive(parent: Mapping[str, Any], changes: Mapping[str, Any]) -> Settings:
    """The parent's settings with some changed, section by section."""
    child = dict(parent)
    for key, value in changes.items():
        child[key] = _derive(child.get(key, {}), value) if isinstance(value, Mapping) else value
    return child
