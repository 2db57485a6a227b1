"""Checkpoints: whole or absent, verified, newest first; no pickle."""

import hashlib
import json
import logging
import os
import pickle
import shutil
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


def test_every_flipped_bit_is_seen_and_the_one_before_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In every file, the manifest too, and never by another exception than the one that `load_latest` answers."""
    caplog.set_level(logging.ERROR)
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    assert sum(file.stat().st_size for file in newest.iterdir()) < 20_000
    num_flips = 0
    for file in sorted(newest.iterdir()):
        whole = file.read_bytes()
        for bit in range(8 * len(whole)):
            flipped = bytearray(whole)
            flipped[bit // 8] ^= 1 << bit % 8
            file.write_bytes(flipped)
            num_flips += 1
            with pytest.raises(CheckpointError):
                checkpoint.load(newest)
            if bit % 8 == 0:
                found = checkpoint.load_latest(tmp_path)
                assert found is not None
                assert found.state == {"step": 1}
        file.write_bytes(whole)
    assert num_flips > 4_000
    assert checkpoint.load(newest).state == {"step": 2}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("state.json", b"[]"),
        ("state.json", b'{"step": 3}'),
        ("state.json", b"\xff"),
        ("config.yaml", b"a: [\n"),
        ("config.yaml", b"a"),
        ("model.safetensors", b"no tensors"),
        ("optimizer.safetensors", b""),
    ],
)
def test_what_was_written_wrongly_is_no_checkpoint(tmp_path: Path, name: str, content: bytes) -> None:
    """Its digests are right; what they are of is not."""
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    (newest / name).write_bytes(content)
    manifest = json.loads((newest / "manifest.json").read_text())
    manifest["sha256"][name] = hashlib.sha256(content).hexdigest()
    (newest / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="step-000000002"):
        checkpoint.load(newest)
    found = checkpoint.load_latest(tmp_path)
    assert found is not None
    assert found.state == {"step": 1}


def damage(path: Path) -> None:
    content = bytearray((path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "model.safetensors").write_bytes(content)


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_one_of_a_higher_step_does_not_push_out_the_new(
    tmp_path: Path, keep: int, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 6, keep=9)
    damage(save(tmp_path, 12, keep=9))
    for step in (7, 8):
        save(tmp_path, step, keep=keep)
        found = checkpoint.load_latest(tmp_path)
        assert found is not None
        assert found.state == {"step": step}
    kept = [int(path.name[5:]) for path in checkpoint.list_checkpoints(tmp_path)]
    assert kept == [12, 8] if keep == 1 else [12, 8, 7]
    assert caplog.text.count("step-000000012: damaged, not counted") == 1


def test_a_damaged_one_does_not_count_as_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    digest = checkpoint._digest

    def count(file: Path) -> str:
        hashed.append(file.parent.name)
        return digest(file)

    monkeypatch.setattr(checkpoint, "_digest", count)
    save(tmp_path, 1)
    damage(save(tmp_path, 2))
    kept = []
    for step in (3, 4, 5):
        save(tmp_path, step)
        kept.append([int(path.name[5:]) for path in checkpoint.list_checkpoints(tmp_path)])
    assert kept == [[3, 2, 1], [4, 3], [5, 4]]
    shutil.rmtree(tmp_path / "step-000000005")
    found = checkpoint.load_latest(tmp_path)
    assert found is not None
    assert found.state == {"step": 4}
    assert hashed.count("step-000000003") == 4  # each of its files once, not at every save


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
