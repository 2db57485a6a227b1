"""`evaluate` as a whole: the result, one pass over the images, baselines, and errors of the user's data."""

import dataclasses
import io
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from openjepa.data.builtin import ArraySource
from openjepa.data.dataset import ImageDataset
from openjepa.errors import CheckpointError, DataError, UserError
from openjepa.evals.config import EvalConfig
from openjepa.evals.result import format_table
from openjepa.evals.run import evaluate
from openjepa.evals.store import FeatureStore

CLASSES = ("dark", "green", "red")
FACTS: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


def make(
    num: int, *, seed: int, classes: tuple[str, ...] = CLASSES, labels: NDArray[np.int64] | None = None
) -> ImageDataset:
    """Noisy 8 × 8 images tinted by their class's name; `labels` replaces those that go with the images."""
    generator = np.random.default_rng(seed)
    true = generator.integers(0, len(classes), num)
    tints = {"dark": (40, 40, 40), "green": (60, 130, 60), "red": (130, 60, 60), "blue": (60, 60, 130)}
    pixels = np.array([tints[name] for name in classes])[true][:, None, None, :]
    images = np.clip(pixels + generator.normal(0, 60, (num, 8, 8, 3)), 0, 255).astype(np.uint8)
    source = ArraySource(f"set-{seed}", images, true if labels is None else labels, classes, "")
    return ImageDataset(source, image_size=(8, 8))


def encode(images: Tensor) -> Tensor:
    """(B, 3, 8, 8) -> (B, 4, 3): mean colour of each quarter."""
    return torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(2).mT


def noise(images: Tensor) -> Tensor:
    """An encoder that sees next to nothing: (B, 4, 1)."""
    return images[:, :1, ::4, ::4].reshape(-1, 4, 1)


def test_result_is_what_the_contract_says() -> None:
    train, test = make(300, seed=1), make(90, seed=2)
    seen = []

    def counting(images: Tensor) -> Tensor:
        seen.append(len(images))
        return encode(images)

    result = evaluate(
        counting, train=train, test=test, random_init=noise, checkpoint="runs/x", batch_size=64, **FACTS
    )
    assert sum(seen) == 390  # once for all protocols
    assert json.loads(json.dumps(result)) == result
    assert set(result) == {
        "checkpoint", "encoder", "num_train", "num_test", "majority_class", "protocols", "baselines",
    }  # fmt: skip
    assert (result["checkpoint"], result["encoder"]) == ("runs/x", "target")
    assert (result["num_train"], result["num_test"]) == (300, 90)
    assert set(result["protocols"]) == {"knn", "linear", "logistic"}
    assert result["protocols"]["knn"].items() >= {"k": 20, "temperature": 0.07}.items()
    assert {"lr", "validation_top1"} <= set(result["protocols"]["linear"])
    assert {"C", "solver"} <= set(result["protocols"]["logistic"])
    assert set(result["baselines"]) == {"random_init", "raw_pixels"}
    for name, scores in result["protocols"].items():
        assert scores["top1"] > 0.9
        assert result["baselines"]["random_init"][name].keys() == {"top1", "balanced_accuracy"}
        assert list(scores["recall"]) == list(CLASSES)
        assert scores["balanced_accuracy"] == pytest.approx(np.mean(list(scores["recall"].values())))
        confusion = np.array(scores["confusion"])
        assert confusion.sum(axis=1).tolist() == np.bincount(test.labels).tolist()
        assert np.trace(confusion) / 90 == pytest.approx(scores["top1"])
        assert result["baselines"]["random_init"][name]["top1"] < scores["top1"]
        assert 0.5 < result["baselines"]["raw_pixels"][name]["top1"] <= 1

    most = np.bincount(train.labels).argmax()
    assert result["majority_class"] == pytest.approx(np.mean(test.labels == most))

    out = io.StringIO()
    Console(file=out, width=100).print(format_table(result))
    text = out.getvalue()
    assert all(word in text for word in ("runs/x", "knn", "linear", "logistic", "random init", "raw pixels"))
    assert f"{result['protocols']['knn']['top1']:.1%}" in text


def test_without_baselines_and_with_chosen_protocols() -> None:
    result = evaluate(encode, train=make(90, seed=1), test=make(30, seed=2), protocols=["knn"], **FACTS)
    assert result["baselines"] == {}
    assert list(result["protocols"]) == ["knn"]
    assert format_table(result).row_count == 1


def test_classes_are_matched_by_name_not_by_number() -> None:
    """Each data set numbers its own classes; a class without images does not count."""
    train = make(120, seed=1)
    test = make(60, seed=2)
    names = ("unused", "red", "green", "dark")
    labels = np.array([names.index(CLASSES[label]) for label in test.labels])
    other = ArraySource("set-2", test.source.images, labels, names, "")
    expected = evaluate(encode, train=train, test=test, **FACTS)
    assert evaluate(encode, train=train, test=ImageDataset(other, image_size=(8, 8)), **FACTS) == expected


def test_images_without_label_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    train = make(120, seed=1)
    train.labels[:20] = -1
    with caplog.at_level(logging.WARNING):
        result = evaluate(encode, train=train, test=make(60, seed=2), protocols=["knn"], **FACTS)
    assert result["num_train"] == 100
    assert "set-1: 20 images have no label" in caplog.text


def test_views_are_of_the_training_images_alone() -> None:
    seen: list[int] = []

    def counting(images: Tensor) -> Tensor:
        seen.append(len(images))
        return encode(images)

    result = evaluate(
        counting, train=make(90, seed=1), test=make(30, seed=2), protocols=["linear", "logistic", "fewshot"],
        config=EvalConfig(views=2, fewshot={"fractions": (0.2,)}), **FACTS,
    )  # fmt: skip
    assert sum(seen) == 3 * 90 + 30
    assert (result["num_train"], result["num_test"]) == (90, 30)
    assert result["protocols"]["linear"]["top1"] > 0.8
    assert result["protocols"]["fewshot"]["0.20"]["num_train"] == pytest.approx(18, abs=2)


def test_a_bar_for_each_data_set() -> None:
    told: list[tuple[int, list[int]]] = []

    class Bar:
        def __init__(self, total: int) -> None:
            self.done: list[int] = []
            told.append((total, self.done))

        def __enter__(self) -> "Bar":
            return self

        def __exit__(self, *error: object) -> None:
            self.done.append(-1)

        def advance(self, num: int) -> None:
            self.done.append(num)

    train, test = make(100, seed=1), make(30, seed=2)
    evaluate(encode, train=train, test=test, protocols=["knn"], batch_size=64, bars=Bar, **FACTS)
    assert told == [(100, [64, 36, -1]), (30, [30, -1])]


def test_count_and_depth_have_labels_of_their_own() -> None:
    """A probe on another label of the same images, with its own majority class; images may lack one label only."""
    train, test = make(300, seed=1), make(90, seed=2)
    bright = [np.where(part.labels == 0, 0, 1) for part in (train, test)]  # dark, or any colour
    bright[0][:50] = -1
    sources = tuple(
        dataclasses.replace(part.source, labels=labels, classes=("no", "yes"))
        for part, labels in zip((train, test), bright, strict=True)
    )
    result = evaluate(
        encode, train=train, test=test, protocols=["count", "knn"], label_sources={"count": sources},
        random_init=noise, **FACTS,
    )  # fmt: skip
    count = result["protocols"]["count"]
    assert count["top1"] > 0.9
    assert count["knn_top1"] > 0.9
    assert count["majority_class"] == pytest.approx(np.mean(bright[1] == 1))
    assert list(count["recall"]) == ["no", "yes"]
    assert result["baselines"]["raw_pixels"]["count"].keys() == {"top1", "balanced_accuracy", "knn_top1"}
    assert result["num_train"] == 300


def corners(num: int, *, seed: int) -> ImageDataset:
    """Dark images with one bright spot, whose place is the class: two corners, of equal distance to the middle."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, num)
    images = generator.integers(0, 40, (num, 8, 8, 3), dtype=np.uint8)
    images[np.arange(num), 7 * labels, 7 * labels] = 200
    return ImageDataset(
        ArraySource(f"corners-{seed}", images, labels, ("left", "right"), ""), image_size=(8, 8)
    )


def test_a_grid_of_regions_tells_places_that_the_mean_does_not() -> None:
    seen: list[int] = []

    def counting(images: Tensor) -> Tensor:
        seen.append(len(images))
        return torch.nn.functional.adaptive_avg_pool2d(images, 4).flatten(2).mT  # (B, 16, 3)

    protocols = ["linear_grid", "knn", "linear"]
    config = EvalConfig(linear_grid={"grid": 2}, linear={"min_steps": 60, "epochs": 2})
    found = evaluate(
        counting, train=corners(300, seed=1), test=corners(200, seed=2), protocols=protocols, patch_size=(2, 2),
        random_init=noise_by_patch, config=config, **FACTS,
    )  # fmt: skip
    assert sum(seen) == 500  # both poolings are of one pass
    assert list(found["protocols"]) == protocols
    assert found["protocols"]["linear_grid"]["top1"] > 0.95
    assert found["protocols"]["linear_grid"]["grid"] == 2
    assert found["protocols"]["linear"]["top1"] < 0.65
    assert list(found["baselines"]["random_init"]) == protocols
    pixels = found["baselines"]["raw_pixels"]
    assert pixels["linear_grid"] == pixels["linear"]  # they are not averaged


def noise_by_patch(images: Tensor) -> Tensor:
    """An encoder that sees one pixel of each 2 x 2: (B, 16, 1)."""
    return images[:, :1, ::2, ::2].reshape(-1, 16, 1)


def test_permuted_labels_give_chance() -> None:
    """More pixels than images: a fit that had seen the test images would know their labels by heart."""
    train, test = (
        make(num, seed=seed, labels=np.random.default_rng(seed + 7).integers(0, 3, num))
        for num, seed in ((100, 1), (80, 2))
    )
    config = EvalConfig(fewshot={"fractions": (0.5,), "per_class": (5,)})
    result = evaluate(
        lambda images: images.flatten(1)[:, None], train=train, test=test, config=config,
        protocols=["knn", "linear", "logistic", "fewshot"], **FACTS,
    )  # fmt: skip
    few = result["protocols"].pop("fewshot")
    for scores in (*result["protocols"].values(), few["0.50"], few["5 a class"]):
        assert scores["top1"] == pytest.approx(1 / 3, abs=0.16)  # 3 standard errors


def unlabelled(num: int, *, seed: int) -> ImageDataset:
    source = dataclasses.replace(make(num, seed=seed).source, labels=None)
    return ImageDataset(source, image_size=(8, 8))


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (make(30, seed=1, classes=("red",)), make(30, seed=2, classes=("red",)), r"--train set-1.* one class, 'red'"),
        (
            make(30, seed=1, classes=("dark", "red")),
            make(30, seed=2, classes=("blue", "red")),
            r"--test set-2 has images of 'blue', and --train set-1 has none of it; its classes are 'dark', 'red'",
        ),
        (unlabelled(30, seed=1), make(30, seed=2), r"--train set-1: no image has a label"),
        (make(30, seed=1), make(30, seed=2, labels=np.full(30, -1)), r"--test set-2: no image has a label"),
    ],
)  # fmt: skip
def test_unfit_data_are_refused_before_any_work(
    train: ImageDataset, test: ImageDataset, message: str
) -> None:
    def never(images: Tensor) -> Tensor:
        raise AssertionError

    with pytest.raises(DataError, match=message) as error:
        evaluate(never, train=train, test=test, **FACTS)
    assert error.value.exit_code == 3


def test_a_class_without_test_images_is_not_tested(caplog: pytest.LogCaptureFixture) -> None:
    train, test = make(60, seed=1), make(30, seed=2, classes=("dark", "red"))
    result = evaluate(encode, train=train, test=test, protocols=["knn", "linear"], **FACTS)
    assert "--test set-2 has no image of 'green': not tested" in caplog.text
    for scores in result["protocols"].values():
        assert set(scores["recall"]) == {"dark", "red"}
        assert scores["balanced_accuracy"] == pytest.approx(np.mean(list(scores["recall"].values())))


def test_nan_names_the_checkpoint() -> None:
    with pytest.raises(CheckpointError, match=r"runs/x \(target encoder\).* NaN"):
        evaluate(
            lambda images: encode(images) * torch.nan,
            train=make(30, seed=1), test=make(30, seed=2), checkpoint="runs/x", **FACTS,
        )  # fmt: skip


def test_unknown_protocol() -> None:
    with pytest.raises(UserError, match=r"--protocols: linaer not known; choose from knn, linear, logistic"):
        evaluate(encode, train=make(9, seed=1), test=make(9, seed=2), protocols=["linaer"], **FACTS)


@pytest.mark.parametrize("first", ["with the image", "without it"])
def test_kept_features_go_with_new_ones_of_the_same_images_only(tmp_path: Path, first: str) -> None:
    """An image that became unreadable, or readable, between two evaluations: no row slips past its label."""
    facts = {"encoder": 1, "random_init": 2, "raw_pixels": 3}

    def data(*, readable: bool) -> dict[str, ImageDataset]:
        train, test = make(300, seed=1), make(150, seed=2)
        for dataset in (train, test) if not readable else ():
            dataset._bad[0] = "cannot be read"
        return {"train": train, "test": test}

    def result(now: dict[str, ImageDataset], store: FeatureStore | None, **options: Any) -> dict[str, Any]:
        return evaluate(encode, **now, protocols=["knn", "logistic"], store=store, **FACTS, **options)

    before = first == "with the image"
    result(data(readable=before), FeatureStore(tmp_path, facts))
    for _ in range(2):
        found = result(data(readable=not before), FeatureStore(tmp_path, facts), random_init=noise)
        assert found == result(data(readable=not before), None, random_init=noise)
        assert found["num_train"] == (299 if before else 300)
