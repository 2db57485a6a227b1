"""The linear protocols against scikit-learn, and what must never leak."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from openjepa.errors import DataError
from openjepa.evals.features import Result
from openjepa.evals.linear import linear
from openjepa.evals.logistic import logistic
from openjepa.evals.splits import validation_split

Protocol = Callable[..., Result]
BOTH = pytest.mark.parametrize(
    "protocol",
    [partial(linear, min_steps=100), partial(logistic, strengths=(1e-3, 1e-2, 1e-1, 1.0))],
    ids=["linear", "logistic"],
)


def blobs(num: int, *, seed: int, width: int = 20, classes: int = 5) -> tuple[Tensor, Tensor]:
    """Correlated features of very different scales and offsets, as encoders give them; labels (N,)."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.Generator().manual_seed(0)
    centres = 0.6 * torch.randn(classes, width, generator=shared)
    mixing = torch.randn(width, width, generator=shared) * torch.logspace(0, -2, width)
    scales, offsets = torch.logspace(-3, 2, width), 10 * torch.randn(width, generator=shared)
    labels = torch.randint(0, classes, (num,), generator=generator)
    features = (centres[labels] + torch.randn(num, width, generator=generator)) @ mixing
    return (features + offsets) * scales, labels


def test_split_is_stratified_and_complete() -> None:
    labels = torch.tensor([0] * 100 + [1] * 2 + [2] + [3] * 11 + [4] * 12)
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    fit, validation = validation_split(labels, seed=3)
    assert sorted(torch.cat([fit, validation]).tolist()) == list(range(len(labels)))
    assert torch.bincount(labels[validation], minlength=5).tolist() == [10, 1, 0, 1, 2]
    again = validation_split(labels, seed=3)[1]
    assert torch.equal(validation, again)
    assert not torch.equal(validation.sort().values, validation_split(labels, seed=4)[1].sort().values)


def test_views_of_an_image_stay_on_one_side_and_the_first_chooses() -> None:
    labels = torch.arange(60) % 3
    fit, validation = validation_split(labels, seed=0)
    fit_views, chosen_on = validation_split(labels.repeat(3), seed=0, num_views=3)
    assert torch.equal(chosen_on, validation)
    assert torch.equal(fit_views.unflatten(0, (3, -1)) % 60, fit.expand(3, -1))
    assert len(fit_views.unique()) == 3 * len(fit)


def test_one_image_of_each_class_is_refused() -> None:
    with pytest.raises(DataError, match="5 images of 5 classes"):
        validation_split(torch.arange(5), seed=0)


@pytest.mark.parametrize("classes", [2, 5])
def test_logistic_agrees_with_scikit_learn(classes: int) -> None:
    """Both solvers, and scikit-learn called independently with the C that was chosen: >= 99.9 % equal."""
    train_x, train_y = blobs(1500, seed=1, classes=classes)
    test_x, test_y = blobs(5000, seed=2, classes=classes)
    strengths = (1e-3, 1e-1, 10.0)
    ours, theirs = (
        logistic(train_x, train_y, test_x, test_y, strengths=strengths, solver=solver)
        for solver in ("torch", "sklearn")
    )
    assert ours.settings["C"] == theirs.settings["C"]
    pipeline = make_pipeline(
        StandardScaler(), LogisticRegression(C=float(ours.settings["C"]), tol=1e-8, max_iter=100_000)
    )
    pipeline.fit(train_x.double().numpy(), train_y.numpy())
    expected = torch.from_numpy(pipeline.predict(test_x.double().numpy()))
    for result in (ours, theirs):
        assert (result.predictions == expected).double().mean() >= 0.999
        assert result.top1 == (result.predictions == test_y).double().mean()


@pytest.mark.parametrize("strength", [1e-4, 1e-2, 1.0, 100.0])
def test_logistic_finds_the_optimum_at_every_strength(strength: float) -> None:
    train_x, train_y = blobs(1500, seed=1)
    test_x, test_y = blobs(5000, seed=2)
    ours, theirs = (
        logistic(train_x, train_y, test_x, test_y, strengths=(strength,), solver=solver).predictions
        for solver in ("torch", "sklearn")
    )
    assert (ours == theirs).double().mean() >= 0.999


def test_logistic_with_more_features_than_images() -> None:
    generator = torch.Generator().manual_seed(0)
    lift = torch.randn(20, 300, generator=generator)
    (train_x, train_y), (test_x, test_y) = blobs(100, seed=1), blobs(2000, seed=2)
    train_x, test_x = (
        x @ lift + 0.1 * torch.randn(len(x), 300, generator=generator) for x in (train_x, test_x)
    )
    ours = logistic(train_x, train_y, test_x, test_y, strengths=(0.1,), solver="torch")
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=1e-8, max_iter=100_000))
    pipeline.fit(train_x.double().numpy(), train_y.numpy())
    agree = ours.predictions.numpy() == pipeline.predict(test_x.double().numpy())
    assert agree.mean() >= 0.999


def test_small_data_go_to_scikit_learn() -> None:
    small, large = blobs(100, seed=1), blobs(11_000, seed=1)
    assert logistic(*small, *small, strengths=(1e-3,)).settings["solver"] == "sklearn"
    assert logistic(*large, *small, strengths=(1e-3,)).settings["solver"] == "torch"


def test_batchnorm_head_is_as_good_as_an_independent_fit() -> None:
    (train_x, train_y), (test_x, test_y) = blobs(2000, seed=1), blobs(4000, seed=2)
    reference = make_pipeline(StandardScaler(), LogisticRegression(max_iter=100_000))
    reference.fit(train_x.numpy(), train_y.numpy())
    expected = reference.predict(test_x.numpy())
    result = linear(train_x, train_y, test_x, test_y)
    assert result.top1 == pytest.approx(np.mean(expected == test_y.numpy()), abs=0.02)
    assert np.mean(result.predictions.numpy() == expected) > 0.93


def test_a_head_is_what_autograd_and_torch_sgd_make_of_it() -> None:
    x, y = blobs(64, seed=1)
    rows, _ = validation_split(y, seed=0)
    ours = linear(x, y, x, y, learning_rates=(0.1,), epochs=40, min_steps=1)

    norm = torch.nn.BatchNorm1d(20, eps=1e-8, affine=False)
    head = torch.nn.Linear(20, 5)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    sgd = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 40)
    for _ in range(40):  # one batch holds them all, so their order does not matter
        sgd.zero_grad()
        torch.nn.functional.cross_entropy(head(norm(x[rows])), y[rows]).backward()
        sgd.step()
        schedule.step()
    assert ours.settings["head"] == "last layer, BatchNorm"
    norm.eval()
    norm.running_mean, norm.running_var = x[rows].mean(dim=0), x[rows].var(dim=0)
    assert torch.equal(head(norm(x)).argmax(dim=1), ours.predictions)


def test_the_best_of_four_heads_is_chosen_on_validation_images() -> None:
    """The layer before the last knows the class, in directions of unequal scale; the last one is noise."""
    generator = torch.Generator().manual_seed(0)
    (train_x, train_y), (test_x, test_y) = blobs(1500, seed=1), blobs(1500, seed=2)
    train, test = (
        torch.stack([x, torch.randn(x.shape, generator=generator)], dim=1) for x in (train_x, test_x)
    )
    found = linear(train, train_y, test, test_y)
    names = [
        f"{layers}, {norm}" for layers in ("last layer", "last 2 layers") for norm in ("BatchNorm", "no norm")
    ]
    assert list(found.settings["heads"]) == names
    assert found.settings["head"] == "last 2 layers, BatchNorm"
    assert found.top1 == found.settings["heads"]["last 2 layers, BatchNorm"]["top1"]
    assert found.top1 == pytest.approx(linear(train_x, train_y, test_x, test_y).top1, abs=0.03)
    assert found.settings["heads"]["last layer, BatchNorm"]["top1"] == pytest.approx(0.2, abs=0.06)
    last = linear(train.flip(1)[:, 1:], train_y, test.flip(1)[:, 1:], test_y)
    assert list(last.settings["heads"]) == names[:2]


def test_heads_do_not_mix() -> None:
    """A head is what it would be alone, even beside one that diverges."""
    (train_x, train_y), (test_x, test_y) = blobs(500, seed=1), blobs(500, seed=2)
    alone = linear(train_x, train_y, test_x, test_y, learning_rates=(0.03,), min_steps=50)
    beside = linear(train_x, train_y, test_x, test_y, learning_rates=(0.03, 1e8, 1e-9), min_steps=50)
    assert beside.settings["lr"] == 0.03
    assert (beside.predictions == alone.predictions).double().mean() > 0.995


def choices(result: Result) -> dict[str, Any]:
    """The settings without what only tells how good heads are on the test images."""
    heads = result.settings.get("heads", {})
    chosen = {name: {key: head[key] for key in ("lr", "validation_top1")} for name, head in heads.items()}
    return {**result.settings, "heads": chosen}


@BOTH
def test_the_test_images_choose_nothing(protocol: Protocol) -> None:
    """Whatever is tested, even NaN, the same head is chosen, and it predicts the same."""
    (train_x, train_y), (test_x, test_y) = blobs(600, seed=1), blobs(300, seed=2)
    result = protocol(train_x, train_y, test_x, test_y)
    blind = protocol(train_x, train_y, torch.full_like(test_x, math.nan), test_y)
    assert choices(blind) == choices(result)
    liar = protocol(train_x, train_y, test_x, (test_y + 1) % 5)
    assert choices(liar) == choices(result)
    assert torch.equal(liar.predictions, result.predictions)
    part = protocol(train_x, train_y, test_x[:100], test_y[:100])
    assert torch.equal(part.predictions, result.predictions[:100])


def test_validation_chooses_not_test() -> None:
    """Training images want a strong penalty; these test images would want a weak one, and do not get it."""
    generator = torch.Generator().manual_seed(0)
    train_y = torch.arange(400) % 2
    train_x = torch.randn(400, 200, generator=generator)
    train_x[:, 0] += 1.2 * (2 * train_y - 1)  # one direction that matters, 199 to overfit on
    grid = (1e-3, 1e3)
    results = {c: logistic(train_x, train_y, train_x, train_y, strengths=(c,)) for c in grid}
    assert results[1e3].top1 > results[1e-3].top1  # tested on what was fitted, the weak penalty wins
    chosen = logistic(train_x, train_y, train_x, train_y, strengths=grid)
    assert chosen.settings["C"] == 1e-3
    assert chosen.top1 == results[1e-3].top1


@pytest.mark.parametrize(
    ("protocol", "settings"),
    [(linear, {"learning_rates": (0.1,)}), (logistic, {"strengths": (1.0,)})],
)
def test_labels_without_relation_give_chance(protocol: Protocol, settings: dict[str, tuple[float]]) -> None:
    """More features than images: a fit that had seen the test images would know their labels by heart."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(400, 500, generator=generator)
    labels = torch.randint(0, 5, (400,), generator=generator)
    seen = protocol(features, labels, features, labels, **settings)
    assert seen.top1 > 0.85  # all but those that were held out
    unseen = protocol(features[:200], labels[:200], features[200:], labels[200:], **settings)
    assert unseen.top1 == pytest.approx(0.2, abs=0.1)  # 3.5 standard errors


@BOTH
def test_the_scale_of_features_does_not_matter(protocol: Protocol) -> None:
    (train_x, train_y), (test_x, test_y) = blobs(600, seed=1), blobs(1000, seed=2)
    result = protocol(train_x, train_y, test_x, test_y)
    small = protocol(0.01 * train_x, train_y, 0.01 * test_x, test_y)
    assert small.top1 == pytest.approx(result.top1, abs=0.01)


@BOTH
def test_constant_features_are_no_trouble(protocol: Protocol) -> None:
    (train_x, train_y), (test_x, test_y) = blobs(300, seed=1), blobs(300, seed=2)
    dead, also_dead = torch.full((300, 1), 3.3), torch.zeros(300, 1)
    result = protocol(
        torch.cat([train_x, dead, also_dead], 1), train_y, torch.cat([test_x, dead, also_dead], 1), test_y
    )
    assert result.top1 == pytest.approx(protocol(train_x, train_y, test_x, test_y).top1, abs=0.02)
    collapsed = protocol(also_dead.expand(300, 4), train_y, also_dead.expand(300, 4), test_y)
    assert collapsed.predictions.unique().numel() == 1


@BOTH
def test_a_handful_of_images(protocol: Protocol) -> None:
    labels = torch.tensor([0, 0, 1, 1, 2])
    features = torch.eye(3)[labels]
    assert protocol(features, labels, torch.eye(3), torch.arange(3)).top1 >= 2 / 3


@BOTH
def test_global_random_numbers_are_left_alone(protocol: Protocol) -> None:
    train, test = blobs(200, seed=1), blobs(50, seed=2)
    before = torch.get_rng_state()
    first = protocol(*train, *test)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    assert torch.equal(protocol(*train, *test).predictions, first.predictions)
