"""An attentive probe: one learned query that looks for what matters among the frozen patch features of an image.

After V-JEPA (arXiv 2404.08471) and CAPI (arXiv 2502.08769): cross-attention of one query with projections of keys and
values, then a linear classifier. Where a mean over patches drowns a small object, attention can pick it out.

Its learning rate is chosen on a tenth of the *training* images; test images only tell how good the chosen one is.

Shapes: B images of a step, N training images, P patches, D width, H heads, E width of a head, K classes, R learning
rates.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from openjepa.evals.features import accuracy
from openjepa.evals.splits import validation_split
from openjepa.schedules import warmup_cosine

LEARNING_RATES = (1e-3, 3e-3, 1e-2, 3e-2)
"""Peaks of AdamW's learning rate. Of four data sets (docs/evaluation.md) two want the largest, none the smallest."""

_WARMUP = 0.05  # of the steps, in which the learning rate rises
_CHUNK = 256  # images of a full pass at a time, to bound the memory of their patches in float32


class Probes(NamedTuple):
    """R probes side by side, on features that are normalised alike.

    With one query q, the score of a patch x is q · W x = (Wᵀ q) · x, and the sum of the values V x over patches,
    weighted by the attention, is V applied to the weighted sum of x. So each patch costs H products of width D, not
    the D that projecting it to keys and values would take: the same function, some twenty times cheaper.
    """

    query: Tensor
    """(R, H, E)."""
    key: Tensor
    """(R, H, E, D)."""
    value: Tensor
    """(R, H, E, D)."""
    weight: Tensor
    """(R, K, H · E)."""
    bias: Tensor
    """(R, K)."""
    shift: Tensor
    """(D,), taken from features before ..."""
    scale: Tensor
    """... (D,), they are divided by this."""

    def __call__(self, patches: Tensor) -> Tensor:
        """(B, P, D) -> scores (B, R, K)."""
        x = (patches.float() - self.shift) / self.scale
        num_probes, num_heads, head_width, _ = self.key.shape
        asked = torch.einsum("rhe,rhed->rhd", self.query, self.key) / math.sqrt(head_width)
        attention = F.linear(x, asked.flatten(0, 1)).softmax(dim=1)  # (B, P, R·H)
        found = (attention.mT @ x).unflatten(1, (num_probes, num_heads))  # (B, R, H, D)
        values = torch.einsum("brhd,rhed->brhe", found, self.value).flatten(2)  # (B, R, H·E)
        return torch.einsum("brv,rkv->brk", values, self.weight) + self.bias

    @torch.no_grad()
    def classify(self, patches: Tensor) -> Tensor:
        """(N, P, D) -> classes (N, R) int64."""
        return torch.cat([self(part).argmax(dim=2) for part in patches.split(_CHUNK)])

    def one(self, place: int) -> "Probes":
        """One of them."""
        parts = (part[place : place + 1] for part in self[:5])
        return Probes._make([*parts, self.shift, self.scale])


def attentive(
    patches: Tensor,
    labels: Tensor,
    *,
    learning_rates: Sequence[float] = LEARNING_RATES,
    epochs: int = 30,
    min_steps: int = 500,
    batch_size: int = 256,
    weight_decay: float = 0.1,
    num_heads: int = 8,
    seed: int = 0,
) -> tuple[Probes, dict[str, Any]]:
    """Trains a probe for each learning rate by AdamW with a cosine; the one that is best on a held-out tenth is kept.

    Args:
        patches: Training features (N, P, D), in half precision where memory matters.
        labels: Training labels (N,) int64, from 0.
        learning_rates: To choose from.
        epochs: Passes over the images that are fitted.
        min_steps: On small data as many more passes as make up this many steps.
        batch_size: Images a step.
        weight_decay: AdamW's, of all matrices.
        num_heads: H.
        seed: For the validation split, the order of images and the first weights.

    Returns:
        The probe that was chosen (R = 1) and settings, among them its learning rate ``lr`` and ``validation_top1``.

    Raises:
        DataError: No class has two images.
    """
    fit, validation = validation_split(labels, seed=seed)
    batch_size = min(batch_size, len(fit))
    steps_per_epoch = len(fit) // batch_size
    epochs = max(epochs, math.ceil(min_steps / steps_per_epoch))
    shift, scale = _moments(patches, fit)
    generator = torch.Generator().manual_seed(seed)
    start = _first_weights(patches.shape[2], int(labels.max()) + 1, num_heads=num_heads, generator=generator)
    probes = [[part.clone().requires_grad_() for part in start] for _ in learning_rates]
    groups = [
        {"params": params, "rate": rate, "weight_decay": decay}
        for rate, (query, key, value, weight, bias) in zip(learning_rates, probes, strict=True)
        for params, decay in (([key, value, weight], weight_decay), ([query, bias], 0.0))
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.0, fused=True)
    total = epochs * steps_per_epoch
    for epoch in range(epochs):
        order = fit[torch.randperm(len(fit), generator=generator)]
        for step, batch in enumerate(
            order.split(batch_size)[:steps_per_epoch], start=epoch * steps_per_epoch
        ):
            part = warmup_cosine(step, total=total, warmup=_WARMUP * total, start=0.0, peak=1.0, final=0.0)
            for group in optimizer.param_groups:
                group["lr"] = part * group["rate"]
            scores = _side_by_side(probes, shift, scale)(patches[batch])  # (B, R, K)
            wanted = labels[batch].repeat_interleave(len(probes))
            loss = F.cross_entropy(scores.flatten(0, 1), wanted, reduction="sum") / len(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    trained = Probes._make(part.detach() for part in _side_by_side(probes, shift, scale))
    answers = trained.classify(patches[validation])  # (V, R)
    reached = [accuracy(answer, labels[validation]) for answer in answers.T]
    best = reached.index(max(reached))  # of equals the smallest rate
    settings = {
        "lr": learning_rates[best],
        "epochs": epochs,
        "batch_size": batch_size,
        "weight_decay": weight_decay,
        "num_heads": num_heads,
        "validation_top1": reached[best],
        "seed": seed,
        "learning_rates": dict(zip(map(str, learning_rates), reached, strict=True)),
    }
    return trained.one(best), settings


def _side_by_side(probes: Sequence[Sequence[Tensor]], shift: Tensor, scale: Tensor) -> Probes:
    """Probes in one, whose gradients reach each: none depends on another."""
    return Probes._make([*(torch.stack(parts) for parts in zip(*probes, strict=True)), shift, scale])


def _first_weights(
    width: int, num_classes: int, *, num_heads: int, generator: torch.Generator
) -> list[Tensor]:
    """Query, key, value, weight and bias: nearly uniform attention, which is the mean over patches, and no answer."""
    head_width = math.ceil(width / num_heads)
    shapes = {"query": (num_heads, head_width), "projection": (num_heads, head_width, width)}
    query, key, value = (
        torch.randn(shapes[name], generator=generator) for name in ("query", "projection", "projection")
    )
    weight, bias = torch.zeros(num_classes, num_heads * head_width), torch.zeros(num_classes)
    return [0.02 * query, key / math.sqrt(width), value / math.sqrt(width), weight, bias]


def _moments(patches: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (D,) of the features over all patches of these images, in float64."""
    total = torch.zeros(patches.shape[2], dtype=torch.float64)
    squares = torch.zeros_like(total)
    for part in rows.split(_CHUNK):
        x = patches[part].double().flatten(0, 1)
        total, squares = total + x.sum(0), squares + x.square().sum(0)
    num = len(rows) * patches.shape[1]
    mean = total / num
    std = (squares / num - mean.square()).clamp_min(0).sqrt()
    return mean.float(), std.clamp_min(max(1e-6 * std.max().item(), 1e-30)).float()
