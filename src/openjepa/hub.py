"""`openjepa.load`: a checkpoint of any kind becomes a model that knows how its images are prepared."""

import hashlib
import logging
from pathlib import Path
from typing import Any, get_args

import torch
import yaml
from torch import Tensor

from openjepa import checkpoint
from openjepa.config import Config
from openjepa.data.preprocess import Preprocess
from openjepa.errors import CheckpointError, UserError
from openjepa.formats.exported import Exported
from openjepa.formats.huggingface import is_huggingface, read_huggingface
from openjepa.formats.reference import read_reference
from openjepa.formats.timm import is_timm, read_timm
from openjepa.methods import IJEPA, Method, build
from openjepa.methods.losses import Loss
from openjepa.methods.method import TargetNorm
from openjepa.models.architecture import Architecture, architecture_of
from openjepa.settings import load_config
from openjepa.shipped import shipped_names, shipped_path, unpacked

_log = logging.getLogger(__name__)
_HUB = "hf://"
_HUB_FILES = ["*.json", "*.safetensors"]


def load(source: str | Path, num_heads: int | None = None) -> Method:
    """Load a model: float32, on the CPU, in eval mode; gradients on but for the target encoder.

    Args:
        source: A run folder (its newest whole checkpoint), a checkpoint folder, a folder of transformers' `IJepaModel`
            or of timm (`openjepa export`), the authors' `.pth.tar`, `hf://org/name[@revision]`, or, where no such path
            exists, the name of a model that comes with the package (`openjepa.shipped`).
        num_heads: Attention heads, where the file does not say and the width was never published.

    Returns:
        The model; ``model.preprocess`` prepares an image as in pretraining.

    Raises:
        CheckpointError: Missing or damaged files, another architecture, or unknown heads.
    """
    if str(source).startswith(_HUB):
        return model_of_export(fetch(str(source).removeprefix(_HUB)), num_heads=num_heads)
    path = Path(source).expanduser()
    if not path.exists():
        path = shipped_path(str(source)) or path
    if path.name.endswith((".pth.tar", ".pth", ".pt")):
        architecture, state = read_reference(path, num_heads=num_heads)
        model = build("ijepa", architecture, loss="smooth_l1", target_norm="layer")
        model.preprocess = Preprocess.imagenet(architecture.image_size, architecture.in_channels)
        load_weights(model, state, path)
        return model.eval()
    if is_huggingface(path) or is_timm(path):
        return model_of_export(path, num_heads=num_heads)
    saved = open_checkpoint(path)
    config = load_config(yaml.safe_load(saved.config))
    if num_heads is not None and num_heads != architecture_of(config).num_heads:
        raise CheckpointError(
            f"{saved.path}: recorded with {architecture_of(config).num_heads} heads, --num-heads says {num_heads}"
        )
    model = model_of(config)
    load_weights(model, unpacked(saved, like=model.state_dict()), saved.path)
    return model.eval()


def fetch(name: str, **options: Any) -> Path:
    """A model of the Hugging Face hub, in its cache folder.

    Args:
        name: `org/name`, or `org/name@revision`.
        **options: As `huggingface_hub.snapshot_download` takes.

    Raises:
        UserError: huggingface_hub is missing.
        CheckpointError: It can't be fetched.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise UserError(f"{_HUB}{name} needs huggingface_hub: pip install 'openjepa[hf]'") from None
    repository, _, revision = name.partition("@")
    options = {"revision": revision or None, **options}
    try:
        return Path(snapshot_download(repository, allow_patterns=_HUB_FILES, **options))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise CheckpointError(f"{_HUB}{name}: can't be fetched: {error}") from None


def model_of_export(folder: Path, *, num_heads: int | None = None) -> IJEPA:
    """The model in a folder of transformers or timm: its one encoder is context and target encoder.

    Raises:
        CheckpointError: As `read_huggingface` and `read_timm`; or tensors of another architecture.
    """
    read = read_timm if is_timm(folder) else read_huggingface
    found = read(folder, num_heads=num_heads)
    if not found.predictor:
        _log.warning("%s: no predictor in it; the one you get is new, with random weights", folder)
    loss, norm = _known(found)
    encoder, predictor = found.architecture.build(seed=0)
    model = IJEPA(encoder, predictor, loss=loss, target_norm=norm)
    model.architecture, model.preprocess = found.architecture, found.preprocess
    state = {f"{part}.{name}": tensor for part in ("context_encoder", "target_encoder")
             for name, tensor in found.encoder.items()}  # fmt: skip
    state |= {
        f"predictor.{name}": tensor for name, tensor in (found.predictor or predictor.state_dict()).items()
    }
    load_weights(model, state, folder)
    return model.eval()


def _known(found: Exported) -> tuple[Loss, TargetNorm]:
    """Loss and normalisation of targets; of a version that knew others, the authors'."""
    loss = found.loss if found.loss in get_args(Loss) else "smooth_l1"
    norm = found.target_norm if found.target_norm in get_args(TargetNorm) else "layer"
    return loss, norm  # type: ignore[return-value]


def exported(model: Method, *, encoder: str = "target") -> Exported:
    """A model as an export holds it.

    Args:
        model: What `load` gave.
        encoder: `target`, what features are taken from, or `context`.
    """
    assert isinstance(model.preprocess, Preprocess)
    network = model.target_encoder if encoder == "target" else model.context_encoder
    predictor = model.predictor.state_dict() if isinstance(model, IJEPA) else {}
    return Exported(
        architecture=model.shape, encoder=network.state_dict(), predictor=predictor, preprocess=model.preprocess,
        which=encoder, loss=model.loss, target_norm=model.target_norm,
    )  # fmt: skip


def open_checkpoint(path: Path) -> checkpoint.Checkpoint:
    """The checkpoint at a run folder or a checkpoint folder.

    Raises:
        CheckpointError: There is none, or it is damaged.
    """
    if (path / "manifest.json").is_file():
        return checkpoint.load(path)
    saved = checkpoint.load_latest(path / "checkpoints")
    if saved is None:
        what = "no checkpoint in it" if path.exists() else "no such file or folder"
        raise CheckpointError(
            f"{path.absolute()}: {what}; expected a run folder, a checkpoint folder, an export, a .pth.tar or "
            f"one of the models that come with the package ({', '.join(shipped_names()) or 'none here'})"
        )
    return saved


def model_of(config: Config) -> Method:
    """A new model as the configuration says, its weights drawn from the run's seed."""
    objective = config.objective
    model = build(
        config.method,
        architecture_of(config),
        loss=objective.loss,
        target_norm=objective.target_norm,
        seed=config.seed,
    )
    model.temperature = objective.temperature
    if isinstance(model, IJEPA) and objective.pixel_share:
        model.ask_for_pixels(objective.pixel_share, seed=config.seed)
    if isinstance(model, IJEPA) and objective.whole_weight:
        model.ask_for_the_whole(objective.whole_weight, seed=config.seed)
    if isinstance(model, IJEPA) and config.ema.generations:
        model.renew_teacher()
    model.preprocess = Preprocess.of(config.data)
    return model


def load_weights(model: torch.nn.Module, state: dict[str, Tensor], where: Path) -> None:
    """Copy tensors into a model, strictly.

    Raises:
        CheckpointError: Missing, unexpected or differently shaped tensors, listed with both shapes.
    """
    ours = model.state_dict()
    missing, extra = sorted(ours.keys() - state.keys()), sorted(state.keys() - ours.keys())
    wrong = [
        f"  {name}: expected {tuple(ours[name].shape)}, found {tuple(state[name].shape)}"
        for name in ours
        if name in state and ours[name].shape != state[name].shape
    ]
    if missing or extra or wrong:
        lines = [f"{where}: its tensors are not those of this architecture"]
        lines += [f"  missing: {', '.join(missing[:10])}"] * bool(missing)
        lines += [f"  unexpected: {', '.join(extra[:10])}"] * bool(extra)
        raise CheckpointError("\n".join(lines + wrong[:10]))
    model.load_state_dict(state)


def weights_hash(module: torch.nn.Module) -> str:
    """SHA-256 over the names, types, shapes and bytes of a module's tensors: which weights made a result."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def describe(model: Method, architecture: Architecture) -> dict[str, Any]:
    """Sizes and parameter counts of a model, for logs."""
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    return {**architecture.as_dict(), "parameters": count}
