"""A linear head that was fitted on frozen features, kept for use: `evaluate --save-head`, `openjepa predict`.

    HEAD/head.safetensors · head.json

Shapes: N images, L layers, D width, K classes.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from openjepa.errors import CheckpointError, UserError

_WEIGHTS, _FACTS = "head.safetensors", "head.json"
SCHEMA = 1


class Head(NamedTuple):
    """Scores of classes as a linear function of features; what normalised them is folded in."""

    weight: Tensor
    """(K, num_layers · d), d being the width of pooled features."""
    bias: Tensor
    """(K,)."""
    num_layers: int = 1
    """How many of the last layers it sees, side by side."""

    def __call__(self, features: Tensor) -> Tensor:
        """(N, L, D) -> scores (N, K)."""
        return F.linear(features[:, -self.num_layers :].flatten(1), self.weight, self.bias)


@dataclass(frozen=True, kw_only=True)
class HeadFacts:
    """What a saved head is of.

    Attributes:
        classes: Names, in the order of the scores.
        protocol: What fitted it.
        num_layers: How many of the encoder's last layers it sees.
        checkpoint: The encoder's name ...
        weights_sha256: ... and its weights.
        encoder: `target` or `context`.
        pooling: How the patches of an image become the features that it sees, one of `POOLINGS`.
    """

    classes: list[str]
    protocol: str
    num_layers: int
    checkpoint: str
    weights_sha256: str
    encoder: str
    pooling: str = "mean"


def check_new_folder(folder: Path) -> None:
    """Refuse a folder that a head cannot be written to.

    Raises:
        UserError: It holds something already, or is a file.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--save-head {folder}: exists; remove it, or give another folder")


def save_head(folder: Path, head: Head, facts: HeadFacts) -> None:
    """Write a head.

    Raises:
        UserError: The folder holds something already.
    """
    check_new_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"weight": head.weight.float().cpu().contiguous(), "bias": head.bias.float().cpu().contiguous()}
    save_file(tensors, folder / _WEIGHTS)
    facts_text = json.dumps({"schema": SCHEMA, **asdict(facts)}, indent=1, ensure_ascii=False)
    (folder / _FACTS).write_text(facts_text + "\n", encoding="utf-8")


def load_head(folder: Path) -> tuple[Head, HeadFacts]:
    """Read a head that `save_head` wrote.

    Raises:
        CheckpointError: There is none, or it is damaged.
    """
    try:
        facts: dict[str, Any] = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        tensors = load_file(folder / _WEIGHTS)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"--head {folder}: no {Path(str(error.filename)).name} in it; openjepa evaluate --save-head writes one"
        ) from None
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"--head {folder}: can't be read: {error}") from None
    if facts.pop("schema", None) != SCHEMA:
        raise CheckpointError(f"--head {folder}: of another version of openjepa; write it again")
    try:
        known = HeadFacts(**facts)
        return Head(tensors["weight"], tensors["bias"], known.num_layers), known
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"--head {folder}: damaged: {error}; write it again") from None


@torch.no_grad()
def folded(weight: Tensor, bias: Tensor, *, shift: Tensor, scale: Tensor, num_layers: int) -> Head:
    """The head that gives for x what W·(x − shift)/scale + b gives."""
    weight = weight / scale
    return Head(weight, bias - weight @ shift, num_layers)
