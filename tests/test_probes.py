"""Which lines of metrics end a run, and what is said of a k-NN that watches it."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from make_images import encode
from openjepa.checks import Checks
from openjepa.data.dataset import ImageDataset
from openjepa.data.preprocess import Preprocess
from openjepa.data.sources import open_source
from openjepa.errors import CollapseError, DataError, UserError
from openjepa.evals.run import evaluate
from openjepa.health import feature_std, rankme
from openjepa.inputs import prepare
from openjepa.masks import make_masks
from openjepa.methods import build
from openjepa.models.architecture import Architecture
from openjepa.probes import HealthProbe, KnnProbe, OnlineProbe, StopOnCollapse

HEALTHY: dict[str, Any] = {
    "step": 500, "progress": 0.5, "rankme": 9.0, "feature_std": 0.04, "explained_variance": 0.3, "position_gap": 0.5,
}  # fmt: skip


def ends(*rows: dict[str, Any]) -> bool:
    stop = StopOnCollapse(num_features=128)
    try:
        for row in rows:
            stop(row)
    except CollapseError:
        return True
    return False


@pytest.mark.parametrize(
    "changes",
    [{}, {"progress": 1.0}, {"position_gap": 0.0}, {"explained_variance": -1.0, "progress": 1.0}],
    ids=["healthy", "healthy at the end", "position at the start", "hard to predict"],
)
def test_runs_that_go_on(changes: dict[str, float]) -> None:
    assert not ends(HEALTHY | changes, HEALTHY | changes)


def test_a_collapse_must_be_seen_twice_in_a_row() -> None:
    collapsed = HEALTHY | {"feature_std": 1e-4}
    without_health = {"step": 510, "progress": 0.5, "loss": 1.0}
    assert not ends(collapsed, HEALTHY, collapsed)
    assert ends(collapsed, without_health, collapsed)


def test_a_masked_autoencoder_is_not_ended_by_the_position_gap() -> None:
    row = HEALTHY | {"position_gap": -0.002, "explained_variance": -0.1, "progress": 1.0}
    StopOnCollapse(num_features=128, method="mae")(row)
    with pytest.raises(CollapseError, match="position only"):
        StopOnCollapse(num_features=128)(row)


def test_a_line_without_health_says_nothing() -> None:
    assert not ends({"step": 3, "progress": 1.0, "loss": 0.0, "feature_std": 0.0})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"feature_std": 1e-4, "progress": 1.0}, "step 500: collapsed"),
        ({"rankme": float("nan")}, "broken"),
        ({"position_gap": 0.001, "progress": 1.0}, "position only"),
    ],
)
def test_runs_that_end(changes: dict[str, float], words: str) -> None:
    with pytest.raises(CollapseError, match=words) as error:
        StopOnCollapse(num_features=128)(HEALTHY | changes)
    assert error.value.exit_code == 6


def test_the_watching_knn_compares_with_the_untrained_encoder_and_tells_a_plateau(tmp_path: Path) -> None:
    for name, level in (("dark", 60), ("light", 200)):
        (tmp_path / name).mkdir()
        for number in range(6):
            pixels = np.full((32, 32, 3), level + number, np.uint8)
            (tmp_path / name / f"{number}.png").write_bytes(encode(pixels))
    data = ImageDataset(open_source(tmp_path), image_size=(32, 32))
    model = build(
        "ijepa", Architecture((32, 32), (8, 8), 3, 16, 1, 2, 2.0, 8, 1, 2), loss="mse", target_norm="layer"
    )
    model.preprocess = Preprocess.imagenet((32, 32), 3)
    said: list[str] = []
    calls = []

    def untrained(images: Tensor) -> Tensor:
        calls.append(len(images))
        return torch.zeros(len(images), 4, 2)  # knows nothing

    probe = KnnProbe(data, data, untrained=untrained, say=said.append)
    for _ in range(6):
        row = probe(model.eval())
    assert row == {"knn_top1": 1.0}
    assert sum(calls) == 24  # asked once, for both data sets
    assert said[0] == "k-NN     100.0% of 12 test images, from 12; untrained 50.0%"
    assert said[5].endswith("no longer helps")


def test_the_watching_knn_compares_classes_by_name(tmp_path: Path) -> None:
    """Each data set numbers its own classes: here the second numbers them the other way round."""
    manifests = []
    for split, names in (("train", ("dark", "light")), ("test", ("light", "dark"))):
        lines = ["path,label"]
        for name in names:
            for number in range(4):
                file = tmp_path / f"{split}-{name}-{number}.png"
                file.write_bytes(
                    encode(np.full((32, 32, 3), {"dark": 60, "light": 200}[name] + number, np.uint8))
                )
                lines.append(f"{file.name},{name}")
        lines.append(f"{split}-{names[0]}-0.png,")  # of no class
        manifests.append(tmp_path / f"{split}.csv")
        manifests[-1].write_text("\n".join(lines) + "\n")
    train, test = (ImageDataset(open_source(path), image_size=(32, 32)) for path in manifests)
    model = build(
        "ijepa", Architecture((32, 32), (8, 8), 3, 16, 1, 2, 2.0, 8, 1, 2), loss="mse", target_norm="layer"
    )
    model.preprocess = Preprocess.imagenet((32, 32), 3)
    said: list[str] = []
    assert KnnProbe(train, test, untrained=model.target_encoder, say=said.append)(model.eval()) == {
        "knn_top1": 1.0
    }
    assert "of 8 test images, from 8" in said[0]
    other = replace(test.source, classes=("red", "green"))
    with pytest.raises(
        DataError, match=r"no image is of a class that --eval-train .* has: 'red', 'green' and"
    ):
        KnnProbe(
            train, ImageDataset(other, image_size=(32, 32)), untrained=model.target_encoder, say=said.append
        )


def test_protocols_run_now_and_then_and_draw_nothing_of_the_run(tmp_path: Path) -> None:
    for name, level in (("dark", 60), ("light", 200)):
        (tmp_path / name).mkdir()
        for number in range(12):
            pixels = np.full((32, 32, 3), level + number, np.uint8)
            (tmp_path / name / f"{number}.png").write_bytes(encode(pixels))
    data = ImageDataset(open_source(tmp_path), image_size=(32, 32))
    model = build(
        "ijepa", Architecture((32, 32), (8, 8), 3, 16, 1, 2, 2.0, 8, 1, 2), loss="mse", target_norm="layer"
    ).eval()
    model.preprocess = Preprocess.imagenet((32, 32), 3)
    said: list[str] = []
    probe = OnlineProbe(data, data, protocols=["knn", "logistic"], every_minutes=0.001, say=said.append)
    time.sleep(0.1)
    state = torch.get_rng_state()
    row = probe(model)
    assert torch.equal(state, torch.get_rng_state())
    assert row.keys() == {"knn_top1", "logistic_top1"}
    assert row["logistic_top1"] > 0.9
    assert said[0].startswith("online   knn ")
    plain = evaluate(
        lambda images: model.target_encoder.layers(images, 4), train=data, test=data, protocols=["knn", "linear"],
        mean=model.preprocess.mean, std=model.preprocess.std,
    )["protocols"]  # fmt: skip
    probe = OnlineProbe(data, data, protocols=["knn", "linear"], every_minutes=0.001, say=said.append)
    time.sleep(0.1)
    dtypes: list[torch.dtype] = []

    def watched(x: Tensor) -> Tensor:
        dtypes.append((x @ x.T).dtype)
        return F.pad(x, (0, 1), value=1.0)

    with torch.autocast("cpu", torch.bfloat16), pytest.MonkeyPatch.context() as patch:
        patch.setattr("openjepa.evals.linear._with_one", watched)
        row = probe(model)
    assert set(dtypes) == {torch.float32}  # fits are as in openjepa evaluate, whatever the run's precision
    assert row == {f"{name}_top1": pytest.approx(plain[name]["top1"], abs=0.05) for name in ("knn", "linear")}
    rare = OnlineProbe(data, data, protocols=["knn"], every_minutes=5, say=said.append)
    assert rare(model) == {}
    with pytest.raises(UserError, match="kmeans not known"):
        OnlineProbe(data, data, protocols=["kmeans"], every_minutes=5, say=said.append)
    with pytest.raises(UserError, match=r"log\.protocols: count are about labels of their own"):
        OnlineProbe(data, data, protocols=["count"], every_minutes=5, say=said.append)


def watched(tmp_path: Path, num: int) -> tuple[ImageDataset, Any]:
    """Images of different brightness, and a small model."""
    for number in range(num):
        pixels = np.full((32, 32, 3), number, np.uint8)
        pixels[::2, number % 32] = 255
        (tmp_path / f"{number:03}.png").write_bytes(encode(pixels))
    data = ImageDataset(open_source(tmp_path), image_size=(32, 32))
    shape = Architecture((32, 32), (8, 8), 3, 16, 1, 2, 2.0, 8, 1, 2)
    model = build("ijepa", shape, loss="mse", target_norm="layer").eval()
    model.preprocess = Preprocess.imagenet((32, 32), 3)
    return data, model


def test_health_is_measured_beside_the_untrained_encoder_of_the_same_images(tmp_path: Path) -> None:
    data, model = watched(tmp_path, 100)
    masks = make_masks("random", grid=(4, 4), target_fraction=0.75)
    calls: list[int] = []

    def untrained(images: Tensor) -> Tensor:
        calls.append(len(images))
        return 2 * model.target_encoder(images)

    probe = HealthProbe(data, masks, untrained=untrained)
    row = [probe(model), probe(model)][1]
    assert sum(calls) == 100  # once
    features = model.target_encoder(prepare(data.evaluation_batch(np.arange(100)).images, model)).mean(dim=1)
    assert row["feature_std"] == pytest.approx(feature_std(features), abs=1e-6)
    assert row["untrained_std"] == row["feature_std"]  # of unit length
    assert row["untrained_rankme"] == row["rankme"] == pytest.approx(rankme(features), abs=1e-3)


def test_a_run_of_few_images_watches_few_and_they_are_spread_over_the_data(tmp_path: Path) -> None:
    data, model = watched(tmp_path, 250)
    masks = make_masks("random", grid=(4, 4), target_fraction=0.75)
    seen: list[Tensor] = []

    def untrained(images: Tensor) -> Tensor:
        seen.append(images[:, 0, 1, 0])
        return model.target_encoder(images)

    for checks in (Checks.of_steps(300, batch_size=64), Checks.of_minutes(1e-6)):
        seen.clear()
        HealthProbe(data, masks, untrained=untrained, checks=checks)(model)
        assert len(seen) == 1
        assert 60 <= len(seen[0]) <= 64
        levels = seen[0].sort().values
        assert (levels[1:] - levels[:-1]).max() < 6 * (levels[-1] - levels[0]) / 250


def test_the_watching_knn_of_a_short_run_uses_fewer_images(tmp_path: Path) -> None:
    for name, level in (("dark", 60), ("light", 200)):
        (tmp_path / name).mkdir()
        for number in range(700):
            (tmp_path / name / f"{number}.png").write_bytes(
                encode(np.full((32, 32, 3), level + number % 50, np.uint8))
            )
    data = ImageDataset(open_source(tmp_path), image_size=(32, 32))
    _, model = watched(tmp_path, 1)
    said: list[str] = []
    probe = KnnProbe(
        data,
        data,
        untrained=model.target_encoder,
        say=said.append,
        num_test=350,
        checks=Checks.of_steps(300, batch_size=8),
    )
    assert probe(model) == {"knn_top1": 1.0}
    assert said[0].startswith("k-NN     100.0% of 200 test images, from 800;")
