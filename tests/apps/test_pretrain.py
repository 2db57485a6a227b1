"""Whole runs as a user makes them: real images, real processes, kills and resumes."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import openjepa
from openjepa import checkpoint
from openjepa.errors import CheckpointError, UserError
from openjepa.methods import IJEPA

SETTINGS = [
    "data.batch_size=8", "data.image_size=32", "data.cache=never", "model.embed_dim=32", "model.depth=2",
    "model.predictor_dim=16", "model.num_heads=2", "log.every_steps=1", "log.health_every_steps=6",
    "checkpoint.every_steps=3", "runtime.attention=matmul", "runtime.threads=1", "log.tensorboard=false",
    "objective.target_norm=layer",  # centred targets depend on how a batch is cut
]  # fmt: skip
TIMES = ("seconds", "images_per_second")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty small JPEGs of two classes and several sizes."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for number in range(40):
        path = folder / ("day" if number % 2 else "night") / f"{number:02}.jpg"
        path.parent.mkdir(exist_ok=True)
        low = generator.integers(0, 255, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(low).resize((20 + number % 5, 24), Image.Resampling.BICUBIC).save(path)
    return folder


def options(photos: Path, out: Path, *more: str) -> list[str]:
    # One stage: the automatic preset has two (tests/test_transfer.py).
    command = [sys.executable, "-m", "openjepa", "pretrain", str(photos), "--out", str(out)]
    command += ["--preset", "small", *more]
    return command + [part for setting in SETTINGS for part in ("--set", setting)]


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
    )


def rows(out: Path) -> list[dict[str, Any]]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMES} for line in lines]


def weights(out: Path) -> dict[str, Any]:
    return load_file(max((out / "checkpoints").glob("step-*")) / "model.safetensors")


def same_run(one: Path, other: Path) -> None:
    assert rows(one) == rows(other)
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        np.testing.assert_array_equal(tensor, theirs[name], err_msg=name)


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve steps without interruption."""
    out = tmp_path_factory.mktemp("whole") / "run"
    openjepa.pretrain(data=photos, out=out, preset="small", steps=12, set=SETTINGS)
    return out


def test_a_run_leaves_what_it_promises(whole: Path) -> None:
    assert [row["step"] for row in rows(whole)] == list(range(1, 13))
    for name in ("config.yaml", "environment.json", "train.log"):
        assert (whole / name).stat().st_size or name == "train.log"
    first, last = rows(whole)[0], rows(whole)[-1]
    assert first.keys() == {"step", "progress", "images", "loss", "lr", "weight_decay", "ema_momentum",
                            "context_patches", "target_patches"}  # fmt: skip
    assert {"rankme", "feature_std", "explained_variance", "position_gap"} <= last.keys()
    assert last["progress"] == 1.0
    assert last["images"] == 96
    assert last["lr"] == pytest.approx(1e-6)
    assert len({row["context_patches"] for row in rows(whole)}) == 1
    assert len(list((whole / "checkpoints").glob("step-*"))) == 2


def test_resume_with_other_workers_is_bit_for_bit(photos: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    killed = run(options(photos, out, "--steps", "12"), OPENJEPA_FAILPOINT="step-4")
    assert killed.returncode == -signal.SIGKILL
    with (out / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 5, "half a li')
    resumed = run([*options(photos, out, "--steps", "12", "--resume"), "--set", "data.num_workers=2"])
    assert resumed.returncode == 0, resumed.stderr
    assert "from step 3" in resumed.stderr
    same_run(out, whole)


@pytest.mark.slow
@pytest.mark.parametrize("place", [*(f"step-{n}" for n in range(1, 12)), "save-model", "save-rename"])
def test_a_kill_anywhere_loses_nothing(photos: Path, whole: Path, tmp_path: Path, place: str) -> None:
    out = tmp_path / "run"
    killed = run(options(photos, out, "--steps", "12"), OPENJEPA_FAILPOINT=place)
    assert killed.returncode == -signal.SIGKILL
    resumed = run(options(photos, out, "--steps", "12", "--resume"))
    assert resumed.returncode == 0, resumed.stderr
    same_run(out, whole)


def test_health_is_checked_by_the_progress_of_a_run_and_resumes_to_the_same_rows(
    photos: Path, tmp_path: Path
) -> None:
    """Off the lines of `log.every_steps`, too; what is watched does not depend on the clock."""
    settings = [*SETTINGS, "log.health_every_steps=null", "log.every_steps=100", "data.batch_size=32",
                "data.cache=auto", "checkpoint.every_steps=20"]  # fmt: skip
    for name in ("whole", "killed"):
        command = options(photos, tmp_path / name, "--steps", "80")
        command += [part for setting in settings for part in ("--set", setting)]
        if name == "killed":
            assert run(command, OPENJEPA_FAILPOINT="step-53").returncode == -signal.SIGKILL
            command.append("--resume")
        done = run(command)
        assert done.returncode == 0, done.stderr
    measured = rows(tmp_path / "whole")
    assert [row["step"] for row in measured] == [10, 40, 80]
    assert all("rankme" in row and "untrained_std" in row for row in measured)
    same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGTERM to another process on Windows")
def test_sigterm_saves_and_exits_75(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(options(photos, out, "--steps", "100000"), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors
    assert "--resume" in errors
    assert "Traceback" not in errors
    state = json.loads((max((out / "checkpoints").glob("step-*")) / "state.json").read_text())
    assert state["step"] == rows(out)[-1]["step"]


def test_a_run_by_the_clock_ends_at_the_final_learning_rate(photos: Path, tmp_path: Path) -> None:
    openjepa.pretrain(data=photos, out=tmp_path, preset="small", max_minutes=0.03, set=SETTINGS)
    last = rows(tmp_path)[-1]
    assert last["progress"] == 1.0
    assert last["lr"] < 0.1 * 1.5e-3  # as near the end as the last step, on a machine of uneven speed


def test_a_length_given_replaces_that_of_a_file(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "long.yaml").write_text("budget: {epochs: 300}\n")
    out = tmp_path / "run"
    command = options(photos, out, "--config", str(tmp_path / "long.yaml"), "--steps", "2")
    assert run(command).returncode == 0
    assert rows(out)[-1]["step"] == 2


def test_accumulation_gives_the_same_step(photos: Path, tmp_path: Path) -> None:
    """Of a loss that looks at each image by itself: a contrast is among the images of a part."""
    settings = [*SETTINGS, "objective.loss=smooth_l1"]
    for parts in (1, 4):
        openjepa.pretrain(
            data=photos, out=tmp_path / str(parts), preset="small", steps=12,
            set=[*settings, f"optim.accumulate={parts}"],
        )  # fmt: skip
    for ours, theirs in zip(rows(tmp_path / "4"), rows(tmp_path / "1"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)


def test_the_loaded_model_is_the_trained_one(photos: Path, whole: Path) -> None:
    model = openjepa.load(whole)
    image = model.preprocess(photos / "day" / "01.jpg")
    assert image.shape == (1, 3, 32, 32)
    features = model.target_encoder(image)
    assert features.shape == (1, 64, 32)
    assert not features.requires_grad
    assert model.context_encoder(image).requires_grad
    assert (
        openjepa.load(whole / "checkpoints" / "step-000000012").state_dict().keys() == weights(whole).keys()
    )
    with pytest.raises(CheckpointError, match="num-heads"):
        openjepa.load(whole, num_heads=4)


def test_resume_refuses_other_settings_and_other_data(photos: Path, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"can't change.*\n.*model.depth: 2 → 3"):
        openjepa.pretrain(data=photos, out=whole, resume=True, set=["model.depth=3"])
    with pytest.raises(UserError, match=r"--override.*\n.*optim.lr"):
        openjepa.pretrain(data=photos, out=whole, resume=True, set=["optim.lr=1e-4"])
    fewer = tmp_path / "fewer"
    fewer.mkdir()
    for path in sorted(photos.rglob("*.jpg"))[:20]:
        (fewer / path.name).write_bytes(path.read_bytes())
    with pytest.raises(CheckpointError, match="it had 40 images, now 20"):
        openjepa.pretrain(data=fewer, out=whole, resume=True)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(photos: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    openjepa.pretrain(data=photos, out=out, preset="small", steps=12, set=SETTINGS)
    newest = max((out / "checkpoints").glob("step-*")) / "model.safetensors"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        openjepa.load(newest.parent)
    openjepa.pretrain(data=photos, out=out, resume=True)
    same_run(out, whole)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["/nowhere", "--steps", "1"], 3, "/nowhere"),
        (["{photos}", "--steps", "1", "--set", "optim.learning_rate=1"], 2, "optim.lr"),
        (
            ["{photos}", "--steps", "1", "--set", "data.image_size=32", "--set", "model.patch_size=5"],
            2,
            "does not divide",
        ),
        (["{photos}", "--steps", "1", "--set", "data.batch_size=64"], 2, "data.batch_size"),
        (["{photos}", "--steps", "1", "--set", "masks.target_fraction=0.999"], 2, "set it within"),
        (
            ["{photos}", "--preset", "multiblock", "--steps", "1", "--set", "masks.context_fraction=0.9"],
            2,
            "set it within",
        ),
        (["{photos}", "--steps", "1", "--set", "masks.name=multiblok"], 2, "multiblock"),
        (["{photos}", "--steps", "1", "--epochs", "1"], 2, "give one of"),
        (["{photos}"], 2, "--max-minutes"),
        (["{photos}", "--steps", "1", "--preset", "smal"], 2, "small"),
        (["{photos}", "--steps", "1", "--set", "optim.lr=nan"], 2, "optim.lr"),
        (["{photos}", "--steps", "1", "--set", "model.num_heads=3"], 2, "nearest"),
    ],
)
def test_a_mistake_is_one_message(
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    from openjepa.cli import main

    arguments = [argument.format(photos=photos) for argument in arguments]
    before = sys.argv
    sys.argv = [
        "openjepa",
        "pretrain",
        *arguments,
        "--out",
        str(tmp_path / "run"),
        "--set",
        "data.batch_size=8",
    ]
    if "data.batch_size=64" in arguments:
        sys.argv = sys.argv[:-2]
    try:
        with pytest.raises(SystemExit) as stopped:
            main()
    finally:
        sys.argv = before
    errors = capsys.readouterr().err
    assert stopped.value.code == code, errors
    assert words in errors
    assert "Traceback" not in errors


def test_a_folder_in_use_is_left_alone(photos: Path, whole: Path) -> None:
    with pytest.raises(UserError, match="--resume"):
        openjepa.pretrain(data=photos, out=whole, steps=1, set=SETTINGS)
    assert len(rows(whole)) == 12


def test_bad_files_are_skipped_and_listed(photos: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for number in range(3):
        for path in photos.rglob("*.jpg"):
            (data / f"{number}-{path.name}").write_bytes(path.read_bytes())
    (data / "empty.jpg").write_bytes(b"")
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 80).convert("RGB").save(buffer, "JPEG")
    (data / "truncated.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    allowed = [*SETTINGS, "data.max_bad_fraction=0.1"]
    out = openjepa.pretrain(data=data, out=tmp_path / "run", preset="small", epochs=2, set=allowed)
    listed = [json.loads(line) for line in (out / "bad_files.jsonl").read_text().splitlines()]
    assert sorted(Path(entry["path"]).name for entry in listed) == ["empty.jpg", "truncated.jpg"]
    assert all(entry["reason"] for entry in listed)


@pytest.mark.slow
def test_two_processes_make_the_same_steps(photos: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    ended = run(options(photos, out, "--steps", "12", "--devices", "2"))
    assert ended.returncode == 0, ended.stderr
    for ours, theirs in zip(rows(out), rows(whole), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGTERM to another process on Windows")
def test_two_processes_save_and_exit_75(photos: Path, tmp_path: Path) -> None:
    """As a scheduler does it: every process gets the signal."""
    out = tmp_path / "run"
    command = options(photos, out, "--steps", "100000", "--devices", "2")
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 200
    while not (out / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors
    assert errors.count("go on with --resume") == 1
    assert "Traceback" not in errors
    assert checkpoint.load_latest(out / "checkpoints") is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--steps", "12", "--stop-on-collapse", "--overwrite"], 6, "stopped at step 12: collapsed"),
        (["--steps", "12"], 2, "is not empty"),
        (["--steps", "12", "--overwrite", "--set", "optim.lr=1e30"], 5, "nothing was updated"),
    ],
)
def test_two_processes_fail_as_one(
    tmp_path: Path, photos: Path, more: list[str], code: int, said: str
) -> None:
    """What the first alone finds out ends both, with its message and code."""
    same = tmp_path / "same"
    same.mkdir()
    source = next(photos.rglob("*.jpg")).read_bytes()
    for number in range(40):
        (same / f"{number}.jpg").write_bytes(source)
    out = tmp_path / "run"
    assert run(options(same, out, "--steps", "2")).returncode == 0
    ended = run([*options(same, out, *more), "--devices", "2"])
    assert ended.returncode == code, ended.stderr
    assert ended.stderr.count(said) == 1, ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_collapsed_run_fails_when_asked_to(photos: Path, tmp_path: Path) -> None:
    """Forty times the same picture: features cannot differ."""
    same = tmp_path / "same"
    same.mkdir()
    source = next(photos.rglob("*.jpg")).read_bytes()
    for number in range(40):
        (same / f"{number}.jpg").write_bytes(source)
    done = run([*options(same, tmp_path / "run", "--steps", "12"), "--stop-on-collapse"])
    assert done.returncode == 6, done.stderr
    assert "stopped at step 12: collapsed: features are constant" in done.stderr
    assert rows(tmp_path / "run")[-1]["step"] == 12


def test_a_teacher_is_renewed_at_equal_parts_of_a_run(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    renew = IJEPA.renew_teacher

    def renew_and_tell(model: IJEPA) -> None:
        seen.append("renewed")
        renew(model)

    monkeypatch.setattr("openjepa.train.failpoint", seen.append)
    monkeypatch.setattr(IJEPA, "renew_teacher", renew_and_tell)
    settings = [*SETTINGS, "ema.generations=3"]
    openjepa.pretrain(data=photos, out=tmp_path / "run", preset="small", steps=6, set=settings)
    expected = "renewed step-1 renewed step-2 step-3 renewed step-4 step-5 step-6"
    assert seen == expected.split()


def test_a_run_that_goes_on_within_a_generation_has_its_teacher_and_what_it_said(
    photos: Path, tmp_path: Path
) -> None:
    settings = ("--steps", "40", "--set", "ema.generations=2", "--set", "objective.whole_weight=1")
    settings += (
        "--set",
        "objective.target_reuse=3",
    )  # blocks of 48 steps: the teacher is renewed, and the run killed,
    assert run(options(photos, tmp_path / "whole", *settings)).returncode == 0
    killed = options(photos, tmp_path / "killed", *settings)
    assert run(killed, OPENJEPA_FAILPOINT="step-37").returncode == -signal.SIGKILL  # within one
    assert run([*killed, "--resume"]).returncode == 0
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert any(name.startswith("teacher.") for name in whole)
    assert all(np.array_equal(tensor, resumed[name]) for name, tensor in whole.items())
