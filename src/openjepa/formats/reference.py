"""The authors' checkpoints, `*.pth.tar` of facebookresearch/ijepa.

Top-level keys `encoder`, `predictor`, `target_encoder`, …; every tensor name starts with `module.`.
Only plain tensors are read: a pickle that would run code is refused.
"""

import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openjepa.errors import CheckpointError
from openjepa.formats.exported import depth_of, encoder_architecture
from openjepa.models.architecture import Architecture

_PARTS = {"encoder": "context_encoder", "target_encoder": "target_encoder", "predictor": "predictor"}
_PREFIXES = ("module.", "_orig_mod.")
_NUMBERS: list[Any] = [  # of NumPy, as a loss may be one
    *((np.float64(0).__reduce__()[0], f"numpy.{place}.multiarray.scalar") for place in ("core", "_core")),
    np.dtype, *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8")),
]  # fmt: skip
_TRAINED = ("encoder", "predictor")
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
_UNTRAINED = ("pos_embed", "predictor_pos_embed")
# What torch writes of an AdamW beside its parameters; the authors' schedules set lr and weight decay at each step.
_ADAMW = {
    "betas": (0.9, 0.999), "eps": 1e-8, "amsgrad": False, "maximize": False, "foreach": None, "capturable": False,
    "differentiable": False, "fused": None,
}  # fmt: skip


def read_reference(path: Path, *, num_heads: int | None = None) -> tuple[Architecture, dict[str, Tensor]]:
    """Architecture and tensors of an authors' checkpoint, under our names.

    Args:
        path: The `.pth.tar` file.
        num_heads: Attention heads; needed for widths that were not published.

    Raises:
        CheckpointError: Not such a file, one that holds more than tensors, or an unknown head count.
    """
    content = _read(path)
    state = {
        f"{ours}.{_plain(name)}": tensor
        for theirs, ours in _PARTS.items()
        for name, tensor in content[theirs].items()
    }
    try:
        return _architecture(state, num_heads, path), state
    except KeyError as error:
        raise CheckpointError(f"{path}: not an I-JEPA checkpoint of the authors: no tensor {error}") from None


@dataclass(frozen=True, kw_only=True)
class Training:
    """How far a run is, beside its weights.

    Attributes:
        optimizer: Moments of AdamW by name, as our checkpoints keep them: `exp_avg.context_encoder.norm.weight` …;
            None where it begins anew.
        epoch: Passes over the data that are done.
        loss: The last one.
        batch_size: Images a step of each process.
        world_size: Processes.
        lr: The last learning rate.
    """

    optimizer: Mapping[str, Tensor] | None = None
    epoch: int = 0
    loss: float = 0.0
    batch_size: int = 1
    world_size: int = 1
    lr: float = 0.0


def read_training(path: Path) -> Training:
    """How far the run of an authors' checkpoint is.

    Args:
        path: The `.pth.tar` file.

    Raises:
        CheckpointError: As `read_reference`; or the file has no optimiser, or one of other parameters.
    """
    content = _read(path)
    names = [name for group in _groups(content) for name in group]
    try:
        saved = content["opt"]["state"]
        moments = {
            f"{moment}.{_ours(name)}": torch.as_tensor(saved[place][moment])
            for place, name in enumerate(names)
            if saved and not name.endswith(_UNTRAINED)
            for moment in _MOMENTS
        }
        told = {key: content[key] for key in ("epoch", "loss", "batch_size", "world_size", "lr")}
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: its optimiser is not of these parameters: no {error}") from None
    return Training(optimizer=moments or None, **told)


def write_reference(path: Path, state: Mapping[str, Tensor], training: Training | None = None) -> None:
    """Write a checkpoint that the authors' code reads, and goes on from.

    Args:
        path: The file, `*.pth.tar`.
        state: All tensors of a model under our names.
        training: How far its run is.
    """
    training = training or Training()
    content: dict[str, Any] = {
        theirs: {
            f"module.{name.removeprefix(ours + '.')}": tensor.detach().cpu().contiguous()
            for name, tensor in state.items()
            if name.startswith(ours + ".")
        }
        for theirs, ours in _PARTS.items()
    }
    groups = _groups(content)
    names = [name for group in groups for name in group]
    moments: dict[int, dict[str, Tensor]] = {}
    if training.optimizer is not None:
        for place, name in enumerate(names):
            if not name.endswith(_UNTRAINED):
                moments[place] = {
                    moment: training.optimizer[f"{moment}.{_ours(name)}"] for moment in _MOMENTS
                }
    content["opt"] = {"state": moments, "param_groups": list(_param_groups(groups, training.lr))}
    content |= {
        "scaler": None, "epoch": training.epoch, "loss": training.loss, "batch_size": training.batch_size,
        "world_size": training.world_size, "lr": training.lr,
    }  # fmt: skip
    torch.save(content, path)


def _check_records(path: Path) -> None:
    """Compare each record of a file with its checksum, which torch does not.

    Raises:
        ValueError: One is not as it was written.
    """
    if zipfile.is_zipfile(path):  # else older than PyTorch 1.6
        with zipfile.ZipFile(path) as file:
            if (bad := file.testzip()) is not None:
                raise ValueError(f"its record {bad} is not as it was written")


def _param_groups(groups: list[list[str]], lr: float) -> Iterator[dict[str, Any]]:
    start = 0
    for place, names in enumerate(groups):
        excluded = (
            {"WD_exclude": True, "weight_decay": 0} if place >= len(_TRAINED) else {"weight_decay": 0.04}
        )
        yield {"params": list(range(start, start + len(names))), "lr": lr, **_ADAMW, **excluded}
        start += len(names)


def _groups(content: Mapping[str, Any]) -> list[list[str]]:
    """`PART.NAME` of all parameters as the authors' optimiser numbers them: matrices of both parts, then the rest."""
    kinds: list[list[str]] = []
    for matrices in (True, False):
        for part in _TRAINED:
            kinds.append(
                [
                    f"{part}.{_plain(name)}"
                    for name, tensor in content[part].items()
                    if (tensor.ndim != 1 and "bias" not in name) == matrices
                ]
            )
    return kinds


def _plain(name: str) -> str:
    """A tensor's name without what DDP and torch.compile put before it."""
    while name.startswith(_PREFIXES):
        name = name.partition(".")[2]
    return name


def _ours(name: str) -> str:
    part, _, rest = name.partition(".")
    return f"{_PARTS[part]}.{rest}"


def _read(path: Path) -> Mapping[str, Any]:
    """The file's content, plain tensors and numbers.

    Raises:
        CheckpointError: As `read_reference`.
    """
    try:
        _check_records(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(_NUMBERS):
            warnings.simplefilter("ignore")  # of pickle protocols: what can't be read is refused below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path}: refused: it is not a plain file of tensors, and loading it could run code"
        ) from None
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{path}: can't be read as a checkpoint (truncated or damaged?): {error}"
        ) from None
    missing = [part for part in _PARTS if not isinstance(content, Mapping) or part not in content]
    if missing:
        raise CheckpointError(
            f"{path}: not an I-JEPA checkpoint of the authors: no {', '.join(missing)} in it"
        )
    return content


def _architecture(state: Mapping[str, Tensor], num_heads: int | None, path: Path) -> Architecture:
    encoder = encoder_architecture(state, heads=num_heads, where=path, prefix="context_encoder.")
    return replace(
        encoder,
        predictor_dim=state["predictor.mask_token"].shape[2],
        predictor_depth=depth_of(state, "predictor.predictor_blocks."),
        predictor_heads=encoder.num_heads,
    )
