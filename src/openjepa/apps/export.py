"""`openjepa export CKPT --to hf|timm|onnx|reference --out DIR`: an encoder for other libraries, and checked.

openjepa export runs/photos --to hf --out photos-hf          # transformers.AutoModel.from_pretrained("photos-hf")
openjepa export runs/photos --to timm --out photos-timm      # timm.create_model("local-dir:photos-timm")
"""

import logging
from pathlib import Path

import torch
import yaml
from torch import Tensor

from openjepa.errors import CheckpointError, UserError
from openjepa.evals.heads import load_head
from openjepa.formats.folder import whole_folder
from openjepa.formats.huggingface import huggingface_config, read_huggingface, write_huggingface
from openjepa.formats.onnx import check_onnx, write_onnx, write_program
from openjepa.formats.reference import Training, read_reference, read_training, write_reference
from openjepa.formats.timm import write_timm
from openjepa.hub import exported, load, open_checkpoint, weights_hash
from openjepa.methods import IJEPA, Method
from openjepa.models.vit import VisionTransformer
from openjepa.overwrite import check_export
from openjepa.settings import load_config

_log = logging.getLogger(__name__)
KINDS = ("hf", "timm", "onnx", "reference")
REFERENCE = "jepa-latest.pth.tar"
"""As the authors' code names it."""


def export(
    checkpoint: str | Path,
    *,
    to: str,
    out: str | Path,
    encoder: str = "target",
    head: str | Path | None = None,
    num_heads: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Write an encoder as another library keeps it.

    Args:
        checkpoint: What `openjepa.load` takes.
        to: `hf`, a folder of transformers' `IJepaModel` with the predictor beside it; `timm`, a folder that
            `timm.create_model("local-dir:…")` opens; `onnx`, `encoder.onnx` and, for `torch.export.load`,
            `encoder.pt2`; `reference`, the authors' `.pth.tar`, with their optimiser's moments where the run had it.
        out: The folder to make.
        encoder: `target`, as the paper, or `context`. The authors' file holds both.
        head: Folder of `evaluate --save-head`, with `hf`: the model is then an `IJepaForImageClassification`.
        num_heads: Attention heads, where the checkpoint does not say.
        overwrite: Replace the export at ``out``; any other folder, or one with the checkpoint in it, is refused.

    Returns:
        ``out``.

    Raises:
        UserError: A mistake in options or checkpoint, or a library that is missing; the message says what to do.
    """
    out = Path(out)
    if to not in KINDS:
        raise UserError(f"--to {to!r}: expected {', '.join(KINDS)}")
    if encoder not in ("target", "context"):
        raise UserError(f"--encoder {encoder!r}: expected target or context")
    if head is not None and to != "hf":
        raise UserError(f"--head goes with --to hf, not with --to {to}")
    sources = {"CHECKPOINT": checkpoint, "--head": head}
    if overwrite:
        check_export(out, sources=sources)
    model = load(checkpoint, num_heads=num_heads)
    with whole_folder(out, overwrite=overwrite, sources=sources) as folder:
        if to == "hf":
            _to_huggingface(model, folder, encoder, None if head is None else Path(head), str(checkpoint))
        elif to == "timm":
            write_timm(folder, exported(model, encoder=encoder))
        elif to == "onnx":
            _to_onnx(model, folder, encoder)
        else:
            _to_reference(model, folder, checkpoint)
    which = "both encoders" if to == "reference" else f"the {encoder} encoder"
    _log.info("%s: %s of %s, for %s", out, which, checkpoint, to)
    return out


def _network(model: Method, encoder: str) -> VisionTransformer:
    return model.target_encoder if encoder == "target" else model.context_encoder


def _to_huggingface(model: Method, folder: Path, encoder: str, head: Path | None, name: str) -> None:
    network, content = _network(model, encoder), exported(model, encoder=encoder)
    config = huggingface_config(network)
    weights, classes = _head(head, network, name)
    write_huggingface(
        folder, content, config, head=weights, classes=classes,
        card=_card(name, network, encoder, classifier=bool(classes)),
    )  # fmt: skip
    back = read_huggingface(folder)
    if any(not torch.equal(tensor, content.encoder[key]) for key, tensor in back.encoder.items()):
        raise CheckpointError(f"{folder}: what was written is not what was meant: a disk's error?")


def _head(
    folder: Path | None, network: VisionTransformer, name: str
) -> tuple[tuple[Tensor, Tensor] | None, list[str]]:
    """Weight and bias of a saved head, and its classes."""
    if folder is None:
        return None, []
    head, facts = load_head(folder)
    if facts.weights_sha256 != weights_hash(network):
        raise CheckpointError(
            f"--head {folder}: fitted on the {facts.encoder} encoder of {facts.checkpoint}, whose weights are others "
            f"than those that are exported of {name}"
        )
    if facts.pooling != "mean":
        raise UserError(
            f"--head {folder}: sees the patches pooled by {facts.pooling}, and IJepaForImageClassification their mean: "
            "fit one with openjepa evaluate … --protocols logistic --save-head"
        )
    if head.num_layers != 1:
        raise UserError(
            f"--head {folder}: sees the last {head.num_layers} layers, and IJepaForImageClassification the last one "
            "alone: fit one with openjepa evaluate … --protocols linear --set linear.layers=1 --save-head"
        )
    return (head.weight, head.bias), facts.classes


def _to_onnx(model: Method, folder: Path, encoder: str) -> None:
    network, preprocess = _network(model, encoder), exported(model).preprocess
    program = write_program(folder / "encoder.pt2", network, preprocess, which=encoder)
    write_onnx(folder / "encoder.onnx", program, preprocess, which=encoder)
    worst = check_onnx(folder / "encoder.onnx", network, preprocess)
    _log.info("onnxruntime's features differ from PyTorch's by %.1e of the largest", worst)


def _to_reference(model: Method, folder: Path, checkpoint: str | Path) -> None:
    if not isinstance(model, IJEPA):
        raise UserError(
            f"--to reference: {checkpoint} is of another method than I-JEPA: use --to hf, timm or onnx"
        )
    rows, columns = model.shape.grid
    if rows != columns:
        raise UserError(
            f"--to reference: {checkpoint} has {rows} × {columns} patches, and the authors' file does not say so: "
            "it would be read as a square. Use --to timm or onnx"
        )
    path = folder / REFERENCE
    write_reference(path, model.state_dict(), _training(Path(checkpoint)))
    read_reference(path, num_heads=model.shape.num_heads)


def _training(source: Path) -> Training:
    """How far a checkpoint's run is; its optimiser where it is AdamW alone, as the authors'."""
    if source.name.endswith(".pth.tar"):
        return read_training(source)
    try:
        saved = open_checkpoint(source)
    except CheckpointError:  # an export: weights alone
        return Training()
    batch_size = load_config(yaml.safe_load(saved.config)).data.batch_size
    epoch = saved.state["step"] * batch_size // max(1, saved.state.get("num_images", 0))
    alone = "exp_avg.context_encoder.blocks.0.attn.qkv.weight" in saved.optimizer
    return Training(optimizer=saved.optimizer if alone else None, epoch=epoch, batch_size=batch_size)


def _card(name: str, network: VisionTransformer, encoder: str, *, classifier: bool) -> str:
    rows, columns = network.grid
    height, width = network.patch_embed.patch_size
    kind = "AutoModelForImageClassification" if classifier else "AutoModel"
    task = "image-classification" if classifier else "image-feature-extraction"
    return f"""---
library_name: transformers
pipeline_tag: {task}
tags: [ijepa, openjepa]
---

# I-JEPA encoder

The {encoder} encoder of `{name}`, trained with OpenJEPA: ViT {network.embed_dim} wide, {len(network.blocks)} deep,
{network.num_heads} heads, images of {rows * height} × {columns * width} px in patches of {height} × {width}.

```python
from transformers import {kind}, AutoImageProcessor

model = {kind}.from_pretrained("FOLDER")
inputs = AutoImageProcessor.from_pretrained("FOLDER")(image, return_tensors="pt")
outputs = model(**inputs)  # features of an image: outputs.last_hidden_state.mean(1)
```

With the predictor, which has no home in transformers: `openjepa.load("FOLDER")`.
"""
