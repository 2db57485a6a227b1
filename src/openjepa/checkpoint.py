"""Checkpoints that a kill, a full disk or a flipped bit can't spoil: safetensors and JSON, atomic, verified, no pickle.

A checkpoint is a folder `step-000001000/` with `model.safetensors`, `optimizer.safetensors`,
`state.json`, `config.yaml` and, written last, `manifest.json` with the SHA-256 of the others. It is
written under a temporary name beside its place and renamed when complete.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from openjepa.errors import CheckpointError
from openjepa.failpoint import failpoint

SCHEMA = 1
_MANIFEST = "manifest.json"
_FILES = ("config.yaml", "model.safetensors", "optimizer.safetensors", "state.json")
# Not every system has every code.
_DISK_FULL = [getattr(errno, name) for name in ("ENOSPC", "EFBIG", "EDQUOT") if hasattr(errno, name)]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint in memory."""

    path: Path
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]
    config: str


def save(
    folder: Path,
    *,
    step: int,
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    state: Mapping[str, Any],
    config: str,
    keep: int,
) -> Path:
    """Write a checkpoint and remove what is older than the ``keep`` newest verified ones.

    The one just written is the newest, whatever else lies there: one of a higher step was damaged when the run went on
    and is left alone. Damaged ones are reported and do not count.

    Args:
        folder: The run's `checkpoints` folder.
        step: Optimiser steps done.
        model: Tensors by name.
        optimizer: Tensors by name.
        state: What else a resumed run needs; plain JSON values, ``step`` among them.
        config: The resolved configuration as YAML.
        keep: Checkpoints kept, this one included.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: The disk is full; the earlier checkpoints are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step:09d}"
    draft = folder / f".{final.name}.tmp"
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir()
        save_file({name: tensor.contiguous() for name, tensor in model.items()}, draft / "model.safetensors")
        failpoint("save-model")
        save_file(
            {name: tensor.contiguous() for name, tensor in optimizer.items()}, draft / "optimizer.safetensors"
        )
        (draft / "config.yaml").write_text(config, encoding="utf-8")
        (draft / "state.json").write_text(json.dumps(dict(state), indent=1), encoding="utf-8")
        digests = {file.name: _digest(file) for file in sorted(draft.iterdir())}
        manifest = {"schema": SCHEMA, "step": step, "sha256": digests}
        (draft / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        for file in draft.iterdir():
            _sync(file)
        _sync(draft)
        failpoint("save-rename")
        shutil.rmtree(final, ignore_errors=True)
        os.replace(draft, final)
        _sync(folder)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        if error.errno not in _DISK_FULL:
            raise
        raise _disk_full(folder, model, optimizer) from error
    except SafetensorError as error:  # how a failed write of tensors is reported
        shutil.rmtree(draft, ignore_errors=True)
        raise _disk_full(folder, model, optimizer) from error
    _retire(folder, final, keep=keep)
    return final


def _retire(folder: Path, newest: Path, *, keep: int) -> None:
    """Remove what is older than ``keep`` whole checkpoints, of which ``newest``, just written, is one."""
    num_whole = 1
    for path in list_checkpoints(folder):
        if path.name > newest.name:
            _is_whole(path, _stamp(path))  # reports it
        elif path != newest and num_whole < keep:
            num_whole += _is_whole(path, _stamp(path))
        elif path != newest:
            shutil.rmtree(path, ignore_errors=True)


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoint folders, newest first."""
    return sorted((path.parent for path in folder.glob(f"step-*/{_MANIFEST}")), reverse=True)


def load_latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that verifies; a damaged one is reported loudly and the one before is tried.

    Returns:
        None when there is no checkpoint at all.

    Raises:
        CheckpointError: There are checkpoints and none verifies.
    """
    paths = list_checkpoints(folder)
    for path in paths:
        try:
            return load(path)
        except CheckpointError as error:
            _log.warning("skipping a damaged checkpoint: %s", error)
    if paths:
        raise CheckpointError(
            f"{folder}: none of {len(paths)} checkpoints is whole; remove them or use another folder"
        )
    return None


def load(path: Path) -> Checkpoint:
    """Read one checkpoint, verifying every byte.

    Raises:
        CheckpointError: Missing, truncated or altered files, a newer schema, or NaN weights.
    """
    try:
        step = _verify(path)
        model = load_file(path / "model.safetensors")
        checkpoint = Checkpoint(
            path=path,
            model=model,
            optimizer=load_file(path / "optimizer.safetensors"),
            state=json.loads((path / "state.json").read_text(encoding="utf-8")),
            config=(path / "config.yaml").read_text(encoding="utf-8"),
        )
        settings = yaml.safe_load(checkpoint.config)
    except (OSError, ValueError, SafetensorError, yaml.YAMLError) as error:  # ValueError: no JSON, or no text
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: not a whole checkpoint: {error}") from None
    if not isinstance(checkpoint.state, dict) or checkpoint.state.get("step") != step:
        raise CheckpointError(f"{path}: damaged: state.json is not of step {step}, as {_MANIFEST} says")
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path}: damaged: config.yaml holds no settings")
    broken = [name for name, tensor in model.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(f"{path}: NaN or infinite values in {', '.join(broken[:10])}")
    return checkpoint


def _verify(path: Path) -> int:
    """Compare a checkpoint's files with its manifest; returns the step that it says.

    Raises:
        CheckpointError: Something is missing or altered, or of a newer schema.
        OSError, ValueError: Something cannot be read.
    """
    manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
    if not isinstance(manifest, dict) or not isinstance(schema := manifest.get("schema"), int):
        raise CheckpointError(f"{path / _MANIFEST}: damaged: no schema in it")
    if schema > SCHEMA:
        raise CheckpointError(f"{path}: written by a newer OpenJEPA (schema {schema}): upgrade")
    digests, step = manifest.get("sha256"), manifest.get("step")
    if (
        schema != SCHEMA
        or not isinstance(step, int)
        or not isinstance(digests, dict)
        or set(digests) != set(_FILES)
    ):
        raise CheckpointError(f"{path / _MANIFEST}: damaged: not what schema {SCHEMA} has")
    for name in _FILES:
        if _digest(path / name) != digests[name]:
            raise CheckpointError(f"{path / name}: damaged: its SHA-256 is not the one in {_MANIFEST}")
    return step


def _stamp(path: Path) -> tuple[tuple[str, int, int], ...]:
    """Names, sizes and times of change of a folder's files: who knows them need not hash the files again."""
    found = ((file.name, file.stat()) for file in sorted(path.iterdir()))
    return tuple((name, status.st_size, status.st_mtime_ns) for name, status in found)


@lru_cache(maxsize=64)
def _is_whole(path: Path, stamp: tuple[tuple[str, int, int], ...]) -> bool:
    """Whether a checkpoint verifies; hashed, and reported if not, once for each stamp in the life of a process."""
    try:
        _verify(path)
    except (OSError, ValueError) as error:
        _log.warning("%s: damaged, not counted among those kept: %s", path, error)
        return False
    return True


def require_space(folder: Path, num_bytes: int) -> None:
    """Refuse to start where not even one checkpoint fits.

    Raises:
        CheckpointError: Less than ``num_bytes`` are free.
    """
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise CheckpointError(
            f"{folder}: a checkpoint needs {num_bytes:,} bytes, {free:,} are free: free some or change --out"
        )


def _disk_full(folder: Path, *parts: Mapping[str, Tensor]) -> CheckpointError:
    needed = sum(tensor.nbytes for part in parts for tensor in part.values())
    free = shutil.disk_usage(folder).free
    return CheckpointError(
        f"{folder}: the disk is full: a checkpoint needs {needed:,} bytes, {free:,} are free. "
        "Earlier checkpoints are untouched; free some space and go on with --resume"
    )


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """Make a file or folder survive a power cut (Windows can't open folders for this and needs not)."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
