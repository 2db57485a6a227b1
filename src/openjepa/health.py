"""Is it collapsing? Four numbers on a fixed probe batch of a few hundred images, and one line in words.

The loss does not tell: it falls fast, *rises* while the targets become richer, then falls slowly. Each
measure below sees a failure that others miss; none needs labels. Pure functions of tensors.

    features = model.target_encoder(images).mean(dim=1)
    health = measure(features, predictions=out.predictions, full_targets=targets, target_index=masks.target)
    print(describe(health, num_features=features.shape[1]))

Shapes: B images, N patches, D width, C context blocks, M target blocks, Nt patches in each.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

_RANKME_EPS = 1e-7  # of RankMe's paper
_ROUNDING = 1e-10  # relative variance that float32 targets have by rounding alone

# Thresholds of `judge`; spread = feature_std · √D. Measured with small ViTs: untrained encoders have 0.6 on photographs
# and 0.1 on rendered scenes. Chosen on some thirty short runs, not yet confirmed on others (docs/log.md).
COLLAPSED_SPREAD = 0.05
"""Where nothing is known of the untrained encoder: below it under 0.25 % of a feature's squared length differs."""
COLLAPSED_SHARE = 0.15
"""Of the untrained encoder's spread on the same images; below it, where nothing is predicted, they have collapsed."""
CONSTANT_SHARE = 0.02
"""Of the same; below it they have, whatever is predicted."""
SHRUNK_SHARE = 0.35
"""Of the same; below it features lose what tells images apart. Healthy runs had 0.46 to 2.0."""
ALIKE_SPREAD = 1e-3
"""Of the untrained encoder; below it the images hardly differ, and no training can tell them apart."""
POSITION_GAP_FLOOR = 0.01
"""Below it a prediction is as near to any other image's target as to its own. Untrained 0.001, healthy 0.1 to 0.6."""
POSITION_SHARE = 0.5
"""Of the untrained encoder's spread; above it pooled features differ too much to encode the position only."""
EXPLAINED_VARIANCE_FLOOR = 0.02
"""Below it the predictor is no better than the mean of each position, within the noise of a small probe batch."""
LOW_RANK = 2.0
"""RankMe below it: beside their common mean, features vary along one direction at most."""
EARLY_STEPS = 200
"""Before so many steps towards the same kind of targets, a predictor that knows little means little."""


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


@dataclass(frozen=True)
class Untrained:
    """What the same encoder says about the same images at random initialisation; a judgement begins there."""

    feature_std: float
    """As `Health.feature_std`: 0.6/√D on photographs, a tenth of it on images of low contrast."""
    rankme: float
    """As `Health.rankme`."""

    @staticmethod
    def of(features: Tensor) -> "Untrained":
        """Measured on pooled features (B, D)."""
        return Untrained(feature_std(features), rankme(features))


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What a judgement has to know of the run beside the measures."""

    num_features: int
    """The width D of the features."""
    predicts_features: bool = True
    """False where pixels or histograms are predicted: the position gap then says nothing of the features."""
    steps: int | None = None
    """Steps since the start, or since the teacher was renewed: a predictor has to learn new targets first. None where
    that is not known, and taken for many."""
    ended: bool = False
    """Whether the run is over."""
    untrained: Untrained | None = None
    """The untrained encoder's features; None where they are not known."""


class Verdict(NamedTuple):
    """What was found."""

    kind: Literal["healthy", "early", "weak", "collapsed"]
    """early: too few steps to say; weak: not good, or not good yet; collapsed: more training is of no use."""
    words: str
    """The same as one line."""


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


def judge(health: Health, situation: Situation) -> Verdict:
    """What the measures mean: one line in plain words and, where something is wrong, what to try.

    Features that are not numbers, or that hardly differ between images, are a collapse at any time. Whatever a
    predictor has not learned yet is one only at the end of a run that had steps enough, and only where the method and
    the images allow that judgement.
    """
    steps, untrained = situation.steps, situation.untrained
    root = math.sqrt(situation.num_features)
    spread, start = health.feature_std * root, None if untrained is None else untrained.feature_std * root
    explained = f"{max(0.0, health.explained_variance):.0%} of what differs between images is predicted"
    rank = f"rank {health.rankme:.0f} of {situation.num_features}"
    if not all(map(math.isfinite, astuple(health))):
        return Verdict("collapsed", "broken: features or predictions are NaN or infinite; lower optim.lr")
    if start is not None and max(start, spread) < ALIKE_SPREAD:
        return Verdict(
            "collapsed",
            f"collapsed: features are constant (spread {spread:.4f}), and so are an untrained encoder's: the images "
            "are all alike; look at them with openjepa scan",
        )
    if _is_constant(health, spread=spread, start=start):
        before = "of 1" if start is None else f"where an untrained encoder's is {start:.3f}"
        return Verdict(
            "collapsed",
            f"collapsed: features are constant (spread {spread:.3f} {before}, {rank}); lower optim.lr or raise "
            "ema.start",
        )
    verdict = _judge_predictor(health, situation, explained=explained, rank=rank)
    if verdict.kind == "healthy" or steps is None or steps >= EARLY_STEPS:
        return verdict
    return Verdict(
        "early",
        f"too early to say after {steps:,} steps towards these targets: features differ between images "
        f"({rank}; {explained})" + "; train for longer" * situation.ended,
    )


def _is_constant(health: Health, *, spread: float, start: float | None) -> bool:
    """Whether images hardly differ in their features any more, by the spread now and that of the untrained encoder."""
    if start is None:
        return spread < COLLAPSED_SPREAD
    nothing = health.explained_variance < EXPLAINED_VARIANCE_FLOOR
    return spread < (COLLAPSED_SHARE if nothing else CONSTANT_SHARE) * start


def _judge_predictor(health: Health, situation: Situation, *, explained: str, rank: str) -> Verdict:
    """The same where features differ between images, as if there had been steps enough to learn from."""
    untrained = situation.untrained
    if untrained is not None and (health.feature_std, health.rankme) == astuple(untrained):
        return Verdict(
            "weak",
            "untrained: features are exactly those of the encoder before training, which the moving average never "
            "leaves; lower ema.start and ema.end",
        )
    share = None if untrained is None else health.feature_std / max(untrained.feature_std, 1e-9)
    fits_any = situation.predicts_features and health.position_gap < POSITION_GAP_FLOOR
    if fits_any and (share is None or share < POSITION_SHARE):
        return Verdict(
            "collapsed" if situation.ended else "weak",
            f"features encode position only: predictions fit any image as well (gap {health.position_gap:.3f}); "
            "normal at the very start, else try objective.target_norm=double_centred or a lower optim.lr",
        )
    if share is not None and share < SHRUNK_SHARE:
        return Verdict(
            "weak",
            f"shrinking: features differ between images {share:.0%} as much as an untrained encoder's ({rank}; "
            f"{explained}); lower optim.lr or raise ema.start",
        )
    if health.explained_variance < EXPLAINED_VARIANCE_FLOOR:
        return Verdict(
            "weak",
            f"predictor knows only the mean of each position ({explained}); normal early on, "
            "else raise optim.lr or make the context larger",
        )
    if health.rankme < LOW_RANK:
        return Verdict(
            "weak", f"low rank: one direction holds nearly everything ({rank}; {explained}); lower optim.lr"
        )
    return Verdict("healthy", f"healthy: {explained}, {rank}")


def judge_row(
    row: Mapping[str, Any], *, num_features: int, method: str = "ijepa", generations: int = 0
) -> Verdict | None:
    """What a line of metrics.jsonl means; None for a line without a health check.

    Args:
        row: The line; those of older runs know nothing of the untrained encoder.
        num_features: The width D of the features.
        method: The run's; only I-JEPA predicts features.
        generations: Of the run's teachers, ``ema.generations``: the targets are new where the teacher is.
    """
    names = Health.__dataclass_fields__
    if not names.keys() <= row.keys():
        return None
    progress, steps = row["progress"], row["step"]
    if generations:
        begun = min(int(progress * generations), generations - 1) / generations
        steps = round(steps * (progress - begun) / progress)
    untrained = None
    if "untrained_std" in row:
        untrained = Untrained(row["untrained_std"], row["untrained_rankme"])
    situation = Situation(
        num_features=num_features,
        predicts_features=method == "ijepa",
        steps=steps,
        ended=progress >= 1,
        untrained=untrained,
    )
    return judge(Health(**{name: row[name] for name in names}), situation)


def describe(health: Health, *, num_features: int) -> str:
    """The words of `judge` where nothing is known but the measures and the width D of the features."""
    return judge(health, Situation(num_features=num_features)).words
