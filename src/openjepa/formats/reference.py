"""The authors' checkpoints, `*.pth.tar` of facebookresearch/ijepa.

Top-level keys `encoder`, `predictor`, `target_encoder`, …; every tensor name starts with `module.`.
Only plain tensors are read: a pickle that would run code is refused.
"""

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openjepa.errors import CheckpointError
from openjepa.models.architecture import Architecture

# Head counts are not in the file; these are the published models' (paper, appendix A).
_PUBLISHED_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16}
_PARTS = {"encoder": "context_encoder", "target_encoder": "target_encoder", "predictor": "predictor"}


def read_reference(path: Path, *, num_heads: int | None = None) -> tuple[Architecture, dict[str, Tensor]]:
    """Architecture and tensors of an authors' checkpoint, under our names.

    Args:
        path: The `.pth.tar` file.
        num_heads: Attention heads; needed for widths that were not published.

    Raises:
        CheckpointError: Not such a file, one that holds more than tensors, or an unknown head count.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols: what can't be read is refused below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path}: refused: it is not a plain file of tensors, and loading it could run code"
        ) from None
    except (OSError, EOFError, RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path}: can't be read as a checkpoint (truncated or damaged?): {error}"
        ) from None
    missing = [part for part in _PARTS if not isinstance(content, Mapping) or part not in content]
    if missing:
        raise CheckpointError(
            f"{path}: not an I-JEPA checkpoint of the authors: no {', '.join(missing)} in it"
        )
    state = {
        f"{ours}.{name.removeprefix('module.')}": tensor
        for theirs, ours in _PARTS.items()
        for name, tensor in content[theirs].items()
    }
    try:
        return _architecture(state, num_heads, path), state
    except KeyError as error:
        raise CheckpointError(f"{path}: not an I-JEPA checkpoint of the authors: no tensor {error}") from None


def _architecture(state: Mapping[str, Tensor], num_heads: int | None, path: Path) -> Architecture:
    patches = state["context_encoder.patch_embed.proj.weight"]  # (D, c, h, w)
    width, hidden = patches.shape[0], state["context_encoder.blocks.0.mlp.fc1.weight"].shape[0]
    side = round(state["context_encoder.pos_embed"].shape[1] ** 0.5)  # the authors' grids are square
    heads = num_heads or _PUBLISHED_HEADS.get(width)
    if heads is None:
        raise CheckpointError(
            f"{path}: the number of attention heads is not in the file and width {width} was never published: "
            "give it with --num-heads (num_heads in Python)"
        )
    return Architecture(
        image_size=(side * patches.shape[2], side * patches.shape[3]),
        patch_size=(patches.shape[2], patches.shape[3]),
        in_channels=patches.shape[1],
        embed_dim=width,
        depth=_depth(state, "context_encoder.blocks."),
        num_heads=heads,
        mlp_ratio=hidden / width,
        predictor_dim=state["predictor.mask_token"].shape[2],
        predictor_depth=_depth(state, "predictor.predictor_blocks."),
        predictor_heads=heads,
    )


def _depth(state: Mapping[str, Any], prefix: str) -> int:
    return 1 + max(int(name[len(prefix) :].split(".")[0]) for name in state if name.startswith(prefix))
