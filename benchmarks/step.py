"""The training step, timed against the authors' code, alternating in one process.

    python benchmarks/step.py --reference path/to/ijepa --case tiny

`--reference` is your own clone of facebookresearch/ijepa (CC BY-NC; nothing of it is here). Both sides get the same
sizes, images and mask indices, drawn by our sampler, and do a whole step in float32: target pass, context, predictor,
loss, backward, AdamW, moving average. Drawing the masks is timed apart.
"""

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from torch.nn import functional as F

from openjepa.masks import Masks, make_masks
from openjepa.methods.ijepa import build_ijepa
from openjepa.models.architecture import Architecture
from openjepa.models.transformer import set_attention_path
from openjepa.optim import make_optimizer
from openjepa.runtime import available_cores, fastest_attention
from openjepa.train import Hyperparameters, Objective, train_step

HYPER = Hyperparameters(lr=1e-3, weight_decay=0.05, ema_momentum=0.996)


class Case(NamedTuple):
    """Sizes of both sides."""

    name: str
    image: int
    patch: int
    width: int
    heads: int
    predictor: int
    batch: int
    context_fraction: float

    @property
    def architecture(self) -> Architecture:
        """Twelve blocks in the encoder, six in the predictor."""
        sides = {"image_size": (self.image,) * 2, "patch_size": (self.patch,) * 2, "in_channels": 3}
        encoder = {"embed_dim": self.width, "depth": 12, "num_heads": self.heads, "mlp_ratio": 4.0}
        predictor = {"predictor_dim": self.predictor, "predictor_depth": 6, "predictor_heads": self.heads}
        return Architecture(**sides, **encoder, **predictor)  # type: ignore[arg-type]


# Context sizes near those of the authors' own sampler at these grids and batches (17 % and 26 %).
CASES = {
    "tiny": Case("vit_tiny", 32, 4, 192, 3, 96, 256, 0.17),
    "small": Case("vit_small", 224, 16, 384, 6, 192, 16, 0.26),
    "base": Case("vit_base", 224, 16, 768, 12, 384, 8, 0.26),
}


def ours(case: Case, images: torch.Tensor, masks: Masks) -> Callable[[], float]:
    """A step as `openjepa pretrain` makes it."""
    fabric = Fabric(accelerator="cpu", devices=1)
    model = build_ijepa(case.architecture)
    shapes = [
        (len(images), masks.context.shape[2], case.width, case.heads),
        (len(images) * 4, masks.context.shape[2] + masks.target.shape[2], case.predictor, case.heads),
    ]
    set_attention_path(model, fastest_attention(shapes, "cpu", torch.float32))
    objective, optimizer = fabric.setup(Objective(model), make_optimizer(model))
    return lambda: train_step(fabric, objective, optimizer, [(images, masks)], hyper=HYPER)


def theirs(case: Case, images: torch.Tensor, masks: Masks, clone: Path) -> Callable[[], float]:
    """A step in the order of the authors' training script, with their modules."""
    sys.path.insert(0, str(clone))
    helper, masking, tensors = _import("src.helper"), _import("src.masks.utils"), _import("src.utils.tensors")
    encoder, predictor = helper.init_model(
        device=torch.device("cpu"),
        patch_size=case.patch,
        model_name=case.name,
        crop_size=case.image,
        pred_depth=6,
        pred_emb_dim=case.predictor,
    )
    target = copy.deepcopy(encoder).requires_grad_(False)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *predictor.parameters()], lr=1e-3)
    context, targets = list(masks.context.unbind(1)), list(masks.target.unbind(1))

    def step() -> float:
        with torch.no_grad():
            hidden = F.layer_norm(target(images), (case.width,))
            hidden = masking.apply_masks(hidden, targets)
            hidden = tensors.repeat_interleave_batch(hidden, len(images), repeat=len(context))
        loss = F.smooth_l1_loss(predictor(encoder(images, context), context, targets), hidden)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for online, average in zip(encoder.parameters(), target.parameters(), strict=True):
                average.mul_(0.996).add_(0.004 * online)
        return float(loss)

    return step


def flops(case: Case, num_context: int, num_target: int) -> float:
    """Floating-point operations an image: forward on all patches, and three times the trained parts."""

    def blocks(tokens: int, width: int, depth: int) -> float:
        return depth * (24 * tokens * width**2 + 4 * tokens**2 * width)

    num_patches = (case.image // case.patch) ** 2
    trained = blocks(num_context, case.width, 12) + 4 * blocks(num_context + num_target, case.predictor, 6)
    return blocks(num_patches, case.width, 12) + 3 * trained


def matrix_peak() -> float:
    """FLOP/s of a large float32 product, the best of ten."""
    matrix = torch.randn(2048, 2048)
    return 2 * 2048**3 / min(_seconds(lambda: matrix @ matrix) for _ in range(10))


def main() -> None:
    """Time one case and print a table row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reference", type=Path, required=True, help="your clone of facebookresearch/ijepa")
    parser.add_argument("--case", choices=CASES, default="tiny")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=available_cores())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    case = CASES[options.case]
    sampler = make_masks("multiblock", grid=case.architecture.grid, context_fraction=case.context_fraction)
    samples = np.arange(case.batch)
    masks = sampler(seed=0, step=0, epochs=np.zeros_like(samples), samples=samples)
    torch.manual_seed(0)
    images = torch.randn(case.batch, 3, case.image, case.image)
    sides = {"ours": ours(case, images, masks), "theirs": theirs(case, images, masks, options.reference)}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(options.repeats + 1):
        for name, step in sides.items():
            seconds = _seconds(step)
            if turn:  # the first is a warm-up
                times[name].append(seconds)
    collator = _import("src.masks.multiblock").MaskCollator(
        input_size=(case.image,) * 2, patch_size=case.patch, enc_mask_scale=(0.85, 1.0), pred_mask_scale=(0.15, 0.2),
        aspect_ratio=(0.75, 1.5), nenc=1, npred=4, min_keep=4,
    )  # fmt: skip
    drawing = {
        "ours": lambda: sampler(seed=0, step=1, epochs=np.zeros_like(samples), samples=samples),
        "theirs": lambda: collator([torch.zeros(1)] * case.batch),
    }
    peak, work = matrix_peak(), flops(case, masks.context.shape[2], masks.target.shape[2])
    print(
        f"{options.case}: batch {case.batch}, {options.threads} threads, {masks.context.shape[2]} context and"
    )
    print(
        f"4 × {masks.target.shape[2]} target patches, {work / 1e9:.2f} GFLOP an image, {peak / 1e9:.0f} GFLOP/s"
    )
    for name, measured in times.items():
        median = statistics.median(measured)
        drawn = statistics.median(_seconds(drawing[name]) for _ in range(5))
        print(f"{name:7} {case.batch / median:8.2f} images/s   {work * case.batch / median / peak:5.1%} of the peak   "
              f"step {median * 1e3:.0f} ms ({min(measured) * 1e3:.0f}-{max(measured) * 1e3:.0f})   "
              f"masks {drawn * 1e3:.1f} ms")  # fmt: skip
    ratios = [theirs / ours for ours, theirs in zip(times["ours"], times["theirs"], strict=True)]
    print(f"ratio   {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _import(name: str) -> Any:
    import importlib

    return importlib.import_module(name)


if __name__ == "__main__":
    main()
