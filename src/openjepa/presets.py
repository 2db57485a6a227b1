"""Presets: settings for a kind of data, each derived from a parent. A preset is a nested dictionary of settings.

Chosen by name, or by the size of the images:

    openjepa pretrain photos --out run --preset standard
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from openjepa.errors import UserError

Settings = dict[str, Any]

_CROPS = (0.3, 1.0)  # the authors' code's, for runs that see each image hundreds of times


def small() -> Settings:
    """Images of 28 to 80 px on a CPU or a small GPU: ViT 192 wide, 4 deep, about 8 × 8 patches (1.8 M parameters).

    The paper's regression, with four changes that short runs on few images need (docs/log.md): the targets are what
    neither a patch's position nor its image as a whole explains, the context is a seventh of the patches, drawn at
    random, crops keep most of the image, and Muon trains the blocks.
    """
    return {
        "data": {"image_size": 32, "batch_size": 64, "crop_scale": (0.8, 1.0)},
        # Context tokens computed once for all targets: a seventh more steps.
        "model": {"name": "vit_mini", "patch_size": 4, "shared_context": True},
        "masks": {"name": "random", "target_fraction": 0.86},
        "objective": {"loss": "mse", "target_norm": "double_centred"},
        "ema": {"start": 0.99, "end": 0.999},
        "optim": {"name": "muon", "lr": 1.5e-3, "muon_ratio": 2.0, "betas": (0.9, 0.95)},
    }


def salt() -> Settings:
    """As `small`, but a masked autoencoder of the run's first part, held still, says what is to be predicted.

    Of hidden patches and, with more weight, of the whole image. The student begins as a copy of it. A static teacher
    for latent prediction: SALT (arXiv 2509.24317).
    """
    return derive(
        small(),
        {
            "first_stage": {"method": "mae", "share": 0.25},
            "ema": {"generations": 1},
            "objective": {"whole_weight": 2.0, "target_reuse": 4},
        },
    )


def first_share(steps: float) -> float:
    """Share of a run of `salt` that its first stage takes, by the optimiser steps of both stages.

    A teacher needs some hundred steps before it has something to say: half of a run of a thousand, a quarter from
    four thousand on (docs/log.md).

    Args:
        steps: Of both stages together, above 0.
    """
    return round(min(0.5, max(0.25, 0.5 - math.log2(steps / 1000) / 8)), 3)


def paced(steps: float) -> Settings:
    """What `salt` changes with the length of its second stage: short runs want faster everything (docs/log.md).

    The learning rate falls from 3e-3 at some hundred steps to 1.5e-3 at five thousand, and the moving average reaches
    back over a fifth of the run: with a fixed one of a thousand steps, four hundred end where they began.

    Args:
        steps: Optimiser steps of the stage, above 0.
    """
    lr = min(3e-3, max(1.5e-3, 1.5e-3 * (5000 / steps) ** 0.27))
    horizon = min(1000.0, max(20.0, steps / 5))  # steps that the average reaches back over, at the end
    return {
        "optim": {"lr": float(f"{lr:.2g}")},
        "ema": {"start": _momentum(max(10.0, horizon / 10)), "end": _momentum(horizon)},
        "first_stage": {"lr": 2e-3},
    }


def _momentum(horizon: float) -> float:
    return round(1 - 1 / horizon, 5)


def multiblock() -> Settings:
    """As `small` with the paper's masks."""
    # More context than the first draw always leaves.
    return {**small(), "masks": {"name": "multiblock", "context_fraction": 28 / 64}}


def medium() -> Settings:
    """Images of about 80 to 160 px: ViT 192 wide, 6 deep, 12 × 12 patches of 8 px."""
    return derive(
        small(),
        {
            "data": {"image_size": 96, "crop_scale": _CROPS},
            "model": {"name": "vit_micro", "patch_size": 8},
            "optim": {"lr": 1e-3},
        },
    )


def standard() -> Settings:
    """Photographs at 224 px: ViT-S/16 with a predictor 192 wide and 6 deep, for a GPU."""
    return derive(
        multiblock(),
        {
            "data": {"image_size": 224, "batch_size": 256, "num_workers": 2, "crop_scale": _CROPS},
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
    return {**derive(settings, changes), "masks": masks, "first_stage": {}}


@dataclass(frozen=True, kw_only=True)
class Images:
    """What a choice of settings depends on, of the data."""

    side: int
    """Typical shorter side in pixels."""
    number: int
    """How many there are."""
    channels: int = 3
    """Of each."""


@dataclass(frozen=True)
class Choice:
    """Settings, and why."""

    settings: Settings
    reason: str


ENOUGH_STEPS = {8: 0, 12: 8000, 16: 24000}
"""Patches across an image -> optimiser steps of the whole run from which so many are worth their price. 8 × 8
of 4 px, which is 32 px, win in the same time where 12 × 12 come to some hundred steps (photographs of 100 to 224 px)
and, on brain slices, to 3,600; what more steps give is not measured (docs/log.md)."""


def candidates(side: int, patch: int = 4) -> list[int]:
    """Image sizes in pixels that images of this shorter side are offered without a GPU, the cheapest first."""
    if side < 14 * patch:
        return [max(7, side // patch) * patch]  # 7 × 7 patches are the fewest that the masks suit
    return [grid * patch for grid in ENOUGH_STEPS if grid * patch <= side]


def choose_preset(
    images: Images, *, size: int | None = None, patch: int = 4, method: str = "ijepa", accelerated: bool = False,
    from_weights: bool = False,
) -> Choice:  # fmt: skip
    """Settings for data, and the reasons in words.

    Args:
        images: What they are like.
        size: Image size in pixels that machine and budget afford (`openjepa.apps.plan`); by default the cheapest.
        patch: Patch size in pixels.
        method: What is to be trained.
        accelerated: Whether there is a GPU, which photographs then make use of.
        from_weights: Whether the run starts from an encoder that knows something (`--init-from`).
    """
    side = images.side
    reasons = [f"{images.number:,} images, shorter side about {side} px"]
    if accelerated and side >= 80:
        name, size, patch = ("medium", 8 * (side // 8), 8) if side < 160 else ("standard", 224, 16)
    else:
        name = "salt" if method == "ijepa" else "small"
        size = size or candidates(side, patch)[0]
        if name == "salt":
            reasons.append(
                "the encoder to start from is the teacher"
                if from_weights
                else "a masked autoencoder, trained first, teaches the rest"
            )
    chosen = preset(name)
    batch_size = min(chosen["data"]["batch_size"], 1 << (images.number.bit_length() - 1))
    fitted: Settings = {
        "data": {"image_size": size, "batch_size": batch_size},
        "model": {"patch_size": patch},
    }
    if name == "salt" and from_weights:
        fitted["first_stage"] = {"method": "none"}
    if images.channels != 3:
        fitted["data"] |= {"channels": images.channels, "normalize": "auto"}
        plural = "s" * (images.channels > 1)
        reasons.append(f"{images.channels} channel{plural}, normalised by their own mean and spread")
    return Choice(derive(chosen, fitted), "; ".join(reasons))


def derive(parent: Mapping[str, Any], changes: Mapping[str, Any]) -> Settings:
    """The parent's settings with some changed, section by section."""
    child = dict(parent)
    for key, value in changes.items():
        child[key] = derive(child.get(key, {}), value) if isinstance(value, Mapping) else value
    return child
