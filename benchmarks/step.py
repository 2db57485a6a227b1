"""The training step, timed against the authors' code, side by side.

    python benchmarks/step.py --reference path/to/ijepa --case tiny small base

`--reference` is your own clone of facebookresearch/ijepa (CC BY-NC; nothing of it is here). Each side runs in a
process of its own, so that neither changes the other's memory allocator, and they take turns, step by step. Both
start from the same weights and get the same images and mask indices, drawn by our sampler, and do a whole step:
target pass, context, predictor, loss, backward, AdamW, moving average. That their losses agree is printed too.
Drawing the masks is timed apart. What the columns mean stands in README.md.
"""

import argparse
import copy
import multiprocessing
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from openjepa.allocator import keep_freed_memory
from openjepa.masks import Masks, MaskSampler, make_masks
from openjepa.methods.ijepa import IJEPA, build_ijepa
from openjepa.models.architecture import Architecture
from openjepa.models.transformer import set_attention_path
from openjepa.optim import make_optimizer
from openjepa.runtime import available_cores, fastest_attention
from openjepa.train import Hyperparameters, Objective, train_step

HYPER = Hyperparameters(lr=1e-4, weight_decay=0.05, ema_momentum=0.996)
NUM_TARGETS = 4


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
        return Architecture(
            image_size=(self.image, self.image), patch_size=(self.patch, self.patch), in_channels=3,
            embed_dim=self.width, depth=12, num_heads=self.heads, mlp_ratio=4.0,
            predictor_dim=self.predictor, predictor_depth=6, predictor_heads=self.heads,
        )  # fmt: skip

    @property
    def sampler(self) -> MaskSampler:
        """Our sampler, with as many context patches as the authors' keeps."""
        return make_masks("multiblock", grid=self.architecture.grid, context_fraction=self.context_fraction)

    def masks(self, step: int) -> Masks:
        """Mask indices of one batch."""
        samples = np.arange(self.batch)
        return self.sampler(seed=0, step=step, epochs=np.zeros_like(samples), samples=samples)

    def flops(self, masks: Masks) -> float:
        """Floating-point operations an image: forward on all patches, and three times the trained parts."""

        def blocks(tokens: int, width: int, depth: int) -> float:
            return depth * (24 * tokens * width**2 + 4 * tokens**2 * width)

        num_context, num_target = masks.context.shape[2], masks.target.shape[2]
        trained = blocks(num_context, self.width, 12)
        trained += NUM_TARGETS * blocks(num_context + num_target, self.predictor, 6)
        return blocks((self.image // self.patch) ** 2, self.width, 12) + 3 * trained


# Context sizes near those of the authors' own sampler at these grids and batches (17 % and 26 %).
CASES = {
    "tiny": Case("vit_tiny", 32, 4, 192, 3, 96, 256, 0.17),
    "small": Case("vit_small", 224, 16, 384, 6, 192, 16, 0.26),
    "base": Case("vit_base", 224, 16, 768, 12, 384, 8, 0.26),
}


class Options(NamedTuple):
    """What the command line says about every case."""

    reference: Path
    threads: int
    bfloat16: bool


# ------------------------------------------------------------------------------------------------- the two sides


def ours(
    case: Case, options: Options, images: Tensor, masks: Masks
) -> tuple[Callable[[], float], Callable[[], Any]]:
    """A step as `openjepa pretrain` makes it, and the drawing of its masks."""
    keep_freed_memory()
    fabric = Fabric(accelerator="cpu", devices=1)
    model = build_ijepa(case.architecture)
    num_context, num_target = masks.context.shape[2], masks.target.shape[2]
    shapes = [
        (len(images), num_context, case.width, case.heads),
        (len(images) * NUM_TARGETS, num_context + num_target, case.predictor, case.heads),
    ]
    dtype = torch.bfloat16 if options.bfloat16 else torch.float32
    set_attention_path(model, fastest_attention(shapes, "cpu", dtype))
    objective = Objective(model, bfloat16=options.bfloat16)
    wrapped, optimizer = fabric.setup(objective, make_optimizer(model))
    return lambda: train_step(fabric, wrapped, optimizer, [(images, masks)], hyper=HYPER), lambda: case.masks(
        1
    )


def theirs(
    case: Case, options: Options, images: Tensor, masks: Masks
) -> tuple[Callable[[], float], Callable[[], Any]]:
    """A step in the order of the authors' training script, with their modules, and their mask collator."""
    import logging

    sys.path.insert(0, str(options.reference))
    logging.disable()  # they print their networks
    masking, tensors, log = (
        _import(f"src.{name}") for name in ("masks.utils", "utils.tensors", "utils.logging")
    )
    encoder, predictor, target = _their_networks(case, build_ijepa(case.architecture))
    optimizer, _, schedule, decay_schedule = _import("src.helper").init_opt(
        encoder=encoder, predictor=predictor, iterations_per_epoch=10_000, num_epochs=1, warmup=0, ipe_scale=1.0,
        start_lr=HYPER.lr, ref_lr=HYPER.lr, final_lr=HYPER.lr, wd=HYPER.weight_decay, final_wd=HYPER.weight_decay,
    )  # fmt: skip
    context, targets = (
        [part.contiguous() for part in index.unbind(1)] for index in (masks.context, masks.target)
    )
    autocast = torch.autocast("cpu", torch.bfloat16) if options.bfloat16 else nullcontext()

    def step() -> float:
        schedule.step()
        decay_schedule.step()
        with autocast:
            with torch.no_grad():
                hidden = F.layer_norm(target(images), (case.width,))
                hidden = masking.apply_masks(hidden, targets)
                hidden = tensors.repeat_interleave_batch(hidden, len(images), repeat=len(context))
            loss = F.smooth_l1_loss(predictor(encoder(images, context), context, targets), hidden)
        loss.backward()
        optimizer.step()
        log.grad_logger(encoder.named_parameters())
        optimizer.zero_grad()
        with torch.no_grad():
            for online, average in zip(encoder.parameters(), target.parameters(), strict=True):
                average.data.mul_(HYPER.ema_momentum).add_((1.0 - HYPER.ema_momentum) * online.detach().data)
        return float(loss.detach())

    collator = _import("src.masks.multiblock").MaskCollator(
        input_size=(case.image,) * 2, patch_size=case.patch, enc_mask_scale=(0.85, 1.0), pred_mask_scale=(0.15, 0.2),
        aspect_ratio=(0.75, 1.5), nenc=1, npred=NUM_TARGETS, min_keep=4,
    )  # fmt: skip
    return step, lambda: collator([0] * len(images))


def _their_networks(case: Case, model: IJEPA) -> tuple[Any, Any, Any]:
    """Their encoder, predictor and target encoder, with our starting weights: the names are the same."""
    encoder, predictor = _import("src.helper").init_model(
        device=torch.device("cpu"), patch_size=case.patch, model_name=case.name, crop_size=case.image,
        pred_depth=6, pred_emb_dim=case.predictor,
    )  # fmt: skip
    encoder.load_state_dict(model.context_encoder.state_dict())
    predictor.load_state_dict(model.predictor.state_dict())
    return encoder, predictor, copy.deepcopy(encoder).requires_grad_(False)


# -------------------------------------------------------------------------------------------------- measurement


class Operators(TorchDispatchMode):
    """Seconds spent in each operator, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        start = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        self.seconds[func.overloadpacket.__name__] += time.perf_counter() - start
        return result


def serve(side: str, case: Case, options: Options, parent: Connection) -> None:
    """Be one side: answer `step`, `masks`, `operators` and `memory` until the parent hangs up."""
    torch.set_num_threads(options.threads)
    masks = case.masks(0)
    images = torch.randn(case.batch, 3, case.image, case.image, generator=torch.Generator().manual_seed(0))
    step, draw = {"ours": ours, "theirs": theirs}[side](case, options, images, masks)
    answers: dict[str, Callable[[], Any]] = {
        "step": lambda: timed(step),
        "masks": lambda: timed(draw)[0],
        "operators": lambda: operators(step),
        "memory": peak_memory,
    }
    while (question := parent.recv()) is not None:
        parent.send(answers[question]())


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what it returned."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def operators(step: Callable[[], float]) -> Counter[str]:
    """Seconds in each operator over three steps."""
    with Operators() as counted:
        for _ in range(3):
            step()
    return counted.seconds


def peak_memory() -> float | None:
    """Most memory that this process has held, in GB; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    return (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
    )


def matrix_peak() -> float:
    """FLOP/s of a large float32 product, the best of ten."""
    matrix = torch.randn(2048, 2048)
    return 2 * 2048**3 / min(timed(lambda: matrix @ matrix)[0] for _ in range(10))


def compare(name: str, case: Case, options: Options, *, repeats: int, profile: bool) -> None:
    """Let both sides take turns at one case, and print what came out."""
    context = multiprocessing.get_context("spawn")
    sides: dict[str, Connection] = {}
    for side in ("ours", "theirs"):
        sides[side], child = context.Pipe()
        context.Process(target=serve, args=(side, case, options, child), daemon=True).start()

    def ask(side: str, question: str) -> Any:
        sides[side].send(question)
        return sides[side].recv()

    steps: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    for _ in range(repeats + 1):
        for side in sides:
            steps[side].append(ask(side, "step"))
    masks, peak = case.masks(0), matrix_peak()
    work = case.flops(masks)
    print(f"\n{name}: batch {case.batch}, {options.threads} threads, {masks.context.shape[2]} context and "
          f"{NUM_TARGETS} × {masks.target.shape[2]} target patches, {work / 1e9:.2f} GFLOP an image, "
          f"float32 peak {peak / 1e9:.0f} GFLOP/s\n")  # fmt: skip
    print(
        "| | images/s | of the peak | step, ms (range) | masks, ms | images/s with masks | peak memory, GB |"
    )
    print("|---|---|---|---|---|---|---|")
    rates = []
    for side, measured in steps.items():
        seconds = [one for one, _ in measured[1:]]  # the first is a warm-up
        median, memory = statistics.median(seconds), ask(side, "memory")
        drawing = statistics.median(ask(side, "masks") for _ in range(6))
        rates.append((case.batch / median, case.batch / (median + drawing)))
        print(f"| {side} | {rates[-1][0]:.2f} | {work * rates[-1][0] / peak:.1%} | {median * 1e3:.0f} "
              f"({min(seconds) * 1e3:.0f}–{max(seconds) * 1e3:.0f}) | {drawing * 1e3:.1f} | {rates[-1][1]:.2f} | "
              f"{'–' if memory is None else f'{memory:.2f}'} |")  # fmt: skip
    ratios = sorted(b[0] / a[0] for a, b in zip(steps["ours"][1:], steps["theirs"][1:], strict=True))
    losses = max(abs(a[1] / b[1] - 1) for a, b in zip(*steps.values(), strict=True))
    print(f"\nratio {statistics.median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f}), with masks "
          f"{rates[0][1] / rates[1][1]:.2f}; losses of {repeats + 1} steps agree within {losses:.1e}")  # fmt: skip
    for side in sides if profile else ():
        spent = ask(side, "operators")
        shares = (f"{operator} {seconds / spent.total():.1%}" for operator, seconds in spent.most_common(14))
        print(f"\n{side}, share of the time in each operator: {', '.join(shares)}")
    for connection in sides.values():
        connection.send(None)


def main() -> None:
    """Time the cases asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reference", type=Path, required=True, help="your clone of facebookresearch/ijepa")
    parser.add_argument("--case", choices=CASES, nargs="+", default=list(CASES))
    parser.add_argument("--repeats", type=int, default=7, help="steps of each side, after one to warm up")
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--batch", type=int, help="another batch size")
    parser.add_argument("--bfloat16", action="store_true", help="both sides in bfloat16 autocast")
    parser.add_argument("--profile", action="store_true", help="also print where the time goes")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    options = Options(asked.reference, asked.threads, asked.bfloat16)
    for name in asked.case:
        case = CASES[name]._replace(**({"batch": asked.batch} if asked.batch else {}))
        compare(name, case, options, repeats=asked.repeats, profile=asked.profile)


def _import(name: str) -> Any:
    import importlib

    return importlib.import_module(name)


if __name__ == "__main__":
    main()
