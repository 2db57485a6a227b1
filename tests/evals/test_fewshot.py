"""Few labels: which images a subset has, what is told, and what is refused."""

import numpy as np
import pytest
import torch

from openjepa.errors import DataError
from openjepa.evals.fewshot import Size, fewshot, sizes, subset
from openjepa.evals.linear import linear


def test_a_subset_has_its_part_of_each_class_and_follows_from_the_seed() -> None:
    labels = np.repeat([0, 1, 2], [100, 300, 50])
    rows = subset(labels, Size(part=0.1), seed=4)
    assert np.bincount(labels[rows]).tolist() == [10, 30, 5]
    assert np.array_equal(rows, np.unique(rows))
    assert np.array_equal(rows, subset(labels, Size(part=0.1), seed=4))
    assert not np.array_equal(rows, subset(labels, Size(part=0.1), seed=5))
    assert np.bincount(labels[subset(labels, Size(number=7), seed=0)]).tolist() == [7, 7, 7]


def test_names_are_those_of_the_contract() -> None:
    assert [size.name for size in sizes(fractions=(0.01, 0.1), per_class=(5,))] == [
        "0.01",
        "0.10",
        "5 a class",
    ]


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (Size(part=0.01), r"fewshot 0\.01: class 'few' has 20 training images, of which 0 would"),
        (Size(number=21), r"fewshot 21 a class: class 'few' has 20 training images, of which 21 would"),
        (Size(number=1), "takes at least 2"),
    ],
)
def test_too_few_images_are_refused(size: Size, words: str) -> None:
    with pytest.raises(DataError, match=words):
        subset(np.repeat([0, 1], [400, 20]), size, seed=0, classes=("many", "few"))


def test_accuracy_is_that_of_linear_heads_on_the_subsets() -> None:
    generator = torch.Generator().manual_seed(0)
    train_y, test_y = (torch.randint(0, 4, (num,), generator=generator) for num in (1000, 400))
    centres = torch.randn(4, 12, generator=generator)
    train_x, test_x = (centres[y] + torch.randn(len(y), 12, generator=generator) for y in (train_y, test_y))
    found = fewshot(train_x, train_y, test_x, test_y, fractions=(0.02, 0.5), subsets=2, seed=3, min_steps=50)
    assert list(found) == ["0.02", "0.50"]
    first = torch.from_numpy(subset(train_y.numpy(), Size(part=0.02), seed=3))
    alone = linear(train_x[first], train_y[first], test_x, test_y, seed=3, min_steps=50)
    scores = found["0.02"]
    assert scores["subsets"][0] == alone.top1
    assert scores["top1"] == pytest.approx(sum(scores["subsets"]) / 2)
    assert scores["std"] == pytest.approx(abs(scores["subsets"][0] - scores["subsets"][1]) / 2)
    assert scores["num_train"] == len(first)
    assert torch.equal(scores["predictions"][0], alone.predictions)
    assert (scores["predictions"] == test_y).double().mean(dim=1).tolist() == scores["subsets"]
    assert 0.25 < scores["top1"] < found["0.50"]["top1"]


def test_labels_without_relation_give_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    features, labels = (
        torch.randn(2000, 50, generator=generator),
        torch.randint(0, 5, (2000,), generator=generator),
    )
    found = fewshot(
        features[:1000], labels[:1000], features[1000:], labels[1000:], fractions=(0.1,), min_steps=50
    )
    assert found["0.10"]["top1"] == pytest.approx(0.2, abs=0.04)
