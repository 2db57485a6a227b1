"""A model as folders of other libraries hold it, and the files in them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from openjepa.data.preprocess import Preprocess
from openjepa.errors import CheckpointError
from openjepa.models.architecture import Architecture
from openjepa.models.vit import SIZES, ViTSize

CONFIG, WEIGHTS = "config.json", "model.safetensors"
PUBLISHED_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16}
"""By width, of files that do not say (paper, appendix A)."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A model as a folder holds it: one encoder, and the predictor where there is one.

    Attributes:
        architecture: Of encoder and predictor.
        encoder: The encoder's tensors under our names.
        predictor: The predictor's; empty where the folder has none.
        preprocess: How images are prepared.
        which: `target` or `context`, where the folder says.
        loss: What it was trained with, where the folder says.
        target_norm: What its targets were normalised with.
    """

    architecture: Architecture
    encoder: Mapping[str, Tensor]
    predictor: Mapping[str, Tensor]
    preprocess: Preprocess
    which: str | None = None
    loss: str = "smooth_l1"
    target_norm: str = "layer"


def encoder_architecture(
    state: Mapping[str, Tensor],
    *,
    heads: int | None,
    where: Path,
    prefix: str = "",
    image_size: tuple[int, int] | None = None,
) -> Architecture:
    """What an encoder's tensors tell of its shape; the predictor's part is a guess.

    Args:
        state: Tensors under our names.
        heads: Attention heads; None where the width was published.
        where: The file, for errors.
        prefix: Of the encoder's tensors.
        image_size: (height, width) in pixels; without, the grid is square.

    Raises:
        KeyError: A tensor is missing.
        CheckpointError: The heads are not known.
    """
    patches = state[f"{prefix}patch_embed.proj.weight"]  # (D, c, h, w)
    width, hidden = patches.shape[0], state[f"{prefix}blocks.0.mlp.fc1.weight"].shape[0]
    heads = heads or PUBLISHED_HEADS.get(width)
    if heads is None:
        raise CheckpointError(
            f"{where}: the number of attention heads is not in the file and width {width} was never published: "
            "give it with --num-heads (num_heads in Python)"
        )
    side = round(state[f"{prefix}pos_embed"].shape[1] ** 0.5)
    depth = depth_of(state, f"{prefix}blocks.")
    alike = likely_size(width, depth)
    return Architecture(
        image_size=image_size or (side * patches.shape[2], side * patches.shape[3]),
        patch_size=(patches.shape[2], patches.shape[3]),
        in_channels=patches.shape[1],
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        mlp_ratio=hidden / width,
        predictor_dim=alike.predictor_dim,
        predictor_depth=alike.predictor_depth,
        predictor_heads=alike.num_heads,
    )


def depth_of(state: Mapping[str, Any], prefix: str) -> int:
    """How many blocks there are."""
    return 1 + max(int(name[len(prefix) :].split(".")[0]) for name in state if name.startswith(prefix))


def likely_size(width: int, depth: int) -> ViTSize:
    """The named size that is most like an encoder, for a predictor where there is none."""
    alike = [size for size in SIZES.values() if size.embed_dim == width]
    return next((size for size in alike if size.depth == depth), alike[0] if alike else SIZES["vit_base"])


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors, readable by whom a new file is (safetensors would make it its owner's)."""
    path.touch()
    mode = path.stat().st_mode
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(whole, path, metadata={"format": "pt"})
    path.chmod(mode)


def load_weights_of(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder: of `model.safetensors`, or of the parts that its index names.

    Raises:
        CheckpointError: None there, or damaged, or in a format that is not read.
    """
    index = folder / f"{WEIGHTS}.index.json"
    if (folder / WEIGHTS).exists() or not index.exists():
        if not (folder / WEIGHTS).exists() and (others := sorted(folder.glob("*.bin"))):
            raise CheckpointError(
                f"{others[0]}: not read, for loading it could run code; write it anew with transformers: "
                "IJepaModel.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
            )
        return load_tensors(folder / WEIGHTS)
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(
        isinstance(name, str) and Path(name).name == name for name in places.values()
    ):
        raise CheckpointError(f"{index}: names no parts")
    state = {}
    for name in sorted(set(places.values())):
        state.update(load_tensors(folder / name))
    if missing := sorted(places.keys() - state.keys()):
        raise CheckpointError(f"{index}: its parts lack {', '.join(missing[:5])}")
    return state


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read safetensors.

    Raises:
        CheckpointError: None there, or damaged.
    """
    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; a half-written or half-fetched folder?") from None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: can't be read (truncated or damaged?): {error}") from None


def read_json(path: Path) -> dict[str, Any]:
    """Read an object.

    Raises:
        CheckpointError: It can't be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: can't be read: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: not an object")
    return content
