"""Fine-tuning: the encoder and a linear head, trained on labelled images; or the same from scratch, to compare with.

The paper's recipe (appendix A.1): AdamW with layer-wise decay of the learning rate, RandAugment, mixup, cutmix, label
smoothing, drop-path. Augmentations are torchvision's. What torch draws here does not change the global generator.

Shapes: B images of a batch, N patches, D width, K classes.
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from openjepa.data.dataset import ImageDataset
from openjepa.data.loader import evaluate_batches
from openjepa.data.preprocess import normalise
from openjepa.errors import UserError
from openjepa.evals.bars import Bars, no_bar
from openjepa.evals.config import FinetuneConfig
from openjepa.evals.features import accuracy
from openjepa.models.transformer import AttentionPath, Block, init_weights, set_attention_path
from openjepa.models.vit import VisionTransformer
from openjepa.rng import permute
from openjepa.schedules import warmup_cosine

_TIMED_STEPS = 5
"""After which the time that is left is told."""


class Classifier(nn.Module):
    """An encoder, the mean over its patches, and a linear head.

    Args:
        encoder: Trained further, in place.
        num_classes: K.
        drop_path: Chance that an image skips a branch of the last block; less in those before (arXiv 1603.09382).
    """

    def __init__(self, encoder: VisionTransformer, *, num_classes: int, drop_path: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.embed_dim, num_classes)
        self.head.apply(init_weights)
        self.rates = torch.linspace(0, drop_path, len(encoder.blocks)).tolist()

    def forward(self, images: Tensor) -> Tensor:
        """(B, c, H, W) -> scores (B, K)."""
        from torchvision.ops import stochastic_depth

        tokens = self.encoder.embed(images)
        for block, rate in zip(self.encoder.blocks, self.rates, strict=True):
            assert isinstance(block, Block)
            tokens = tokens + stochastic_depth(block.attn(block.norm1(tokens)), rate, "row", self.training)
            tokens = tokens + stochastic_depth(block.mlp(block.norm2(tokens)), rate, "row", self.training)
        return self.head(self.encoder.norm(tokens).mean(dim=1))

    def groups(self, *, layer_decay: float, weight_decay: float) -> list[dict[str, object]]:
        """Parameters for an optimiser: earlier layers learn slower (arXiv 2106.08254), by a factor ``scale``."""
        depth = len(self.encoder.blocks)
        layers: list[tuple[int, nn.Module]] = [(0, self.encoder.patch_embed)]
        layers += [(place, block) for place, block in enumerate(self.encoder.blocks, start=1)]
        layers += [(depth + 1, self.encoder.norm), (depth + 1, self.head)]
        groups: list[dict[str, object]] = []
        for place, module in layers:
            scale = layer_decay ** (depth + 1 - place)
            for decayed in (True, False):
                params = [p for p in module.parameters() if (p.ndim > 1) == decayed]
                groups.append({"params": params, "scale": scale, "weight_decay": weight_decay * decayed})
        return groups


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is learned from what.

    Attributes:
        train: Images to fit on, of which training views are shown.
        test: Images to test.
        train_rows: Which images of ``train`` are used, (N,) places in it; all can be read.
        train_labels: (N,) label of each of them, from 0.
        test_rows: Which images of ``test`` are used, (T,); all can be read.
        test_labels: (T,) label of each of them.
        num_classes: K.
        mean: Of the channels, in [0, 1].
        std: Of the channels, in [0, 1].
    """

    train: ImageDataset
    test: ImageDataset
    train_rows: NDArray[np.int64]
    train_labels: NDArray[np.int64]
    test_rows: NDArray[np.int64]
    test_labels: NDArray[np.int64]
    num_classes: int
    mean: Sequence[float]
    std: Sequence[float]


def finetune(
    encoder: VisionTransformer,
    task: Task,
    config: FinetuneConfig,
    *,
    from_scratch: bool = False,
    device: str = "cpu",
    precision: str = "float32",
    attention: AttentionPath = "fused",
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
    bars: Bars = no_bar,
) -> dict[str, Any]:
    """Accuracy after training encoder and head together.

    Args:
        encoder: Copied, never changed.
        task: Images and labels.
        config: The recipe.
        from_scratch: Whether the encoder is untrained: then all layers learn at the same rate.
        device: Where to train.
        precision: `float32`, or `bfloat16` (autocast).
        attention: The path of attention layers, see `openjepa.models.transformer`.
        seed: Of the order, crops, augmentations and the head.
        say: Called with the time that it will take, and at the end with the loss.
        bars: Shows how far it is.

    Returns:
        ``top1``, ``predictions`` (T,), ``num_train``, ``epochs``, ``steps`` and ``seconds``.

    Raises:
        UserError: torchvision is missing, or fewer images than a batch of two.
    """
    batch_size = min(config.batch_size, len(task.train_rows))
    if batch_size < 2:
        raise UserError(
            f"finetune: {len(task.train_rows)} labelled training images are too few; give at least 2"
        )
    steps = max(1, round(config.epochs * len(task.train_rows) / batch_size))
    with torch.random.fork_rng(devices=[] if device == "cpu" else [torch.device(device)]):
        torch.manual_seed(seed)
        model = Classifier(copy.deepcopy(encoder), num_classes=task.num_classes, drop_path=config.drop_path)
        model = model.requires_grad_(True).to(device).train()
        set_attention_path(model, attention)
        decay = 1.0 if from_scratch else config.layer_decay
        groups = model.groups(layer_decay=decay, weight_decay=config.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=0.0, fused=True)
        augment = _augmentation(config, num_classes=task.num_classes)
        start = time.perf_counter()
        with bars(steps * batch_size) as bar:
            for step, batch in enumerate(_batches(task, batch_size=batch_size, steps=steps, seed=seed)):
                rate = warmup_cosine(
                    step, total=steps, warmup=config.warmup * steps, start=0.0, peak=config.lr, final=config.lr / 100
                )  # fmt: skip
                for group in optimizer.param_groups:
                    group["lr"] = rate * group["scale"]
                loss = _step(model, *augment(*batch), task, optimizer, device=device, precision=precision)
                bar.advance(batch_size)
                if step + 1 == _TIMED_STEPS and steps > 2 * _TIMED_STEPS:
                    left = (time.perf_counter() - start) / _TIMED_STEPS * (steps - _TIMED_STEPS)
                    say(f"finetune: {steps:,} steps of {batch_size} images, about {_duration(left)}")
        seconds = time.perf_counter() - start
    say(f"finetune: trained in {_duration(seconds)}, loss {loss:.3f}")
    predictions = _test(model.eval(), task, device=device, precision=precision)
    return {
        "top1": accuracy(predictions, torch.from_numpy(task.test_labels)), "predictions": predictions,
        "num_train": len(task.train_rows), "epochs": config.epochs, "steps": steps,
        "seconds": round(seconds, 1),
    }  # fmt: skip


def _step(
    model: Classifier, pixels: Tensor, wanted: Tensor, task: Task, optimizer: torch.optim.Optimizer, *,
    device: str, precision: str,
) -> float:  # fmt: skip
    """One update on images (B, c, H, W) uint8 and label distributions (B, K); the loss."""
    images = normalise(pixels.to(device), mean=task.mean, std=task.std)
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16"):
        scores = model(images)
    loss = F.cross_entropy(scores.float(), wanted.to(device))
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def _batches(task: Task, *, batch_size: int, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Training views (B, c, H, W) uint8 and labels (B,) int64 of every step."""
    for step in range(steps):
        positions = step * batch_size + np.arange(batch_size)
        epochs, places = np.divmod(positions, len(task.train_rows))
        drawn = permute(places, size=len(task.train_rows), seed=seed, epoch=epochs)
        batch = task.train.batch(task.train_rows[drawn], epochs, seed)
        yield batch.images, torch.from_numpy(task.train_labels[drawn])


def _augmentation(
    config: FinetuneConfig, *, num_classes: int
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """RandAugment an image, mixup or cutmix a batch, smooth labels: uint8 images and labels -> images and (B, K)."""
    try:
        from torchvision.transforms import v2
    except ImportError:
        raise UserError("finetune needs torchvision: pip install 'openjepa[timm]'") from None
    randaugment = v2.RandAugment(config.randaugment_ops, config.randaugment_magnitude)
    kinds = {v2.MixUp: config.mixup, v2.CutMix: config.cutmix}
    mixes = [kind(alpha=alpha, num_classes=num_classes) for kind, alpha in kinds.items() if alpha > 0]
    mix = v2.RandomChoice(mixes) if mixes else None

    def augment(pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if config.randaugment_ops and pixels.shape[1] in (1, 3):
            pixels = torch.stack([randaugment(image) for image in pixels])
        images, wanted = pixels.float(), F.one_hot(labels, num_classes).float()
        if mix is not None:
            images, wanted = mix(images, labels)
        smoothing = config.label_smoothing
        return images, wanted * (1 - smoothing) + smoothing / num_classes

    return augment


@torch.no_grad()
def _test(model: Classifier, task: Task, *, device: str, precision: str) -> Tensor:
    """Classes of the test images (T,) int64."""
    found = []
    for batch in evaluate_batches(task.test, task.test_rows, batch_size=256):
        images = normalise(batch.images.to(device), mean=task.mean, std=task.std)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16"):
            found.append(model(images).argmax(dim=1).cpu())
    return torch.cat(found)


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"
