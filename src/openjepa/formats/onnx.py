"""The encoder for other runtimes: ONNX, and `torch.export`. Images in, patch features and their mean out.

    encoder.onnx · encoder.pt2

Inputs and outputs: `images` (B, c, H, W) float32, normalised -> `patches` (B, N, D) and `embedding` (B, D), any B.
"""

import copy
import json
import warnings
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from openjepa.data.preprocess import Preprocess
from openjepa.errors import UserError
from openjepa.models.vit import VisionTransformer

TOLERANCE = 1e-5
"""Largest difference from PyTorch, over the largest feature."""


class PatchesAndMean(nn.Module):
    """An encoder with two outputs."""

    def __init__(self, encoder: VisionTransformer) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, c, H, W) -> (B, N, D), (B, D)."""
        patches = self.encoder(images)
        return patches, patches.mean(dim=1)


def _facts(preprocess: Preprocess, which: str) -> str:
    """What files say under the name `openjepa`: which encoder, and how images are prepared; JSON."""
    return json.dumps({"encoder": which, "preprocess": asdict(preprocess)})


def write_program(
    path: Path, encoder: VisionTransformer, preprocess: Preprocess, *, which: str
) -> torch.export.ExportedProgram:
    """Write what `torch.export.load` reads; its extra file `openjepa` holds the facts."""
    model = PatchesAndMean(copy.deepcopy(encoder).cpu().float().requires_grad_(False).eval())
    images = torch.zeros(2, preprocess.channels, *preprocess.image_size)
    program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, path, extra_files={"openjepa": _facts(preprocess, which)})
    return program


def write_onnx(
    path: Path, program: torch.export.ExportedProgram, preprocess: Preprocess, *, which: str
) -> None:
    """Write an ONNX file of what `write_program` gave.

    Args:
        path: The file.
        program: The encoder.
        preprocess: How images are prepared, for the file's metadata.
        which: `target` or `context`, for the metadata.

    Raises:
        UserError: onnxscript is missing.
    """
    try:
        import onnxscript  # noqa: F401  (what torch.onnx writes with)
    except ImportError:
        raise UserError("--to onnx needs onnxscript and onnxruntime: pip install 'openjepa[onnx]'") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own deprecations
        made = torch.onnx.export(
            program, input_names=["images"], output_names=["patches", "embedding"], dynamo=True, verbose=False
        )
    assert made is not None
    made.model.metadata_props["openjepa"] = _facts(preprocess, which)
    made.save(str(path), external_data=_is_large(program))


def check_onnx(path: Path, encoder: VisionTransformer, preprocess: Preprocess) -> float:
    """Largest difference from PyTorch in onnxruntime, over the largest feature, for batches of one and of three.

    Raises:
        UserError: onnxruntime is missing, or the difference is too large.
    """
    try:
        import onnxruntime
    except ImportError:
        raise UserError("--to onnx is checked in onnxruntime: pip install 'openjepa[onnx]'") from None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    generator, worst = torch.Generator().manual_seed(0), 0.0
    for num in (1, 3):
        images = torch.randn(num, preprocess.channels, *preprocess.image_size, generator=generator)
        with torch.no_grad():
            expected = PatchesAndMean(encoder)(images)
        found = session.run(["patches", "embedding"], {"images": images.numpy()})
        for ours, theirs in zip(expected, found, strict=True):
            worst = max(worst, float(np.abs(ours.numpy() - theirs).max() / ours.abs().max()))
    if not worst <= TOLERANCE:
        raise UserError(
            f"{path}: onnxruntime's features differ from PyTorch's by {worst:.1e} (at most {TOLERANCE})"
        )
    return worst


def _is_large(program: torch.export.ExportedProgram) -> bool:
    """Whether weights have to lie beside the file: one is at most 2 GB."""
    return sum(tensor.nbytes for tensor in program.state_dict.values()) > 1.8e9
