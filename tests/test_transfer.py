"""Starting from another checkpoint: equal weights, other sizes and channels, and what cannot be taken over."""

import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import openjepa
from make_images import jpeg
from openjepa import checkpoint
from openjepa.errors import CheckpointError, CollapseError, Preempted, UserError
from openjepa.methods import IJEPA, build
from openjepa.models.architecture import Architecture
from openjepa.probes import StopOnCollapse
from openjepa.transfer import adapt_channels, start_from

SHAPE = Architecture((32, 32), (8, 8), 3, 16, 2, 2, 2.0, 8, 1, 2)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of eight small JPEGs."""
    (folder := tmp_path / "photos").mkdir()
    for number in range(8):
        (folder / f"{number}.jpg").write_bytes(jpeg(32, 40 + number))
    return folder


def test_channels_alike_give_the_same_tokens() -> None:
    weight = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    grey = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    expected = torch.einsum("dchw,bchw->bd", weight, grey.expand(-1, 3, -1, -1))
    for channels in (1, 2, 5):
        adapted = adapt_channels(weight, channels)
        assert adapted.shape == (5, channels, 4, 4)
        found = torch.einsum("dchw,bchw->bd", adapted, grey.expand(-1, channels, -1, -1))
        assert torch.allclose(found, expected, atol=1e-5)
    assert adapt_channels(weight, 3) is weight


def test_a_masked_autoencoder_can_be_a_first_stage() -> None:
    """Both encoders of the I-JEPA begin as its encoder; the predictor but for the layer that says what is predicted."""
    first = build("mae", SHAPE, loss="mse", target_norm="layer", seed=1)
    second = build("ijepa", SHAPE, loss="mse", target_norm="layer", seed=2)
    fresh = second.predictor.predictor_proj.weight.clone()
    assert start_from(second, first, name="stage-1") == "encoder and predictor of stage-1"
    for encoder in (second.context_encoder, second.target_encoder):
        assert torch.equal(encoder.blocks[1].mlp.fc1.weight, first.context_encoder.blocks[1].mlp.fc1.weight)
    assert torch.equal(second.predictor.mask_token, first.predictor.mask_token)
    assert torch.equal(second.predictor.predictor_proj.weight, fresh)


def test_a_first_stage_is_the_teacher_of_all_steps(photos: Path, tmp_path: Path) -> None:
    """It is saved with the run and is still what the first stage left; the moving average is not."""
    settings = [
        "data.batch_size=4", "log.tensorboard=false", "model.name=vit_pico", "ema.start=0.5", "ema.end=0.5",
    ]  # fmt: skip
    run = openjepa.pretrain(data=photos, out=tmp_path / "run", preset="salt", steps=4, set=settings)
    first, second = openjepa.load(run / "first-stage"), openjepa.load(run)
    weight = first.target_encoder.blocks[3].mlp.fc2.weight
    assert isinstance(second, IJEPA)
    assert second.teacher is not None
    assert torch.equal(second.teacher.blocks[3].mlp.fc2.weight, weight)
    assert not torch.equal(second.target_encoder.blocks[3].mlp.fc2.weight, weight)


def test_another_shape_is_told() -> None:
    first = build("ijepa", SHAPE, loss="mse", target_norm="layer")
    deeper = Architecture((32, 32), (8, 8), 3, 16, 3, 2, 2.0, 8, 1, 2)
    second = build("ijepa", deeper, loss="mse", target_norm="layer")
    with pytest.raises(CheckpointError, match=r"(?s)--init-from run: .* missing there, \(16,\) here"):
        start_from(second, first, name="run")


def test_other_heads_are_another_shape_though_tensors_are_alike() -> None:
    first = build("ijepa", SHAPE, loss="mse", target_norm="layer")
    fewer = replace(SHAPE, num_heads=1)
    second = build("ijepa", fewer, loss="mse", target_norm="layer")
    with pytest.raises(CheckpointError, match=r"(?s)--init-from run: .*attention heads: \d there, 1 here"):
        start_from(second, first, name="run")


def test_a_run_starts_from_another_with_grey_images_of_another_size(photos: Path, tmp_path: Path) -> None:
    settings = ["data.batch_size=4", "log.tensorboard=false"]
    first = openjepa.pretrain(
        data=photos, out=tmp_path / "first", preset="small", steps=2, set=[*settings, "model.name=vit_pico"]
    )
    second = openjepa.pretrain(
        data=photos, out=tmp_path / "second", preset="small", steps=2, channels=1, init_from=first,
        set=[*settings, "data.image_size=48", "ema.start=1", "ema.end=1"],
    )  # fmt: skip
    before, after = openjepa.load(first), openjepa.load(second)
    assert after.shape.embed_dim == before.shape.embed_dim == 64
    assert after.shape.grid == (12, 12)
    assert after.shape.in_channels == 1
    for index in range(4):  # frozen: the target encoder is still the first run's
        assert torch.equal(
            before.target_encoder.blocks[index].attn.qkv.weight,
            after.target_encoder.blocks[index].attn.qkv.weight,
        )
    openjepa.pretrain(data=photos, out=second, resume=True, steps=3, override=True)  # keeps what it learned


def test_a_run_of_two_stages(photos: Path, tmp_path: Path) -> None:
    """Six steps: four of MaskFeat in a folder of their own, then two of I-JEPA that begin with its encoder."""
    settings = [
        "data.batch_size=4", "log.tensorboard=false", "log.every_steps=1", "model.name=vit_pico", "ema.start=1",
        "ema.end=1", "masks.name=multiblock", "first_stage.method=maskfeat", "first_stage.share=0.67",
    ]  # fmt: skip
    run = openjepa.pretrain(data=photos, out=tmp_path / "run", preset="small", steps=6, set=settings)
    rows = {
        folder: [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (run / "first-stage", run)
    }
    assert [row["step"] for row in rows[run / "first-stage"]] == [1, 2, 3, 4]
    assert [row["step"] for row in rows[run]] == [1, 2]
    assert rows[run][0]["progress"] == 0.5
    assert rows[run / "first-stage"][0]["target_patches"] == 48
    assert rows[run][0]["target_patches"] < 48
    first, second = openjepa.load(run / "first-stage"), openjepa.load(run)
    frozen = (model.target_encoder.blocks[3].mlp.fc2.weight for model in (first, second))
    assert torch.equal(*frozen)
    assert not torch.equal(
        second.context_encoder.blocks[3].mlp.fc2.weight, first.context_encoder.blocks[3].mlp.fc2.weight
    )
    openjepa.pretrain(data=photos, out=run, resume=True)  # finished: nothing is trained again
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2


STAGES = [
    "data.batch_size=4", "log.tensorboard=false", "log.every_steps=1", "model.name=vit_pico",
    "checkpoint.every_steps=2", "first_stage.method=maskfeat", "first_stage.share=0.5",
]  # fmt: skip


def two_stages(data: Path, out: Path, *more: str, **options: Any) -> Path:
    """Eight steps, four of them a first stage."""
    return openjepa.pretrain(
        data=data, out=out, preset="small", **{"steps": 8, "set": [*STAGES, *more], **options}
    )


def logged_steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@contextmanager
def at(module: str, place: str, then: Callable[[], None]) -> Iterator[None]:
    """Do something the first time that a run comes by a place."""
    met: list[str] = []

    def act(name: str) -> None:
        if name == place and not met:
            met.append(name)
            then()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"openjepa.{module}.failpoint", act)
        yield


def interrupt() -> None:
    raise KeyboardInterrupt


def test_a_first_stage_goes_on_with_the_same_data_and_settings_only(photos: Path, tmp_path: Path) -> None:
    out, others = tmp_path / "run", tmp_path / "others"
    others.mkdir()
    for path in photos.iterdir():
        (others / path.name).write_bytes(path.read_bytes() + b"other")
    with at("train", "step-3", interrupt), pytest.raises(KeyboardInterrupt):
        two_stages(photos, out)
    with pytest.raises(CheckpointError, match=r"first-stage.*the data set changed since this checkpoint"):
        two_stages(others, out, resume=True)
    with pytest.raises(UserError, match=r"(?s)--override.*seed: 0 → 1"):
        two_stages(photos, out, resume=True, seed=1)
    with pytest.raises(UserError, match=r"(?s)--override.*budget.steps: 8 → 16"):
        two_stages(photos, out, resume=True, steps=16)
    with pytest.raises(UserError, match=r"(?s)start another run.*model.depth"):
        two_stages(photos, out, "model.depth=2", resume=True)
    assert logged_steps(out / "first-stage") == [1, 2]  # nothing was done
    two_stages(photos, out, resume=True)
    assert logged_steps(out / "first-stage") == logged_steps(out) == [1, 2, 3, 4]
    changed = tmp_path / "changed"
    with at("train", "step-3", interrupt), pytest.raises(KeyboardInterrupt):
        two_stages(photos, changed)
    two_stages(others, changed, "optim.lr=1e-4", resume=True, override=True, allow_data_change=True)
    assert "lr: 0.0001" in (changed / "first-stage" / "config.yaml").read_text()


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGTERM that can be answered on Windows")
@pytest.mark.parametrize(("module", "place"), [("train", "step-4"), ("checkpoint", "save-rename")])
def test_a_signal_in_the_last_step_of_a_first_stage_is_answered(
    photos: Path, tmp_path: Path, module: str, place: str
) -> None:
    """Before it is saved and while it is: the run stops there, and goes on with the second stage when resumed."""
    out, settings = tmp_path / "run", ["checkpoint.every_steps=100"]
    terminate = functools.partial(os.kill, os.getpid(), signal.SIGTERM)
    with at(module, place, terminate), pytest.raises(Preempted, match="stopped at step 4, saved"):
        two_stages(photos, out, *settings)
    assert not (out / "metrics.jsonl").exists()
    two_stages(photos, out, *settings, resume=True)
    assert logged_steps(out) == [1, 2, 3, 4]


def test_what_ends_a_collapsed_run_comes_after_its_last_state_was_saved(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: StopOnCollapse, row: dict[str, Any]) -> None:
        if row["step"] == 3:
            raise CollapseError("collapsed")

    monkeypatch.setattr(StopOnCollapse, "__call__", stop)
    with pytest.raises(CollapseError):
        two_stages(photos, tmp_path / "run", "first_stage.method=none", stop_on_collapse=True)
    saved = checkpoint.load_latest(tmp_path / "run" / "checkpoints")
    assert saved is not None
    assert saved.state["step"] == 3


@pytest.mark.slow
def test_a_run_killed_in_its_first_stage_goes_on_there(photos: Path, tmp_path: Path) -> None:
    settings = [
        "data.image_size=32", "data.batch_size=4", "model.name=vit_pico", "log.every_steps=1", "runtime.threads=1",
        "checkpoint.every_steps=2", "log.tensorboard=false", "first_stage.method=maskfeat", "first_stage.share=0.75",
    ]  # fmt: skip
    command = [sys.executable, "-m", "openjepa", "pretrain", str(photos), "--preset", "small", "--steps=8"]
    command += [part for setting in settings for part in ("--set", setting)]

    def lines(out: str) -> list[tuple[int, float]]:
        rows = (tmp_path / out / "metrics.jsonl").read_text().splitlines()
        return [(row["step"], row["loss"]) for row in map(json.loads, rows)]

    subprocess.run([*command, "--out", str(tmp_path / "whole")], check=True)
    killed = [*command, "--out", str(tmp_path / "killed")]
    assert (
        subprocess.run(killed, env={**os.environ, "OPENJEPA_FAILPOINT": "step-5"}).returncode
        == -signal.SIGKILL
    )
    assert len(lines("killed/first-stage")) == 4
    subprocess.run([*killed, "--resume"], check=True)
    assert lines("killed/first-stage") == lines("whole/first-stage")
    assert len(lines("whole/first-stage")) == 6
    assert lines("killed") == lines("whole")
