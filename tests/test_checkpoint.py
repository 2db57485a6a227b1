"""Checkpoints: whole or absent, verified, newest first; no pickle."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from openjepa import checkpoint, hub
from openjepa.errors import CheckpointError


def save(folder: Path, step: int, keep: int = 2, value: float = 1.0) -> Path:
    tensors = {"weight": torch.full((3,), value * step)}
    return checkpoint.save(
        folder, step=step, model=tensors, optimizer=tensors, state={"step": step}, config="a: 1\n", keep=keep
    )


def test_round_trip_and_retention(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == [
        "step-000000003",
        "step-000000002",
    ]
    newest = checkpoint.load_latest(tmp_path)
    assert newest is not None
    assert newest.state == {"step": 3}
    assert newest.model["weight"].tolist() == [3.0] * 3
    assert newest.config == "a: 1\n"


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "config.yaml"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_is_seen_and_the_one_before_used(
    tmp_path: Path, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1)
    file = save(tmp_path, 2) / name
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(content if damage == "flip" else content[:-1])
    with pytest.raises(CheckpointError, match=name if damage != "remove" else "not a whole checkpoint"):
        checkpoint.load(file.parent)
    found = checkpoint.load_latest(tmp_path)
    assert found is not None
    assert found.state == {"step": 1}
    assert "damaged" in caplog.text


def test_nothing_there_and_nothing_whole(tmp_path: Path) -> None:
    assert checkpoint.load_latest(tmp_path) is None
    (save(tmp_path, 1) / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="none of 1"):
        checkpoint.load_latest(tmp_path)


def test_nan_and_newer_schemas_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="NaN"):
        checkpoint.load(save(tmp_path, 1, value=float("nan")))
    path = save(tmp_path, 2)
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"schema": 1', '"schema": 99'))
    with pytest.raises(CheckpointError, match="upgrade"):
        checkpoint.load(path)


@pytest.mark.skipif(sys.platform == "win32", reason="no file size limits on Windows")
def test_a_full_disk_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    program = f"""
import resource, signal, torch
from pathlib import Path
from openjepa import checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
big = {{"weight": torch.ones(100_000)}}
checkpoint.save(Path({str(tmp_path)!r}), step=2, model=big, optimizer=big, state={{}}, config="", keep=1)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ)
    assert ended.returncode != 0
    assert "CheckpointError" in ended.stderr
    assert "800,000 bytes" in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]
    assert checkpoint.load_latest(tmp_path) is not None


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    for name, protocol in (("a.pth.tar", 2), ("b.pth.tar", 4)):
        (tmp_path / name).write_bytes(pickle.dumps(Evil(), protocol=protocol))
        with pytest.raises(CheckpointError):
            hub.load(tmp_path / name)
    torch.save({"encoder": Evil()}, tmp_path / "c.pth.tar")
    with pytest.raises(CheckpointError, match="refused"):
        hub.load(tmp_path / "c.pth.tar")
    assert not (tmp_path / "ran").exists()


def test_what_is_no_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file or folder"):
        hub.load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no checkpoint in it"):
        hub.load(tmp_path)
    golden = Path(__file__).parent / "golden" / "tiny-32-p4-before.pth.tar"
    with pytest.raises(CheckpointError, match="num-heads"):
        hub.load(golden)
    cut = tmp_path / "cut.pth.tar"
    cut.write_bytes(golden.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        hub.load(cut, num_heads=3)


def test_other_tensors_are_listed(tmp_path: Path) -> None:
    layer = torch.nn.Linear(2, 3)
    with pytest.raises(CheckpointError, match=r"weight: expected \(3, 2\), found \(3, 5\)"):
        hub.load_weights(layer, {"weight": torch.ones(3, 5), "bias": torch.ones(3)}, tmp_path)
    with pytest.raises(CheckpointError, match=r"missing: bias\n.*unexpected: bis"):
        hub.load_weights(layer, {"weight": torch.ones(3, 2), "bis": torch.ones(3)}, tmp_path)
