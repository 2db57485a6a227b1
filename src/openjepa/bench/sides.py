"""The two sides of the step benchmark, each to run in a process of its own: our training step, and the authors'.

The authors' modules are imported from the user's own clone of facebookresearch/ijepa (CC BY-NC); nothing of it is here.
"""

import copy
import importlib
import logging
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from openjepa.allocator import keep_freed_memory
from openjepa.bench.turns import Answers, peak_memory, timed
from openjepa.data.builtin import ArraySource
from openjepa.data.dataset import ImageDataset
from openjepa.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, normalise
from openjepa.masks import Masks, MaskSampler, make_masks
from openjepa.methods.ijepa import IJEPA, build_ijepa
from openjepa.models.architecture import Architecture
from openjepa.models.transformer import set_attention_path
from openjepa.optim import make_optimizers
from openjepa.runtime import fastest_attention
from openjepa.train import Hyperparameters, Objective, Part, train_step

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
    depth: int = 12
    predictor_depth: int = 6

    @property
    def architecture(self) -> Architecture:
        """The networks of both sides; the predictor has as many heads as the encoder."""
        return Architecture(
            image_size=(self.image, self.image), patch_size=(self.patch, self.patch), in_channels=3,
            embed_dim=self.width, depth=self.depth, num_heads=self.heads, mlp_ratio=4.0,
            predictor_dim=self.predictor, predictor_depth=self.predictor_depth, predictor_heads=self.heads,
        )  # fmt: skip

    @property
    def sampler(self) -> MaskSampler:
        """Our sampler, with as many context patches as the authors' keeps."""
        return make_masks("multiblock", grid=self.architecture.grid, context_fraction=self.context_fraction)

    def masks(self, step: int) -> Masks:
        """Mask indices of one batch."""
        samples = np.arange(self.batch)
        return self.sampler(seed=0, step=step, epochs=np.zeros_like(samples), samples=samples)

    def pixels(self) -> NDArray[np.uint8]:
        """A batch of noise, a quarter larger than the views."""
        side = self.image * 5 // 4
        return np.random.default_rng(0).integers(0, 256, (self.batch, side, side, 3), dtype=np.uint8)

    def flops(self, masks: Masks) -> float:
        """Floating-point operations an image: forward on all patches, and three times the trained parts."""

        def blocks(tokens: int, width: int, depth: int) -> float:
            return depth * (24 * tokens * width**2 + 4 * tokens**2 * width)

        num_context, num_target = masks.context.shape[2], masks.target.shape[2]
        trained = blocks(num_context, self.width, self.depth)
        trained += NUM_TARGETS * blocks(num_context + num_target, self.predictor, self.predictor_depth)
        return blocks((self.image // self.patch) ** 2, self.width, self.depth) + 3 * trained


# Context sizes near those of the authors' own sampler at these grids and batches (17 % and 26 %).
CASES = {
    "tiny": Case("vit_tiny", 32, 4, 192, 3, 96, 256, 0.17),
    "small": Case("vit_small", 224, 16, 384, 6, 192, 16, 0.26),
    "base": Case("vit_base", 224, 16, 768, 12, 384, 8, 0.26),
}


class Options(NamedTuple):
    """What the command line says about every case."""

    reference: Path | None
    threads: int
    bfloat16: bool


class Side(NamedTuple):
    """What is timed of one side."""

    step: Callable[[], float]
    """A training step; returns its loss."""
    draw: Callable[[], Any]
    """The drawing of its masks."""
    view: Callable[[], Any] | None
    """The crops of a batch of pixels in memory, normalised; None where what theirs needs is not installed."""
    state_bytes: int
    """Of weights, gradients and moments."""
    phases: dict[str, tuple[Any, str]]
    """Parts of the step: each an object, and its method that does the part."""


def ours(case: Case, options: Options, images: Tensor, masks: Masks, *, shared_context: bool = False) -> Side:
    """A step as `openjepa pretrain` makes it."""
    keep_freed_memory()
    fabric = Fabric(accelerator="cpu", devices=1)
    model = build_ijepa(replace(case.architecture, shared_context=shared_context))
    num_context, num_target = masks.context.shape[2], masks.target.shape[2]
    shapes = [
        (len(images), num_context, case.width, case.heads),
        (len(images) * NUM_TARGETS, num_context + num_target, case.predictor, case.heads),
    ]
    dtype = torch.bfloat16 if options.bfloat16 else torch.float32
    set_attention_path(model, fastest_attention(shapes, "cpu", dtype))
    (adamw,) = make_optimizers(model)
    wrapped, optimizer = fabric.setup(Objective(model, bfloat16=options.bfloat16), adamw)

    def step() -> float:
        return train_step(fabric, wrapped, [optimizer], [Part(images, masks)], hyper=HYPER)

    phases: dict[str, tuple[Any, str]] = {
        "target": (model, "encode_targets"),
        "context": (model, "encode_context"),
        "predictor": (model.predictor, "answer"),
        "backward": (Tensor, "backward"),
        "optimiser": (optimizer, "step"),
        "moving average": (model, "update_target"),
    }
    pixels = ArraySource("pixels", case.pixels(), np.zeros(case.batch, np.int64), ("",), "")
    dataset = ImageDataset(pixels, image_size=(case.image, case.image))

    def view() -> Tensor:
        batch = dataset.batch(np.arange(case.batch), 0, 0)
        return normalise(batch.images, mean=IMAGENET_MEAN, std=IMAGENET_STD)

    return Side(step, lambda: case.masks(1), view, _state_bytes(model), phases)


def theirs(case: Case, options: Options, images: Tensor, masks: Masks) -> Side:
    """A step with the authors' modules, in the order of their training script, and their mask collator."""
    sys.path.insert(0, str(options.reference))
    logging.disable()  # they print their networks
    masking, tensors, log = (
        _import(f"src.{name}") for name in ("masks.utils", "utils.tensors", "utils.logging")
    )
    model = build_ijepa(case.architecture)
    state = _state_bytes(model)
    encoder, predictor, target = _their_networks(case, model)
    del model
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
                newest = online * (1 - HYPER.ema_momentum)
                average.mul_(HYPER.ema_momentum)
                average.add_(newest)
        return loss.item()

    collator = _import("src.masks.multiblock").MaskCollator(
        input_size=(case.image,) * 2, patch_size=case.patch, enc_mask_scale=(0.85, 1.0), pred_mask_scale=(0.15, 0.2),
        aspect_ratio=(0.75, 1.5), nenc=1, npred=NUM_TARGETS, min_keep=4,
    )  # fmt: skip
    phases: dict[str, tuple[Any, str]] = {
        "target": (target, "forward"),
        "context": (encoder, "forward"),
        "predictor": (predictor, "forward"),
        "backward": (Tensor, "backward"),
        "optimiser": (optimizer, "step"),
    }
    return Side(step, lambda: collator([0] * len(images)), _their_view(case), state, phases)


def _their_view(case: Case) -> Callable[[], Any] | None:
    """Their transform, an image after another; None without torchvision."""
    try:
        transform = _import("src.transforms").make_transforms(crop_size=case.image, crop_scale=(0.3, 1.0))
    except ModuleNotFoundError:
        return None
    pixels = [Image.fromarray(image) for image in case.pixels()]
    return lambda: torch.stack([transform(image) for image in pixels])


def _their_networks(case: Case, model: IJEPA) -> tuple[Any, Any, Any]:
    """Their encoder, predictor and target encoder, with our starting weights: the names are the same."""
    encoder, predictor = _import("src.helper").init_model(
        device=torch.device("cpu"), patch_size=case.patch, model_name=case.name, crop_size=case.image,
        pred_depth=case.predictor_depth, pred_emb_dim=case.predictor,
    )  # fmt: skip
    encoder.load_state_dict(model.context_encoder.state_dict())
    predictor.load_state_dict(model.predictor.state_dict())
    return encoder, predictor, copy.deepcopy(encoder).requires_grad_(False)


def _state_bytes(model: IJEPA) -> int:
    """Weights of three networks, and gradients and two moments of the two that are trained, in float32."""
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    return 4 * (counts["target_encoder"] + 4 * (counts["context_encoder"] + counts["predictor"]))


SIDES: dict[str, Callable[[Case, Options, Tensor, Masks], Side]] = {
    "ours": ours,
    "ours, shared context": partial(ours, shared_context=True),
    "theirs": theirs,
}


class Operators(TorchDispatchMode):
    """Seconds spent in each operator, by name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seconds: dict[str, float] = defaultdict(float)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        start = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        self.seconds[func.overloadpacket.__name__] += time.perf_counter() - start
        return result


def make_side(side: str, case: Case, options: Options) -> Answers:
    """One side of the match, in the process that calls this."""
    torch.set_num_threads(options.threads)
    masks = case.masks(0)
    images = torch.randn(case.batch, 3, case.image, case.image, generator=torch.Generator().manual_seed(0))
    before = peak_memory()
    made = SIDES[side](case, options, images, masks)
    return {
        "step": lambda: timed(made.step),
        "masks": lambda: timed(made.draw)[0],
        "data": lambda: timed(made.view)[0] if made.view else None,
        "phases": lambda: phases(made),
        "operators": lambda: operators(made.step),
        "memory": lambda: (before and peak_memory() - before - made.state_bytes, peak_memory()),
    }


def phases(side: Side) -> dict[str, float]:
    """Seconds in each part of the step over three steps, with the rest (loss, moving average, bookkeeping)."""
    spent: dict[str, float] = defaultdict(float)
    with ExitStack() as patches:
        for name, (owner, method) in side.phases.items():
            original = getattr(owner, method)

            def measured(*args: Any, name: str = name, original: Any = original, **kwargs: Any) -> Any:
                seconds, result = timed(partial(original, *args, **kwargs))
                spent[name] += seconds
                return result

            patches.enter_context(mock.patch.object(owner, method, measured))
        total, _ = timed(lambda: [side.step() for _ in range(3)])
    return {**spent, "the rest": total - sum(spent.values())}


def operators(step: Callable[[], float]) -> dict[str, float]:
    """Seconds in each operator over three steps."""
    with Operators() as counted:
        for _ in range(3):
            step()
    return dict(counted.seconds)


def _import(name: str) -> Any:
    return importlib.import_module(name)
