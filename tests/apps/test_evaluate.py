"""`openjepa evaluate`, `predict` and suites: from real files to real files, and made again from what they say."""

import csv
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import openjepa
from openjepa.apps.embed import frozen_encoder
from openjepa.apps.evaluate import evaluate, rerun
from openjepa.apps.suite import evaluate_suite, load_suite
from openjepa.cli import main
from openjepa.data.dataset import ImageDataset
from openjepa.data.scenes import source as scenes
from openjepa.errors import CheckpointError, DataError, UserError
from openjepa.evals import on_images
from openjepa.evals.features import Encoder
from openjepa.evals.heads import load_head
from openjepa.models.vit import VisionTransformer

GOLDEN = Path(__file__).parents[1] / "golden" / "tiny-32-p4-before.pth.tar"
HEADS: int = json.loads(GOLDEN.with_name("tiny-32-p4.json").read_text())["num_heads"]
FAST = ["linear.min_steps=40", "linear.epochs=2"]
FINETUNE = ["finetune.epochs=1", "finetune.batch_size=32", "fewshot.fractions=[0.1]", "fewshot.subsets=2"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENJEPA_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train and test images of three classes that differ in colour."""
    root, draw = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split, num in (("train", 60), ("test", 30)):
        for number in range(num):
            name = ("blue", "green", "red")[number % 3]
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            tint = np.array({"red": (150, 70, 70), "green": (70, 150, 70), "blue": (70, 70, 150)}[name])
            pixels = (tint + draw.normal(0, 40, (32, 32, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number:03}.png")
    return root


def arguments(data: Path, **changes: Any) -> dict[str, Any]:
    return {"train": data / "train", "test": data / "test", "num_heads": HEADS, "set": FAST, **changes}


def test_features_are_computed_once_and_then_taken_from_the_disk(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO):
        first = evaluate(GOLDEN, **arguments(data, baselines=True))
        assert caplog.text.count("images embedded") == 2
        caplog.clear()
        second = evaluate(GOLDEN, **arguments(data, baselines=True))
        assert "embedded" not in caplog.text
        assert first == second
        evaluate(GOLDEN, **arguments(data, encoder="context"))  # other weights
        assert caplog.text.count("images embedded") == 2
    table = capsys.readouterr().out
    assert all(word in table for word in ("knn", "linear", "logistic", "raw pixels"))
    assert first["settings"]["linear"]["epochs"] == 2
    assert first["environment"]["torch"] == torch.__version__
    assert len(first["weights_sha256"]) == 64


def test_a_result_is_made_again_from_itself_and_only_from_the_same(data: Path, tmp_path: Path) -> None:
    out, again = tmp_path / "a.json", tmp_path / "b.json"
    first = evaluate(GOLDEN, **arguments(data, protocols=["knn", "linear"], out=out))
    assert rerun(out, out=again) == first == json.loads(again.read_text())
    told = json.loads(out.read_text())
    out.write_text(json.dumps({**told, "weights_sha256": "0" * 64}))
    with pytest.raises(CheckpointError, match=r"has other weights now"):
        rerun(out)
    out.write_text(json.dumps({**told, "data": {**told["data"], "test": "0"}}))
    with pytest.raises(DataError, match=r"the test images, .* are not those"):
        rerun(out)
    out.write_text("{}")
    with pytest.raises(CheckpointError, match=r"not a result of this version"):
        rerun(out)


def test_a_result_is_made_again_in_its_precision(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a.json"
    for pays in (False, True):
        monkeypatch.setattr("openjepa.apps.evaluate.bfloat16_pays", lambda device, pays=pays: pays)
        first = evaluate(GOLDEN, **arguments(data, protocols=["knn"], out=out))
        assert first["precision"] == ("bfloat16" if pays else "float32")
        monkeypatch.setattr("openjepa.apps.evaluate.bfloat16_pays", lambda device, pays=pays: not pays)
        assert rerun(out) == first


def test_views_are_mirrored_unless_forbidden(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray[Any, np.dtype[np.bool_]]] = []
    views = ImageDataset._views

    def watched(self: ImageDataset, images: Any, boxes: Any, flips: Any) -> Any:
        seen.append(flips)
        return views(self, images, boxes, flips)

    monkeypatch.setattr(ImageDataset, "_views", watched)
    for setting, some in (("flip=true", True), ("flip=false", False)):
        evaluate(GOLDEN, **arguments(data, protocols=["knn"], set=[*FAST, "views=1", setting]))
        assert np.concatenate(seen).any() == some
        seen.clear()


def test_a_result_of_before_there_was_mirroring_is_made_again_without(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    first = evaluate(
        GOLDEN, **arguments(data, protocols=["knn"], set=[*FAST, "views=1", "flip=false"], out=out)
    )
    told = json.loads(out.read_text())
    del told["settings"]["flip"]
    out.write_text(json.dumps(told))
    assert rerun(out) == first


def test_the_device_is_chosen_kept_and_taken_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[str] = []

    def on_cpu(network: VisionTransformer, *, device: str, **options: Any) -> Encoder:
        used.append(device)
        return frozen_encoder(network, device="cpu", **options)

    monkeypatch.setattr("openjepa.apps.evaluate.frozen_encoder", on_cpu)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda **_: False)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "a GPU")
    out = tmp_path / "result.json"
    for device, meant in (("auto", "cuda"), ("cpu", "cpu")):
        found = evaluate(GOLDEN, **arguments(data, protocols=["knn"], device=device, out=out))
        rerun(out)
        assert found["device"] == meant
        assert set(used) == {meant}
        used.clear()
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match=r"--device: 'cuda' is not available here; available: cpu"):
        evaluate(GOLDEN, **arguments(data, device="cuda"))


@pytest.mark.parametrize("protocol", ["linear", "linear_grid", "logistic"])
def test_a_saved_head_says_of_new_images_what_the_protocol_said(
    data: Path, tmp_path: Path, protocol: str
) -> None:
    result = evaluate(GOLDEN, **arguments(data, protocols=["knn", protocol], save_head=tmp_path / "head"))
    out = tmp_path / "classes.csv"
    openjepa.predict(GOLDEN, data / "test", head=tmp_path / "head", out=out, num_heads=HEADS)
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 30
    hits = [Path(row["path"]).parent.name == row["class"] for row in rows]
    assert np.mean(hits) == pytest.approx(result["protocols"][protocol]["top1"])
    assert all(1 / 3 <= float(row["probability"]) <= 1 for row in rows)
    head, facts = load_head(tmp_path / "head")
    assert (facts.classes, facts.protocol, facts.encoder) == (["blue", "green", "red"], protocol, "target")
    assert head.weight.shape[0] == 3


def test_the_first_head_that_was_asked_for_is_saved(data: Path, tmp_path: Path) -> None:
    """Though protocols are fitted pooling by pooling."""
    protocols = ["knn", "linear_grid", "linear"]
    settings = [*FAST, "linear_grid.grid=2", "linear.learning_rates=[0.1]"]
    evaluate(GOLDEN, **arguments(data, protocols=protocols, set=settings, save_head=tmp_path / "head"))
    _, facts = load_head(tmp_path / "head")
    assert (facts.protocol, facts.pooling) == ("linear_grid", "grid2")


def test_attention_over_patches(data: Path, tmp_path: Path) -> None:
    settings = ["attentive.min_steps=60", "attentive.epochs=1"]
    out = tmp_path / "a.json"
    result = evaluate(
        GOLDEN, **arguments(data, protocols=["attentive"], baselines=True, set=settings, out=out)
    )
    assert json.loads(out.read_text()) == result
    scores = result["protocols"]["attentive"]
    assert scores["top1"] > 0.8
    assert scores["lr"] in (1e-3, 3e-3, 1e-2, 3e-2)
    assert list(scores["recall"]) == ["blue", "green", "red"]
    assert (scores["num_train"], scores["majority_class"]) == (60, pytest.approx(1 / 3))
    assert set(result["baselines"]) == {"random_init", "raw_pixels"}
    assert result["baselines"]["raw_pixels"]["attentive"]["top1"] > 0.5
    again = evaluate(GOLDEN, **arguments(data, protocols=["attentive"], set=settings))
    assert again["protocols"] == result["protocols"]


def test_attention_uses_as_many_training_images_as_fit(
    data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    width = openjepa.load(GOLDEN, num_heads=HEADS).target_encoder.embed_dim
    monkeypatch.setattr(on_images, "MOST_BYTES", 30 * 64 * width * 2)
    with caplog.at_level(logging.INFO):
        result = evaluate(GOLDEN, **arguments(data, protocols=["attentive"], set=["attentive.min_steps=5"]))
    assert result["protocols"]["attentive"]["num_train"] == 30
    assert "attentive: 30 training images" in caplog.text


def test_heads_of_other_weights_and_damaged_heads_are_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, out = tmp_path / "head", tmp_path / "classes.csv"
    evaluate(GOLDEN, **arguments(data, protocols=["logistic"], save_head=head))
    other = GOLDEN.with_name(GOLDEN.name.replace("before", "after"))
    with pytest.raises(CheckpointError, match=r"whose weights are others than those of"):
        openjepa.predict(other, data / "test", head=head, out=out, num_heads=HEADS)
    with monkeypatch.context() as patch:  # before the work, not after it
        patch.setattr("openjepa.evals.run.evaluate", lambda *_, **__: pytest.fail("evaluated"))
        with pytest.raises(UserError, match=r"--save-head .*: exists"):
            evaluate(GOLDEN, **arguments(data, protocols=["logistic"], save_head=head))
        with pytest.raises(UserError, match=r"none of knn fits a linear head"):
            evaluate(GOLDEN, **arguments(data, protocols=["knn"], save_head=tmp_path / "new"))
    file = head / "head.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="can't be read"):
        openjepa.predict(GOLDEN, data / "test", head=head, out=out, num_heads=HEADS)
    facts = json.loads((head / "head.json").read_text())
    evaluate(GOLDEN, **arguments(data, protocols=["logistic"], save_head=tmp_path / "again"))
    facts.pop("encoder")
    (tmp_path / "again" / "head.json").write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match=r"damaged: .*'encoder'; write it again"):
        openjepa.predict(GOLDEN, data / "test", head=tmp_path / "again", out=out, num_heads=HEADS)
    with pytest.raises(CheckpointError, match=r"no head\.json in it"):
        openjepa.predict(GOLDEN, data / "test", head=tmp_path, out=out, num_heads=HEADS)
    assert not out.exists()


def test_the_images_of_few_shot_subsets_are_listed(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "few.json"
    settings = [*FAST, "fewshot.fractions=[0.1]", "fewshot.per_class=[5]", "fewshot.subsets=2"]
    result = evaluate(GOLDEN, **arguments(data, protocols=["fewshot"], out=out, set=settings))
    assert set(result["protocols"]["fewshot"]) == {"0.10", "5 a class", "majority_class"}
    lists = {path.name: path.read_text().splitlines() for path in (tmp_path / "few.subsets").iterdir()}
    assert set(lists) == {f"{size} seed {seed}.txt" for size in ("0.10", "5 a class") for seed in (0, 1)}
    listed = lists["5 a class seed 1.txt"]
    assert sorted(Path(path).parent.name for path in listed) == [
        name for name in ("blue", "green", "red") for _ in range(5)
    ]
    assert all(Path(path).is_file() for path in listed)
    assert listed != lists["5 a class seed 0.txt"]


def test_fine_tuning_beside_training_from_scratch(data: Path) -> None:
    pytest.importorskip("torchvision")
    protocols = ["finetune", "knn", "fewshot_finetune"]
    result = evaluate(GOLDEN, **arguments(data, protocols=protocols, baselines=True, set=FINETUNE))
    assert list(result["protocols"]) == protocols
    assert result["protocols"]["finetune"]["num_train"] == 60
    assert result["protocols"]["fewshot_finetune"]["0.10"]["num_train"] == 6
    assert result["baselines"]["random_init"]["finetune"].keys() == {"top1", "balanced_accuracy"}
    few = {"top1", "std", "balanced_accuracy"}
    assert set(result["baselines"]["random_init"]["fewshot_finetune"]["0.10"]) == few
    for scores in (result["protocols"]["finetune"], result["protocols"]["fewshot_finetune"]["0.10"]):
        assert list(scores["recall"]) == ["blue", "green", "red"]
        assert np.trace(scores["confusion"]) / 30 == pytest.approx(scores["top1"])
        assert "predictions" not in scores
    assert "finetune" not in result["baselines"]["raw_pixels"]


def test_scenes_tell_depth_and_things_by_patch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scenes, "SIZES", {"train": 96, "test": 48})
    monkeypatch.setenv("COLUMNS", "160")
    result = evaluate(
        GOLDEN, train="scenes", test="scenes", num_heads=HEADS, protocols=["dense_depth", "segmentation", "count"],
        baselines=True, set=FAST,
    )  # fmt: skip
    dense = result["protocols"]["dense_depth"]
    assert 0 < dense["rmse"] < dense["constant"]["rmse"] * 1.2
    assert set(result["baselines"]["raw_pixels"]["dense_depth"]) == {"rmse", "delta1"}
    assert (
        result["protocols"]["segmentation"]["miou"] > result["protocols"]["segmentation"]["constant"]["miou"]
    )
    table = capsys.readouterr().out
    assert all(word in table for word in ("dense_depth δ<1.25", "segmentation mIoU", "constant answer"))


def test_a_suite_gives_one_table(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite, out = tmp_path / "suite.yaml", tmp_path / "transfer.json"
    suite.write_text(
        f"""
protocols: [knn]
datasets:
  colours: {{train: "{data}/train", test: "{data}/test"}}
  R&D_50%: {{train: "{data}/test", test: "{data}/train", protocols: [knn, logistic]}}
"""
    )
    told = evaluate_suite(suite, checkpoint=GOLDEN, num_heads=HEADS, baselines=True, out=out)
    assert told == json.loads(out.read_text())
    results = told["results"][str(GOLDEN)]
    lines = (tmp_path / "transfer.md").read_text().splitlines()
    assert lines[0] == "| encoder | colours, knn | R&D_50%, knn | R&D_50%, logistic |"
    assert len(lines) == 2 + 3
    figures = [
        results["colours"]["protocols"]["knn"],
        results["R&D_50%"]["protocols"]["knn"],
        results["R&D_50%"]["protocols"]["logistic"],
    ]
    assert (
        lines[2] == f"| {GOLDEN} | " + " | ".join(f"{100 * figure['top1']:.1f}" for figure in figures) + " |"
    )
    assert r"R\&D\_50\%, logistic \\" in (tmp_path / "transfer.tex").read_text()
    assert [len(row) for row in results["colours"]["protocols"]["knn"]["confusion"]] == [3, 3, 3]
    assert not (tmp_path / "transfer.png").exists()  # no folder of a run says how long it took


def test_mistakes_in_a_suite(tmp_path: Path) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text("datasets: {a: {train: x}}")
    with pytest.raises(UserError, match=r"--suite .*: datasets\.a\.test: Field required"):
        load_suite(suite)
    suite.write_text("datasets: {}")
    with pytest.raises(UserError, match=r"datasets"):
        load_suite(suite)
    suite.write_text("datasets: {a: {train: x, test: y}}")
    with pytest.raises(UserError, match=r"which encoder\? Give CHECKPOINT"):
        evaluate_suite(suite)
    suite.write_text("checkpoints: {a: [x/run, y/run], b: x/run}\ndatasets: {a: {train: x, test: y}}")
    with pytest.raises(UserError, match=r"checkpoints: x/run is named twice"):
        evaluate_suite(suite)


def test_checkpoints_of_one_name_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        "checkpoints: {a: [seed0/run, seed1/run, seed0/last], b: c/run}\ndatasets: {d: {train: x, test: y}}"
    )
    monkeypatch.setattr("openjepa.apps.suite.evaluate", lambda path, **_: {"of": path})
    assert {name: result["d"]["of"] for name, result in evaluate_suite(suite)["results"].items()} == {
        "a, seed0/run": "seed0/run", "a, seed1/run": "seed1/run", "a, last": "seed0/last", "b": "c/run"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ("Give CHECKPOINT, --train and --test", ["runs/x", "--train", "scenes"]),
        (
            "--rerun takes checkpoint, data, settings and device from its file",
            ["runs/x", "--rerun", "a.json"],
        ),
        ("device from its file: give none", ["--device", "cpu", "--rerun", "a.json"]),
        (
            "--suite takes data and protocols from its file",
            ["runs/x", "--suite", "s.yaml", "--protocols", "knn"],
        ),
        (
            "--protocols: kmeans not known; choose from knn",
            ["runs/x", "--train", "a", "--test", "b", "--protocols", "kmeans"],
        ),
        ("unknown key 'linear.epoch'", ["runs/x", "--train", "a", "--test", "b", "--set", "linear.epoch=3"]),
    ],
)
def test_mistakes_on_the_command_line(
    words: str, command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["openjepa", "evaluate", *command])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


def test_features_that_are_not_numbers_name_the_checkpoint(data: Path, tmp_path: Path) -> None:
    saved = torch.load(GOLDEN, weights_only=True)
    saved["target_encoder"]["module.norm.weight"][0] = float("nan")
    torch.save(saved, tmp_path / "broken.pth.tar")
    with pytest.raises(CheckpointError, match=r"broken\.pth\.tar .*NaN or\s+infinite"):
        evaluate(tmp_path / "broken.pth.tar", **arguments(data))
