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
    """Images of 28 to 80 px on a CPU or a small GPU: ViT 192 wide, 4 deep, about 8 × 8 patches (1.8 M parameters).

    The paper's regression, with three changes that short runs on few images need (docs/log.md): the targets are what
    neither a patch's position nor its image as a whole explains, the context is a seventh of the patches, drawn at
    random, and Muon trains the blocks.
    """
    return {
        "data": {"image_size": 32, "batch_size": 64},
        # Context tokens computed once for all targets: a seventh more steps.
        "model": {"name": "vit_mini", "patch_size": 4, "shared_context": True},
        "masks": {"name": "random", "target_fraction": 0.86},
        "objective": {"loss": "mse", "target_norm": "double_centred"},
        "ema": {"start": 0.99, "end": 0.999},
        "optim": {"name": "muon", "lr": 1.5e-3, "muon_ratio": 2.0, "betas": (0.9, 0.95)},
    }


def salt() -> Settings:
    """As `small`, but a masked autoencoder of the run's first quarter, held still, says what is to be predicted.

    Of hidden patches and, with more weight, of the whole image. The student begins as a copy of it. A static teacher
    for latent prediction: SALT (arXiv 2509.24317).
    """
    return _derive(
        small(),
        {
            "first_stage": {"method": "mae", "share": 0.25},
            "ema": {"generations": 1},
            "objective": {"whole_weight": 2.0},
        },
    )


def multiblock() -> Settings:
    """As `small` with the paper's masks."""
    # More context than the first draw always leaves.
    return {**small(), "masks": {"name": "multiblock", "context_fraction": 28 / 64}}


def medium() -> Settings:
    """Images of about 80 to 160 px: ViT 192 wide, 6 deep, 12 × 12 patches of 8 px."""
    return _derive(
        small(),
        {"data": {"image_size": 96}, "model": {"name": "vit_micro", "patch_size": 8}, "optim": {"lr": 1e-3}},
    )


def standard() -> Settings:
    """Photographs at 224 px: ViT-S/16 with a predictor 192 wide and 6 deep, for a GPU."""
    return _derive(
        multiblock(),
        {
            "data": {"image_size": 224, "batch_size": 256, "num_workers": 2},
            "model": {"name": "vit_small", "patch_size": 16},
            "objective": {"loss": "smooth_l1", "target_norm": "centred"},
            # For long runs on a GPU, not yet measured here: between the paper's and those of `small`.
            "ema": {"start": 0.996, "end": 0.9999},
            "optim": {
                "name": "adamw",
                "muon_ratio": 1.0,
                "lr": 1e-3,
                "betas": (0.9, 0.999),
                "weight_decay": 0.04,
                "final_weight_decay": 0.4,
            },
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
    preset.__name__: preset for preset in (small, salt, multiblock, medium, standard, reference)
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
    # Measured (docs/log.md): its blocks want two thirds of our learning rate, all else as much as they.
    lr = settings["optim"]["lr"] * settings["optim"].get("muon_ratio", 1.0) * 2 / 3
    changes: Settings = {
        "method": method,
        "objective": {
            "loss": "mse",
            "target_norm": "layer" if method == "mae" else "none",
            "pixel_share": 0.0,
            "whole_weight": 0.0,
            "target_reuse": 1,
        },
        "optim": {"betas": (0.9, 0.95), "lr": lr, "muon_ratio": 1.0},
        "ema": {"generations": 0},
    }
    masks = {"name": "random", "target_fraction": 0.75}
    return {**_derive(settings, changes), "masks": masks, "first_stage": {}}


def choose_preset(
    side: int,
    num_images: int,
    *,
    method: str = "ijepa",
    channels: int = 3,
    accelerated: bool = False,
    from_weights: bool = False,
) -> tuple[Settings, str]:
    """Settings for data and a machine, and the reasons in words.

    Args:
        side: Typical shorter side of the images, in pixels.
        num_images: How many there are.
        method: What is to be trained.
        channels: Of the images.
        accelerated: Whether there is a GPU.
        from_weights: Whether the run starts from an encoder that knows something (`--init-from`).
    """
    reasons = [f"{num_images:,} images, shorter side about {side} px"]
    if side < 80:
        patch = 4 if side < 56 else 8
        # 7 × 7 patches are the fewest that the masks suit.
        name, size = "salt" if method == "ijepa" else "small", max(28, patch * (side // patch))
        if name == "salt":
            reasons.append(
                "the encoder to start from, held still, teaches"
                if from_weights
                else "a masked autoencoder of the first quarter teaches the rest"
            )
    elif side < 160:
        name, size, patch = "medium", 8 * (side // 8), 8
    elif not accelerated:
        name, size, patch = "medium", 96, 8
        reasons.append("no GPU, which `standard` (ViT-S/16 at 224 px) is for")
    else:
        name, size, patch = "standard", 224, 16
    chosen = preset(name)
    batch_size = min(chosen["data"]["batch_size"], 1 << (num_images.bit_length() - 1))
    fitted: Settings = {
        "data": {"image_size": size, "batch_size": batch_size},
        "model": {"patch_size": patch},
    }
    if name == "salt" and from_weights:
        fitted["first_stage"] = {"method": "none"}
    if channels != 3:
        fitted["data"] |= {"channels": channels, "normalize": "auto"}
        reasons.append(f"{channels} channel{'s' * (channels > 1)}, normalised by their own mean and spread")
    model = f"{size // patch} × {size // patch} patches of {patch} px"
    return _derive(chosen, fitted), f"{name}, {model}, batch {batch_size}: {'; '.join(reasons)}"


def _derive(parent: Mapping[str, Any], changes: Mapping[str, Any]) -> Settings:
    """The parent's settings with some changed, section by section."""
    child = dict(parent)
    for key, value in changes.items():
        child[key] = _derive(child.get(key, {}), value) if isinstance(value, Mapping) else value
    return child
