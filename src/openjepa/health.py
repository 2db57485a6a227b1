"""Is it collapsing? Four numbers on a fixed probe batch of a few hundred images, and one line in words.

The loss does not tell: it falls fast, *rises* while the targets become richer, then falls slowly. Each
measure below sees a failure that others miss; none needs labels. Pure functions of tensors.

    features = model.target_encoder(images).mean(dim=1)
    health = measure(features, predictions=out.predictions, full_targets=targets, target_index=masks.target)
    print(describe(health, num_features=features.shape[1]))

Shapes: B images, N patches, D width, C context blocks, M target blocks, Nt patches in each.
"""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_RANKME_EPS = 1e-7  # of RankMe's paper
_ROUNDING = 1e-10  # relative variance that float32 targets have by rounding alone

# Thresholds of `describe`. Measured on CIFAR-10 with small ViTs, spread = feature_std · √D: untrained 0.6, healthy
# runs 0.4 to 0.8, a run without stop-gradient under 0.01 (RankMe 1.1) within 100 steps.
COLLAPSED_SPREAD = 0.05
"""Of feature_std · √D; below it under 0.25 % of a feature's squared length differs between images."""
POSITION_GAP_FLOOR = 0.01
"""Below it a prediction is as near to any other image's target as to its own. Untrained 0.001, healthy 0.1 to 0.6."""
EXPLAINED_VARIANCE_FLOOR = 0.02
"""Below it the predictor is no better than the mean of each position, within the noise of a small probe batch."""
LOW_RANK = 2.0
"""RankMe below it: beside their common mean, features vary along one direction at most."""


@dataclass(frozen=True)
class Health:
    """What the measures said. A NaN means that the tensors held NaN or infinity."""

    rankme: float
    """Effective rank of the pooled features, from 1 (collapsed) to D."""
    feature_std: float
    """Standard deviation of a unit-length feature's elements over images: up to 1/√D, 0 when collapsed."""
    explained_variance: float
    """Share of the targets' variance over images that is predicted: 1 perfect, 0 or less only the mean."""
    position_gap: float
    """How much nearer, in cosine, a prediction is to its own target than to other images' at its position."""


@torch.no_grad()
def measure(features: Tensor, *, predictions: Tensor, full_targets: Tensor, target_index: Tensor) -> Health:
    """All four measures.

    Args:
        features: Pooled output of the target encoder (B, D).
        predictions: (B, C, M, Nt, D).
        full_targets: What is to be predicted, for all patches of the same images: `encode_targets`, (B, N, D).
        target_index: The patches that were predicted, (B, M, Nt) int64.
    """
    return Health(
        rankme=rankme(features),
        feature_std=feature_std(features),
        explained_variance=explained_variance(
            predictions, full_targets=full_targets, target_index=target_index
        ),
        position_gap=position_gap(predictions, full_targets=full_targets, target_index=target_index),
    )


@torch.no_grad()
def rankme(features: Tensor) -> float:
    """Effective rank: exponential of the entropy of the singular values (RankMe, arXiv 2210.02885, eq. 1).

    With p_k = σ_k / Σσ + ε, the spectrum read as probabilities, exp(−Σ p log p) is the number of equal
    singular values that would have the same entropy: r for r equal ones, 1 when all features are multiples
    of one vector. The features are not centred, so a large common mean alone gives values near 1.

    Args:
        features: (B, D), B well above D for values that hardly depend on B.

    Returns:
        Between 1 and min(B, D); NaN for features that are not finite.
    """
    if not features.isfinite().all():
        return math.nan
    singular = torch.linalg.svdvals(features.double())
    p = singular / singular.sum().clamp_min(torch.finfo(torch.float64).tiny) + _RANKME_EPS
    return math.exp(-(p * p.log()).sum().item())


@torch.no_grad()
def feature_std(features: Tensor) -> float:
    """Standard deviation over images of z / |z|, mean over elements (SimSiam, arXiv 2011.10566, section 4.1).

    The squared elements of a unit vector sum to 1. With a zero mean over images each has the variance 1/D on
    average, so the std is at most 1/√D, reached when all directions are used evenly; it is 0 when all
    features point the same way.

    Args:
        features: (B, D).
    """
    return F.normalize(features.double(), dim=1).std(dim=0, correction=0).mean().item()


@torch.no_grad()
def explained_variance(predictions: Tensor, *, full_targets: Tensor, target_index: Tensor) -> float:
    """1 − MSE / Var, with Var the variance of the targets over images at the same position.

    A predictor that ignores the image can at best give, for each position, the mean target μ(position); its
    squared error is then the variance of the targets around that mean. So 0 is a predictor that has learned
    only the positional mean, 1 a perfect one, and below 0 it is worse than the mean. Var is estimated from
    all B images at every position (over B − 1, as μ is of the same images), and averaged over the predicted
    patches.

    Args:
        predictions: (B, C, M, Nt, D).
        full_targets: (B, N, D), B at least 2.
        target_index: (B, M, Nt) int64.

    Returns:
        At most 1; 0 when targets do not differ between images: there is nothing to explain.
    """
    targets = _gather(full_targets, target_index)  # (B, M, Nt, D)
    error = (predictions - targets[:, None]).float().square().mean()
    variance = full_targets.float().var(dim=0).mean(dim=1)[target_index].mean()  # (N, D) -> (N,) -> scalar
    if variance <= _ROUNDING * targets.float().square().mean():
        return 0.0
    return (1 - error / variance).item()


@torch.no_grad()
def position_gap(predictions: Tensor, *, full_targets: Tensor, target_index: Tensor) -> float:
    """cos(prediction, own target) − cos(prediction, another image's target at the same position), mean.

    Features that encode position alone look healthy to other measures of patches, for patches differ from
    each other; but every image then has the same target at a position, and the gap is 0. The mean over *all*
    other images costs no more than one: with t_b the unit targets of image b and p a unit prediction,
    Σ_{c≠b} p·t_c = p·(Σ_c t_c − t_b).

    Args:
        predictions: (B, C, M, Nt, D).
        full_targets: (B, N, D), B at least 2.
        target_index: (B, M, Nt) int64.

    Returns:
        In [−2, 2]; 0 when predictions do not depend on the image.
    """
    units = F.normalize(full_targets.float(), dim=-1)
    own = _gather(units, target_index)[:, None]  # (B, 1, M, Nt, D)
    others = (units.sum(dim=0)[target_index][:, None] - own) / (len(units) - 1)
    return (F.normalize(predictions.float(), dim=-1) * (own - others)).sum(dim=-1).mean().item()


def _gather(tokens: Tensor, index: Tensor) -> Tensor:
    """The patches (B, M, Nt) of tokens (B, N, D): (B, M, Nt, D)."""
    return tokens[torch.arange(len(tokens), device=tokens.device)[:, None, None], index]


def has_collapsed(health: Health, *, num_features: int, ended: bool) -> bool:
    """Whether a run has failed: NaN or constant features at any time, or at its end only the position in them."""
    if not all(map(math.isfinite, astuple(health))):
        return True
    if ended and health.position_gap < POSITION_GAP_FLOOR:
        return True
    return health.feature_std * math.sqrt(num_features) < COLLAPSED_SPREAD


def has_plateaued(accuracies: Sequence[float], *, num_images: int) -> bool:
    """Whether the later half of at least six measured accuracies is no better than the earlier half.

    Better is one standard error of an accuracy p on n images, √(p(1 − p) / n), above the best of the earlier half.

    Args:
        accuracies: In the order of training, in [0, 1].
        num_images: Images that each was measured on.
    """
    half = len(accuracies) // 2
    if half < 3:
        return False
    before, after = max(accuracies[:half]), max(accuracies[half:])
    return after <= before + math.sqrt(before * (1 - before) / num_images)


def describe(health: Health, *, num_features: int) -> str:
    """One line that says what the numbers mean and, where something is wrong, what to try.

    Args:
        health: The measures.
        num_features: The width D of the features.
    """
    spread = health.feature_std * math.sqrt(num_features)
    explained = f"{max(0.0, health.explained_variance):.0%} of what differs between images is predicted"
    rank = f"rank {health.rankme:.0f} of {num_features}"
    if not all(map(math.isfinite, astuple(health))):
        return "broken: features or predictions are NaN or infinite; lower optim.lr"
    if spread < COLLAPSED_SPREAD:
        return (
            f"collapsed: features are constant (spread {spread:.3f} of 1, {rank}); "
            "lower optim.lr or raise ema.start"
        )
    if health.position_gap < POSITION_GAP_FLOOR:
        return (
            f"features encode position only: predictions fit any image as well (gap {health.position_gap:.3f}); "
            "normal at the very start, else try objective.target_norm=double_centred or a lower optim.lr"
        )
    if health.explained_variance < EXPLAINED_VARIANCE_FLOOR:
        return (
            f"predictor knows only the mean of each position ({explained}); normal early on, "
            "else raise optim.lr or make the context larger"
        )
    if health.rankme < LOW_RANK:
        return f"low rank: one direction holds nearly everything ({rank}; {explained}); lower optim.lr"
    return f"healthy: {explained}, {rank}"
