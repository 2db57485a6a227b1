"""k-NN against a direct computation and against scikit-learn."""

import logging
import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from openjepa.evals.knn import knn


def blobs(
    num: int, *, seed: int, width: int = 16, classes: int = 5, spread: float = 2.0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, classes, (num,), generator=generator)
    return centres[labels] + spread * torch.randn(num, width, generator=generator), labels


def test_against_a_direct_computation() -> None:
    train_x, train_y = blobs(60, seed=1)
    test_x, test_y = blobs(40, seed=2)
    expected = []
    for query in test_x.double():
        cosines = [float(query @ x / query.norm() / x.norm()) for x in train_x.double()]
        votes = dict.fromkeys(range(5), 0.0)
        for i in sorted(range(60), key=lambda i: -cosines[i])[:7]:
            votes[int(train_y[i])] += math.exp(cosines[i] / 0.1)
        expected.append(max(votes, key=votes.__getitem__))
    result = knn(train_x, train_y, test_x, test_y, k=7, temperature=0.1)
    assert result.predictions.tolist() == expected
    assert result.top1 == np.mean(np.array(expected) == test_y.numpy())
    assert result.settings == {"k": 7, "temperature": 0.1}


def test_against_scikit_learn() -> None:
    train_x, train_y = blobs(2000, seed=1)
    test_x, test_y = blobs(1000, seed=2)
    reference = KNeighborsClassifier(20, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07))
    reference.fit(train_x.double().numpy(), train_y.numpy())
    result = knn(train_x, train_y, test_x, test_y)
    assert result.predictions.tolist() == reference.predict(test_x.double().numpy()).tolist()
    assert 0.4 < result.top1 < 0.9  # neither trivial nor hopeless


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = blobs(300, seed=1), blobs(100, seed=2)
    whole = knn(*train, *test).predictions
    monkeypatch.setattr("openjepa.evals.knn._SIMILARITIES", 2000)  # six queries at a time
    assert torch.equal(knn(*train, *test).predictions, whole)
    monkeypatch.setattr("openjepa.evals.knn._SIMILARITIES", 1)
    assert torch.equal(knn(*train, *test).predictions, whole)


def test_only_directions_count() -> None:
    (train_x, train_y), (test_x, test_y) = blobs(300, seed=1), blobs(100, seed=2)
    lengths = torch.logspace(-3, 3, 300)[:, None]
    expected = knn(train_x, train_y, test_x, test_y).predictions
    assert torch.equal(knn(train_x * lengths, train_y, test_x, test_y).predictions, expected)


def test_a_low_temperature_does_not_overflow() -> None:
    (train_x, train_y), (test_x, test_y) = blobs(300, seed=1), blobs(100, seed=2)
    nearest = knn(train_x, train_y, test_x, test_y, k=1).predictions
    assert torch.equal(knn(train_x, train_y, test_x, test_y, temperature=1e-6).predictions, nearest)


def test_k_is_clamped_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    (train_x, train_y), (test_x, test_y) = blobs(8, seed=1), blobs(10, seed=2)
    with caplog.at_level(logging.WARNING):
        result = knn(train_x, train_y, test_x, test_y)
    assert result.settings["k"] == 8
    assert "only 8 training images" in caplog.text


def test_permuted_labels_give_chance() -> None:
    (train_x, train_y), (test_x, _) = blobs(2000, seed=1), blobs(2000, seed=2)
    permuted, unrelated = torch.randint(0, 5, (2, 2000), generator=torch.Generator().manual_seed(0))
    assert knn(train_x, permuted, test_x, unrelated).top1 == pytest.approx(0.2, abs=0.04)
    assert knn(train_x, train_y, train_x, train_y, k=1).top1 == 1
