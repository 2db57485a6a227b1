"""Pretraining methods: an encoder, what it is asked for, and the loss. `build` makes one by name."""

from collections.abc import Callable

from openjepa.methods.ijepa import IJEPA, build_ijepa
from openjepa.methods.losses import Loss
from openjepa.methods.mae import MAE, build_mae
from openjepa.methods.maskfeat import MaskFeat, build_maskfeat
from openjepa.methods.method import Method, Output, TargetNorm, Targets
from openjepa.models.architecture import Architecture

__all__ = [
    "IJEPA",
    "MAE",
    "METHODS",
    "Loss",
    "MaskFeat",
    "Method",
    "Output",
    "TargetNorm",
    "Targets",
    "build",
]

METHODS: dict[str, Callable[..., Method]] = {
    "ijepa": build_ijepa,
    "mae": build_mae,
    "maskfeat": build_maskfeat,
}
"""Name -> function of an architecture, ``loss``, ``target_norm`` and ``seed``."""


def build(
    name: str, architecture: Architecture, *, loss: Loss, target_norm: TargetNorm, seed: int = 0
) -> Method:
    """A new model of this method and shape."""
    return METHODS[name](architecture, loss=loss, target_norm=target_norm, seed=seed)
