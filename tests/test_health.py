"""The health measures on cases whose answer is known."""

import math

import pytest
import torch
from torch import Tensor

from openjepa.health import (
    Health,
    Situation,
    Untrained,
    describe,
    explained_variance,
    feature_std,
    has_plateaued,
    judge,
    judge_row,
    measure,
    position_gap,
    rankme,
)

B, C, M, NT, N, D = 256, 2, 3, 5, 16, 24


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def index(generator: torch.Generator) -> Tensor:
    """(B, M, Nt): random patches."""
    return torch.rand(B, M, N, generator=generator).argsort(dim=2)[:, :, :NT]


def take(full_targets: Tensor, index: Tensor) -> Tensor:
    """Targets of the predicted patches, for each of C contexts: (B, C, M, Nt, D)."""
    rows = [[full_targets[b, index[b, m]] for m in range(M)] for b in range(B)]
    return torch.stack([torch.stack(row) for row in rows])[:, None].expand(B, C, M, NT, D)


def test_rankme_counts_equal_singular_values(generator: torch.Generator) -> None:
    for rank in (1, 7, D):
        left = torch.linalg.qr(torch.randn(B, rank, generator=generator))[0]
        right = torch.linalg.qr(torch.randn(D, rank, generator=generator))[0]
        assert rankme(3 * left @ right.T) == pytest.approx(rank, rel=1e-3)


def test_rankme_of_noise_follows_the_marchenko_pastur_law(generator: torch.Generator) -> None:
    # Singular values of a (4096, 512) Gaussian matrix are √4096 · s with s² of density
    # √((b − x)(x − a)) / (2π q x) on a..b = (1 ∓ √q)², q = 1/8. The entropy is integrated numerically.
    q, width = 1 / 8, 512
    low, high = (1 - math.sqrt(q)) ** 2, (1 + math.sqrt(q)) ** 2
    x = torch.linspace(low, high, 200_001, dtype=torch.float64)[1:-1]
    density = ((high - x) * (x - low)).sqrt() / x
    density /= density.sum()
    s = x.sqrt()
    mean = (density * s).sum()
    expected = width * math.exp(-(density * (s / mean) * (s / mean).log()).sum().item())
    assert rankme(torch.randn(4096, width, generator=generator)) == pytest.approx(expected, rel=2e-3)


def test_constant_features_have_rank_one_and_no_spread(generator: torch.Generator) -> None:
    features = torch.randn(1, D, generator=generator).expand(B, D)
    assert rankme(features) == pytest.approx(1, abs=1e-3)
    assert feature_std(features) == pytest.approx(0, abs=1e-7)
    assert rankme(torch.zeros(B, D)) == pytest.approx(1, abs=1e-3)
    assert feature_std(torch.zeros(B, D)) == 0


def test_spread_of_random_directions_is_one_over_root_width(generator: torch.Generator) -> None:
    assert feature_std(torch.randn(4096, 64, generator=generator)) == pytest.approx(1 / 8, rel=0.01)


def test_a_perfect_predictor(generator: torch.Generator, index: Tensor) -> None:
    targets = torch.randn(B, N, D, generator=generator)
    predictions = take(targets, index)
    assert explained_variance(predictions, full_targets=targets, target_index=index) == 1
    # Independent images: the cosine with one's own target is 1, with others' 0 on average.
    assert position_gap(predictions, full_targets=targets, target_index=index) == pytest.approx(1, abs=0.01)


def test_a_predictor_of_the_positional_mean_explains_nothing(
    generator: torch.Generator, index: Tensor
) -> None:
    mean = 5 * torch.randn(N, D, generator=generator)
    scale = torch.rand(N, 1, generator=generator)  # positions differ in how much images differ there
    targets = mean + scale * torch.randn(B, N, D, generator=generator)
    predictions = take(mean.expand(B, N, D), index)
    assert explained_variance(predictions, full_targets=targets, target_index=index) == pytest.approx(
        0, abs=0.02
    )
    assert position_gap(predictions, full_targets=targets, target_index=index) == pytest.approx(0, abs=0.002)


def test_half_of_the_variance(generator: torch.Generator, index: Tensor) -> None:
    known, unknown = torch.randn(2, B, N, D, generator=generator)
    predictions = take(known, index)
    explained = explained_variance(predictions, full_targets=known + unknown, target_index=index)
    assert explained == pytest.approx(0.5, abs=0.01)


def test_purely_positional_targets_have_nothing_to_explain(generator: torch.Generator, index: Tensor) -> None:
    targets = torch.randn(N, D, generator=generator).expand(B, N, D)
    predictions = take(targets, index)  # the loss is 0, and yet
    assert explained_variance(predictions, full_targets=targets, target_index=index) == 0
    assert position_gap(predictions, full_targets=targets, target_index=index) == pytest.approx(0, abs=1e-6)


def test_position_gap_is_the_mean_over_all_other_images(generator: torch.Generator) -> None:
    targets = torch.randn(3, 4, 6, generator=generator)
    predictions = torch.randn(3, 1, 1, 2, 6, generator=generator)
    index = torch.tensor([[[0, 3]], [[2, 1]], [[3, 3]]])
    gaps = []
    for b in range(3):
        for j, position in enumerate(index[b, 0].tolist()):
            cosines = torch.cosine_similarity(predictions[b, 0, 0, j], targets[:, position], dim=1)
            gaps.append(cosines[b] - (cosines.sum() - cosines[b]) / 2)
    gap = position_gap(predictions, full_targets=targets, target_index=index)
    assert gap == pytest.approx(torch.stack(gaps).mean().item(), abs=1e-6)


def test_measure_collects_the_four(generator: torch.Generator, index: Tensor) -> None:
    targets = torch.randn(B, N, D, generator=generator)
    features = targets.mean(dim=1)
    predictions = 0.5 * take(targets, index)
    health = measure(features, predictions=predictions, full_targets=targets, target_index=index)
    assert health.rankme == rankme(features)
    assert health.feature_std == feature_std(features)
    assert health.explained_variance == pytest.approx(0.75, abs=0.01)  # (1 − ½)² is left
    assert health.position_gap == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("health", "start"),
    [
        (Health(40.0, 0.08, 0.35, 0.2), "healthy: 35% of what differs between images is predicted"),
        (Health(1.0, 0.0001, 0.5, 0.0), "collapsed: features are constant"),
        (Health(9.0, 0.05, 0.1, 0.001), "features encode position only"),
        (Health(9.0, 0.05, -0.1, 0.05), "predictor knows only the mean of each position"),
        (Health(1.2, 0.05, 0.5, 0.1), "low rank"),
        (Health(math.nan, 0.1, 0.5, 0.1), "broken"),
        (Health(9.0, 0.1, math.inf, 0.1), "broken"),
    ],
)
def test_words(health: Health, start: str) -> None:
    assert describe(health, num_features=128).startswith(start)


def test_features_that_are_not_finite_are_reported_not_raised(
    generator: torch.Generator, index: Tensor
) -> None:
    targets = torch.full((B, N, D), math.nan)
    health = measure(
        targets.mean(dim=1), predictions=take(targets, index), full_targets=targets, target_index=index
    )
    assert describe(health, num_features=D).startswith("broken")


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        ([0.3, 0.35, 0.38, 0.38, 0.385, 0.38], True),
        ([0.3, 0.35, 0.38, 0.38, 0.42, 0.38], False),  # one standard error of 0.38 on 1,000 images is 0.015
        ([0.4, 0.4, 0.4, 0.4, 0.4], False),  # too few to say
        ([0.5, 0.45, 0.4, 0.35, 0.3, 0.3], True),
    ],
)
def test_a_plateau_is_seen(accuracies: list[float], expected: bool) -> None:
    assert has_plateaued(accuracies, num_images=1000) == expected


GOOD = Health(9.0, 0.08, 0.3, 0.3)
UNTRAINED = Untrained(feature_std=0.075, rankme=7.0)


def kind(
    health: Health, *, steps: int = 1000, ended: bool = True, pixels: bool = False, std: float = 0.075
) -> str:
    situation = Situation(
        num_features=64, predicts_features=not pixels, steps=steps, ended=ended, untrained=Untrained(std, 7.0)
    )
    return judge(health, situation).kind


def test_collapse_is_measured_from_the_untrained_encoder() -> None:
    """Rendered scenes and handwriting start at a spread of 0.04 to 0.1, photographs at 0.6."""
    faint = Health(2.4, 0.0056, 0.2, 0.1)  # spread 0.045
    assert describe(faint, num_features=64).startswith("collapsed")  # of photographs it would be
    assert kind(faint, std=0.0056 * 1.01) == "healthy"
    assert kind(Health(1.3, 0.0045, -0.03, 0.0)) == "collapsed"  # learning rate 0.3 on photographs, step 41
    assert kind(Health(1.3, 0.0045, -0.03, 0.0), steps=41, ended=False) == "collapsed"
    assert kind(Health(1.1, 0.0005, 0.5, 0.3)) == "collapsed"
    assert kind(Health(2.7, 0.02, 0.14, 0.011)) == "weak"  # shrinking


def test_images_that_are_all_alike_are_called_so() -> None:
    verdict = judge(
        Health(1.0, 0.0, 0.0, 0.0), Situation(num_features=64, steps=6, untrained=Untrained(1e-7, 1.0))
    )
    assert verdict.kind == "collapsed"
    assert "constant" in verdict.words
    assert "images are all alike" in verdict.words


def test_few_steps_are_too_early_to_say_and_no_collapse() -> None:
    """`make demo` on a slow processor: 308 steps, a masked autoencoder; and its features shrink before they spread."""
    slow = Health(3.3, 0.0101, -0.136, -0.002)
    assert kind(slow, steps=53, std=0.013, pixels=True) == "early"
    assert kind(slow, steps=53, std=0.013) == "early"
    assert kind(GOOD, steps=53) == "healthy"  # what is there is there
    situation = Situation(num_features=64, steps=53, ended=True, untrained=UNTRAINED)
    words = judge(Health(7.0, 0.07, -0.1, 0.0), situation).words
    assert words.startswith("too early to say after 53 steps")
    assert words.endswith("train for longer")


def test_the_position_gap_condemns_only_features_that_may_be_judged_by_it() -> None:
    position = Health(3.0, 0.02, -0.1, 0.001)
    assert kind(position) == "collapsed"
    assert kind(position, ended=False) == "weak"
    assert kind(position, pixels=True) == "weak"
    assert (
        kind(Health(2.3, 0.07, 0.2, 0.001)) == "healthy"
    )  # strokes on white: most patches are alike in all images


def test_an_average_that_never_moves_is_seen() -> None:
    verdict = judge(Health(7.0, 0.075, 0.4, 0.2), Situation(num_features=64, steps=500, untrained=UNTRAINED))
    assert verdict.kind == "weak"
    assert verdict.words.startswith("untrained")


def row(step: int, progress: float, **changes: float) -> dict[str, float]:
    measures = {"rankme": 7.0, "feature_std": 0.07, "explained_variance": 0.0, "position_gap": 0.001}
    return {
        "step": step,
        "progress": progress,
        "untrained_std": 0.075,
        "untrained_rankme": 8.0,
        **measures,
        **changes,
    }


def test_a_renewed_teacher_sets_targets_that_are_new() -> None:
    for generations, progress, expected in (
        (0, 0.6, "weak"),
        (1, 0.6, "weak"),
        (2, 0.6, "early"),
        (2, 0.9, "weak"),
    ):
        verdict = judge_row(row(1000, progress), num_features=64, generations=generations)
        assert verdict is not None
        assert verdict.kind == expected, (generations, progress)
    at_end = judge_row(row(1000, 1.0), num_features=64, generations=10)  # the last one is 100 steps old
    assert at_end is not None
    assert at_end.kind == "early"


def test_rows_of_older_runs_and_of_other_methods_are_judged() -> None:
    assert judge_row({"step": 3, "progress": 1.0}, num_features=64) is None
    old = {key: value for key, value in row(500, 1.0).items() if not key.startswith("untrained")}
    for method, expected in (("ijepa", "collapsed"), ("mae", "weak"), ("maskfeat", "weak")):
        verdict = judge_row(old, num_features=64, method=method)
        assert verdict is not None
        assert verdict.kind == expected
