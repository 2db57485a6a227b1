"""The experiment bench: halving, tables, correlations; and real runs that are not made twice."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from make_images import jpeg


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "experiments.py"
    spec = importlib.util.spec_from_file_location("experiments", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["experiments"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def finished(folder: Path, linear: float, rankme: float) -> Path:
    """A folder as a finished run leaves it."""
    folder.mkdir()
    rows = [
        {"step": 5, "images": 50, "seconds": 5, "progress": 0.5, "loss": 0.3, "rankme": rankme, "feature_std": 0.1,
         "explained_variance": 0.2, "position_gap": 0.3},
        {"step": 6, "images": 60, "seconds": 6, "progress": 0.6, "loss": 0.2},
        {"step": 10, "images": 100, "seconds": 10, "progress": 1.0, "loss": 0.1, "rankme": 9.0, "feature_std": 0.1,
         "explained_variance": 0.2, "position_gap": 0.3},
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = {"protocols": {"linear": {"top1": linear}, "knn": {"top1": 0.25}}}
    (folder / "evaluation.json").write_text(json.dumps(result))
    return folder


def test_tables_halving_and_correlations(bench: ModuleType, tmp_path: Path) -> None:
    outcomes = [
        bench.Outcome(name, 3.0, seed, finished(tmp_path / f"{name}{seed}", linear, rankme))
        for name, seed, linear, rankme in (
            ("a", 0, 0.40, 5.0), ("a", 1, 0.44, 6.0), ("b", 0, 0.50, 8.0), ("c", 0, 0.30, 2.0),
        )
    ]  # fmt: skip
    assert bench.better_half(outcomes) == ["b", "a"]
    lines = bench.table(outcomes).splitlines()
    assert lines[2] == "| a | 3 | 2 | 10 | 10 | 9.0 | 42.0 ± 2.0 | 25.0 ± 0.0 |"
    assert lines[3] == "| b | 3 | 1 | 10 | 10 | 9.0 | 50.0 | 25.0 |"
    assert "| rankme | +1.00 |" in bench.correlations(outcomes)
    assert bench.spearman([1, 2, 3], [30, 20, 10]) == pytest.approx(-1)


def test_unknown_keys_are_told(bench: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("train: x\ntest: x\nminutes: 1\nrecipe: {}\n")
    with pytest.raises(SystemExit, match="recipe"):
        bench.Study.read(file)


@pytest.mark.slow
def test_real_runs(bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("red", "blue"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(8):
            (tmp_path / "data" / name / f"{number}.jpg").write_bytes(jpeg(32, 32 + number))
    file = tmp_path / "study.yaml"
    file.write_text(
        f"train: {tmp_path}/data\ntest: {tmp_path}/data\nminutes: [0.02, 0.03]\n"
        "options: [--preset, small, --set, model.name=vit_pico, --set, data.batch_size=8]\n"
        "recipes: {plain: [], mae: [--method, mae]}\n"
    )
    study = bench.Study.read(file)
    outcomes = bench.search(study, tmp_path / "runs")
    assert [outcome.minutes for outcome in outcomes] == [0.02, 0.02, 0.03]
    monkeypatch.setattr(bench.subprocess, "run", None)  # all is there already
    assert bench.table(bench.search(study, tmp_path / "runs")) == bench.table(outcomes)
