"""OpenJEPA: self-supervised pretraining of image encoders by joint-embedding prediction (I-JEPA, arXiv 2301.08243).

From images to features:

    import openjepa

    openjepa.pretrain(data="photos", out="runs/photos", max_minutes=20)
    model = openjepa.load("runs/photos")
    features = openjepa.embed(model, ["photo.jpg"])  # (1, D)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openjepa.apps.embed import embed
    from openjepa.apps.evaluate import evaluate
    from openjepa.apps.export import export
    from openjepa.apps.features import OpenJEPAFeatures
    from openjepa.apps.predict import predict
    from openjepa.apps.pretrain import pretrain
    from openjepa.apps.pretrained import HubModel
    from openjepa.apps.search import search
    from openjepa.hub import load
    from openjepa.masks import Masks

__all__ = [
    "HubModel", "Masks", "OpenJEPAFeatures", "embed", "evaluate", "export", "load", "predict", "pretrain", "search",
]  # fmt: skip

_HOMES = {
    "HubModel": "apps.pretrained",
    "Masks": "masks",
    "OpenJEPAFeatures": "apps.features",
    "embed": "apps.embed",
    "evaluate": "apps.evaluate",
    "export": "apps.export",
    "load": "hub",
    "predict": "apps.predict",
    "pretrain": "apps.pretrain",
    "search": "apps.search",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `openjepa --help` must not wait for PyTorch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'openjepa' has no attribute {name!r}")
    return getattr(importlib.import_module(f"openjepa.{_HOMES[name]}"), name)
