"""What predictions tell of each class, where tables show it, and the file of a result."""

import json
from typing import Any

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, recall_score

from openjepa.evals.result import MOST_CLASSES, as_json, rows, shown, with_classes

NAMES = ("good", "scratch", "dent")


def answers(num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Unbalanced labels, and predictions that are often right."""
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(500, generator=generator).square() * num_classes).long()
    noise = torch.randint(0, num_classes, (500,), generator=generator)
    return labels, torch.where(torch.rand(500, generator=generator) < 0.7, labels, noise)


def test_figures_by_class_are_those_of_scikit_learn() -> None:
    labels, predictions = answers(3)
    told = with_classes({"top1": 0.5, "predictions": predictions, "k": 20}, labels, NAMES)
    assert list(told) == ["top1", "balanced_accuracy", "recall", "confusion", "k"]
    assert told["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predictions))
    assert list(told["recall"]) == list(NAMES)
    assert list(told["recall"].values()) == pytest.approx(recall_score(labels, predictions, average=None))
    assert told["confusion"] == confusion_matrix(labels, predictions).tolist()


def test_a_class_without_test_images_has_no_recall() -> None:
    told = with_classes({"predictions": torch.tensor([0, 1, 0])}, torch.tensor([0, 0, 2]), NAMES)
    assert told["recall"] == {"good": 0.5, "dent": 0.0}
    assert told["balanced_accuracy"] == 0.25
    assert told["confusion"] == [[1, 1, 0], [0, 0, 0], [1, 0, 0]]


def test_of_several_subsets_all_are_means() -> None:
    labels = torch.tensor([0, 0, 1, 2])
    several = torch.tensor([[0, 0, 1, 2], [0, 1, 2, 2]])
    told = with_classes({"0.01": {"top1": 0.75, "predictions": several}}, labels, NAMES)["0.01"]
    assert told["recall"] == {"good": 0.75, "scratch": 0.5, "dent": 1.0}
    assert told["confusion"] == [[1.5, 0.5, 0.0], [0.0, 0.5, 0.5], [0.0, 0.0, 1.0]]


def test_many_classes_have_recall_but_no_matrix() -> None:
    num = MOST_CLASSES + 1
    told = with_classes({"predictions": torch.arange(num)}, torch.arange(num), [str(n) for n in range(num)])
    assert told["balanced_accuracy"] == 1
    assert "confusion" not in told


def result(*, majority: float) -> dict[str, Any]:
    """Of a probe and of subsets on three classes."""
    recall = {"recall": dict.fromkeys(NAMES, 0.5), "balanced_accuracy": 0.5}
    few = {"0.10": {"top1": 0.6, **recall}, "majority_class": majority}
    return {
        "protocols": {
            "knn": {"top1": 0.7, **recall, "majority_class": majority},
            "dense_depth": {"delta1": 0.4, "constant": {"delta1": 0.3}},
            "fewshot": few,
        },
        "baselines": {
            "raw_pixels": {
                "knn": {"top1": 0.65, "balanced_accuracy": 0.35}, "dense_depth": {"delta1": 0.2},
                "fewshot": {"0.10": {"top1": 0.5, "std": 0.0, "balanced_accuracy": 0.34}},
            }
        },
    }  # fmt: skip


def test_tables_tell_balanced_accuracy_where_classes_are_unbalanced() -> None:
    told = {row.name: row.values for row in rows(result(majority=0.6))}
    assert told == {
        "knn": (0.7, 0.65, 0.6),
        "knn, balanced": (0.5, 0.35, pytest.approx(1 / 3)),
        "dense_depth δ<1.25": (0.4, 0.2, 0.3),
        "fewshot 0.10": (0.6, 0.5, 0.6),
        "fewshot 0.10, balanced": (0.5, 0.34, pytest.approx(1 / 3)),
    }
    assert shown(result(majority=0.6), "raw_pixels")["knn, balanced"] == 0.35
    assert list(shown(result(majority=0.4))) == ["knn", "dense_depth δ<1.25", "fewshot 0.10"]


def test_results_of_earlier_versions_have_a_table() -> None:
    earlier = {
        "protocols": {"knn": {"top1": 0.9, "majority_class": 0.8}},
        "baselines": {"raw_pixels": {"knn": {"top1": 0.8}}},
    }
    assert [(row.name, row.values) for row in rows(earlier)] == [("knn", (0.9, 0.8, 0.8))]


def test_the_file_has_a_line_a_row_of_a_matrix() -> None:
    told = {
        "confusion": [[1, 0], [22, 3.5]],
        "name": "[\n 1\n]",
        "rates": [1e-05, -3.0],
        "none": [],
        "words": ["a"],
    }
    text = as_json(told)
    assert json.loads(text) == told
    assert "  [1, 0],\n  [22, 3.5]\n" in text
    assert '"rates": [1e-05, -3.0]' in text
    mixed = {"numbers": [*[-1.0] * 60, "none"]}  # no list of numbers, which is seen at once
    assert json.loads(as_json(mixed)) == mixed
