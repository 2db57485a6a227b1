"""Models that come with the package: small, whole, found by name from anywhere, and the same as the run they were."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import openjepa
from make_images import jpeg
from openjepa import shipped
from openjepa.checkpoint import Checkpoint
from openjepa.errors import CheckpointError
from openjepa.methods import IJEPA, build
from openjepa.models.architecture import Architecture
from openjepa.shipped import pack, packed, shipped_names, shipped_path, unpacked

MAX_BYTES = 8_000_000
SETTINGS = [
    "data.batch_size=4", "data.image_size=32", "model.name=vit_pico", "runtime.threads=1", "log.tensorboard=false",
    "first_stage.method=maskfeat", "ema.generations=1",
]  # fmt: skip
CARD = {"terms": "Drawn by a test: no terms.", "measured_with": "openjepa evaluate tiny …"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen images of two classes."""
    folder = tmp_path_factory.mktemp("photos")
    for name in ("day", "night"):
        (folder / name).mkdir()
        for number in range(8):
            (folder / name / f"{number}.jpg").write_bytes(jpeg(32, 40 + number))
    return folder


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two stages, finished and evaluated."""
    out = tmp_path_factory.mktemp("runs") / "run"
    openjepa.pretrain(data=photos, out=out, preset="small", steps=4, set=SETTINGS)
    openjepa.evaluate(
        out, train=photos, test=photos, protocols=["knn"], baselines=True, out=out / "evaluation.json"
    )
    return out


@pytest.fixture(scope="module")
def weights(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of shipped models with one in it, `tiny`."""
    folder = tmp_path_factory.mktemp("package") / "weights"
    assert pack(run, folder / "tiny", **CARD) == folder / "tiny"
    return folder


@pytest.fixture
def elsewhere(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of someone who has the package, with `tiny` in it, and nothing else."""
    monkeypatch.setattr(shipped, "WEIGHTS", weights)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_is_shipped_is_small_whole_and_has_a_card() -> None:
    assert sum(file.stat().st_size for file in shipped.WEIGHTS.rglob("*") if file.is_file()) <= MAX_BYTES
    for name in shipped_names():
        openjepa.load(name)
        card = (shipped.WEIGHTS / name / "README.md").read_text(encoding="utf-8")
        assert "## Data" in card
        assert "raw pixels" in card


def test_by_name_it_is_the_model_of_the_run(elsewhere: Path, run: Path) -> None:
    assert shipped_names() == ["tiny"]
    before, after = openjepa.load(run), openjepa.load("tiny")
    assert all(parameter.dtype == torch.float32 for parameter in after.parameters())
    assert not after.training
    trained = {name.partition(".")[0] for name, p in after.named_parameters() if p.requires_grad}
    assert trained == {"context_encoder", "predictor"}
    assert after.preprocess == before.preprocess
    images = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        one, other = (model.target_encoder(images) for model in (before, after))
        assert torch.equal(after.context_encoder(images), other)
    assert F.cosine_similarity(one, other, dim=-1).min() > 0.9999
    apart, still_apart = one - one.mean(dim=0), other - other.mean(dim=0)  # what differs between images
    assert F.cosine_similarity(apart, still_apart, dim=-1).min() > 0.9999
    torch.testing.assert_close(
        after.predictor.state_dict(), before.predictor.state_dict(), rtol=1e-3, atol=1e-6
    )


def test_a_name_is_taken_wherever_a_checkpoint_is(elsewhere: Path, photos: Path) -> None:
    assert openjepa.embed("tiny", photos, progress=False).shape == (16, 64)
    result = openjepa.evaluate("tiny", train=photos, test=photos, protocols=["knn"], baselines=True)
    assert result["checkpoint"] == "tiny"
    later = openjepa.pretrain(
        data=photos, out="later", preset="small", steps=1, init_from="tiny",
        set=[*SETTINGS, "first_stage.method=none", "ema.start=1", "ema.end=1"],
    )  # fmt: skip
    assert torch.equal(
        openjepa.load(later).target_encoder.norm.weight, openjepa.load("tiny").target_encoder.norm.weight
    )


def test_a_path_of_that_name_wins(elsewhere: Path, run: Path) -> None:
    shutil.copytree(run, elsewhere / "tiny")
    model = openjepa.load("tiny")
    assert not torch.equal(
        model.context_encoder.patch_embed.proj.weight, model.target_encoder.patch_embed.proj.weight
    )
    shutil.rmtree(elsewhere / "tiny" / "checkpoints")
    with pytest.raises(CheckpointError, match="no checkpoint in it"):
        openjepa.load("tiny")


def test_an_unknown_name_lists_those_there_are(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tinny", "../weights/tiny"):
        assert shipped_path(name) is None
        with pytest.raises(CheckpointError, match=r"no such file or folder; .* with the package \(tiny\)"):
            openjepa.load(name)
    monkeypatch.setattr(shipped, "WEIGHTS", elsewhere / "missing")
    with pytest.raises(CheckpointError, match=r"\(none here\)"):
        openjepa.load("tiny")


@pytest.mark.parametrize("name", ["model.safetensors", "config.yaml"])
def test_damage_is_seen(elsewhere: Path, weights: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = shutil.copytree(weights, elsewhere / "weights") / "tiny" / name
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    monkeypatch.setattr(shipped, "WEIGHTS", elsewhere / "weights")
    with pytest.raises(CheckpointError, match=f"{name}: damaged"):
        openjepa.load("tiny")


def test_the_card_tells_data_command_training_and_figures(weights: Path, run: Path, photos: Path) -> None:
    card = (weights / "tiny" / "README.md").read_text(encoding="utf-8")
    for text in (
        'openjepa.load("tiny")',
        f"{photos}: 16 images. Drawn by a test: no terms.",
        json.loads((run / "environment.json").read_text())["command"],
        "- maskfeat: 2 steps of 4 images",
        "- ijepa, with the encoder before as its teacher, frozen: 2 steps of 4 images",
        "ViT 64 wide",
        "| probe | this encoder | random init | raw pixels | constant answer |\n|---|---|---|---|---|\n| knn | ",
        "openjepa evaluate tiny …",
    ):
        assert text in card


def test_only_a_finished_evaluated_run_is_packed(run: Path, tmp_path: Path) -> None:
    copy, out = shutil.copytree(run, tmp_path / "run"), tmp_path / "out"
    metrics = copy / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"progress": 1.0', '"progress": 0.5'))
    with pytest.raises(CheckpointError, match=r"not finished \(50% of its budget\)"):
        pack(copy, out, **CARD)
    (copy / "evaluation.json").write_text('{"baselines": {}}')
    with pytest.raises(CheckpointError, match="no figures with baselines"):
        pack(copy, out, **CARD)
    with pytest.raises(CheckpointError, match="no checkpoint in it"):
        pack(tmp_path, out, **CARD)
    with pytest.raises(CheckpointError, match="exists"):
        pack(run, copy, **CARD)
    assert not out.exists()


def test_weights_beyond_float16_are_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        shipped, "packed", lambda state: packed({name: 1e6 * tensor for name, tensor in state.items()})
    )
    with pytest.raises(CheckpointError, match="infinite"):
        pack(run, tmp_path / "out", **CARD)
    assert list(tmp_path.iterdir()) == []


def test_a_masked_autoencoder_keeps_its_one_encoder() -> None:
    model = build(
        "mae", Architecture((32, 32), (8, 8), 3, 16, 2, 2, 2.0, 8, 1, 2), loss="mse", target_norm="layer"
    )
    state = packed(model.state_dict())
    assert {name.partition(".")[0] for name in state} == {"context_encoder", "predictor"}
    assert not any(name.endswith("pos_embed") for name in state)
    saved = Checkpoint(path=Path(), model=state, optimizer={}, state={"packed": True}, config="")
    assert unpacked(saved, like=model.state_dict()).keys() == model.state_dict().keys()


def test_a_teacher_is_not_packed() -> None:
    model = build(
        "ijepa", Architecture((32, 32), (8, 8), 3, 16, 2, 2, 2.0, 8, 1, 2), loss="mse", target_norm="layer"
    )
    assert isinstance(model, IJEPA)
    model.renew_teacher()
    state = packed(model.state_dict())
    assert {name.partition(".")[0] for name in state} == {"target_encoder", "predictor"}
    saved = Checkpoint(path=Path(), model=state, optimizer={}, state={"packed": True}, config="")
    assert unpacked(saved, like=model.state_dict()).keys() == model.state_dict().keys()


def test_the_script_packs_and_measures(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(__file__).parents[1] / "benchmarks" / "pack_weights.py"
    spec = importlib.util.spec_from_file_location("pack_weights", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    options = ["--terms", "none", "--measured-with", "a command", "--weights", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["pack_weights.py", str(run), "tiny", *options])
    script.main()
    said = capsys.readouterr().out
    assert "smallest cosine between its features and the run's, each less its mean: 0.9999" in said
    with pytest.raises(SystemExit, match="exists; remove it first"):
        script.main()
