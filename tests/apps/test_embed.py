"""`openjepa embed`: the features that were promised, in every form, and after every interruption."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import openjepa
from make_images import bad_images
from openjepa.apps import embed as module
from openjepa.apps.embed import frozen_encoder
from openjepa.data.preprocess import Preprocess
from openjepa.errors import CheckpointError, DataError, UserError
from openjepa.evals.features import pool_patches
from openjepa.formats import embeddings
from openjepa.formats.embeddings import read_metadata
from openjepa.hub import load, weights_hash
from openjepa.methods.ijepa import IJEPA, build_ijepa
from openjepa.models.architecture import Architecture

parquet = pytest.importorskip("pyarrow.parquet")

GOLDEN = Path(__file__).parents[1] / "golden" / "tiny-32-p4-before.pth.tar"
HEADS = json.loads(GOLDEN.with_name("tiny-32-p4.json").read_text())["num_heads"]
SMALL = {"batch_size": 4, "precision": "float32", "progress": False}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-two images of several sizes, and a file that is none."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for number in range(22):
        low = Image.fromarray(generator.integers(0, 255, (4, 4, 3), dtype=np.uint8))
        low.resize((40 + number, 44), Image.Resampling.BICUBIC).save(folder / f"{number:02}.jpg")
    (folder / "05b.jpg").write_bytes(bad_images()["text.jpg"])
    return folder


@pytest.fixture
def model() -> IJEPA:
    return load(GOLDEN, num_heads=HEADS)


def good(photos: Path) -> list[Path]:
    return sorted(path for path in photos.iterdir() if path.name != "05b.jpg")


def expected(model: IJEPA, photos: Path) -> Tensor:
    """One image at a time: a batch may be cut anywhere."""
    assert model.preprocess is not None
    with torch.no_grad():
        return torch.cat([model.target_encoder(model.preprocess(path)).mean(1) for path in good(photos)])


def rows(out: Path) -> dict[str, list[Any]]:
    return parquet.read_table(out).to_pydict()


def test_a_file_from_a_checkpoint(photos: Path, tmp_path: Path, model: IJEPA) -> None:
    out = tmp_path / "a.parquet"
    assert openjepa.embed(GOLDEN, photos, out, num_heads=HEADS, max_bad_fraction=0.1, **SMALL) == out
    found = rows(out)
    assert found["path"] == [str(path) for path in good(photos)]
    torch.testing.assert_close(
        torch.tensor(found["embedding"]), expected(model, photos), rtol=1e-5, atol=1e-5
    )
    metadata = read_metadata(out)
    assert metadata["checkpoint"] == str(GOLDEN)
    assert metadata["weights_sha256"] == weights_hash(model.target_encoder)
    assert metadata["encoder"] == "target"
    assert metadata["precision"] == "float32"
    assert metadata["patches"] is None
    assert metadata["data"]["num_images"] == 23
    assert metadata["preprocess"]["image_size"] == [32, 32]
    listed = [json.loads(line) for line in (tmp_path / "a.bad_files.jsonl").read_text().splitlines()]
    assert [entry["path"] for entry in listed] == [str(photos / "05b.jpg")]
    assert len(list(tmp_path.iterdir())) == 2


def test_two_processes_do_not_write_one_file(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "a.parquet"
    with embeddings.only_writer(out), pytest.raises(UserError, match="another process writes it"):
        openjepa.embed(GOLDEN, photos, num_heads=HEADS, out=out, max_bad_fraction=1)
    assert list(out.parent.iterdir()) == []
    with pytest.raises(UserError, match="cannot be written"), embeddings.only_writer(photos / "01.jpg" / "a"):
        pass


def test_patches_and_the_other_encoder(photos: Path, tmp_path: Path, model: IJEPA) -> None:
    with torch.no_grad():
        model.context_encoder.norm.weight.mul_(2)
    out = tmp_path / "a.parquet"
    openjepa.embed(model, photos, out, encoder="context", patches=True, max_bad_fraction=1, **SMALL)
    found = rows(out)
    patches = torch.tensor(found["patches"])
    assert patches.shape == (22, 64, model.context_encoder.embed_dim)
    torch.testing.assert_close(torch.tensor(found["embedding"]), patches.mean(1))
    assert model.preprocess is not None
    with torch.no_grad():
        first = model.context_encoder(model.preprocess(good(photos)[0]))
    torch.testing.assert_close(patches[:1], first, rtol=1e-5, atol=1e-5)
    assert read_metadata(out)["patches"] == {"grid": [8, 8], "size": model.context_encoder.embed_dim}


@pytest.mark.parametrize(("pool", "times"), [("max", 1), ("mean+max", 2), ("grid3", 9)])
def test_poolings_are_in_the_file_and_its_metadata(
    photos: Path, tmp_path: Path, model: IJEPA, pool: str, times: int
) -> None:
    out, width = tmp_path / "a.parquet", model.target_encoder.embed_dim
    openjepa.embed(model, photos, out, pool=pool, patches=True, max_bad_fraction=1, **SMALL)
    assert read_metadata(out)["embedding"] == {"size": times * width, "pooling": pool}
    found = rows(out)
    features = torch.tensor(found["embedding"])
    patches = torch.tensor(found["patches"])
    torch.testing.assert_close(features, pool_patches(patches, pool, grid=(8, 8)))
    alone = openjepa.embed(model, good(photos), pool=pool)
    torch.testing.assert_close(alone, features, rtol=1e-5, atol=1e-5)


def test_images_in_every_form(photos: Path, model: IJEPA) -> None:
    model.train()
    target, paths = expected(model, photos), good(photos)
    assert model.preprocess is not None
    images = torch.cat([model.preprocess(path) for path in paths])
    opened = [Image.open(path) for path in paths]
    for given in (images, paths, list(map(str, paths)), opened, str(photos), photos):
        features = openjepa.embed(model, given, max_bad_fraction=1, **SMALL)
        assert features.dtype == torch.float32
        torch.testing.assert_close(features, target, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(openjepa.embed(model, opened[3]), target[3:4], rtol=1e-5, atol=1e-5)
    assert model.training
    assert model.target_encoder.pos_embed.dtype == torch.float32
    head = torch.nn.Linear(target.shape[1], 2)  # features are ordinary tensors, that others can be trained on
    head(openjepa.embed(model, images)).sum().backward()


def interrupted(
    photos: Path, out: Path, model: IJEPA, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> None:
    """The third batch of four fails, after parts of eight."""
    calls = 0

    def fails(*arguments: Any, **keywords: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(embeddings, "PART_IMAGES", 8)
    with monkeypatch.context() as patched:
        patched.setattr(module, "require_finite", fails)
        with pytest.raises(KeyboardInterrupt):
            openjepa.embed(model, photos, out, max_bad_fraction=1, **(SMALL | options))


def test_an_interruption_changes_nothing(
    photos: Path,
    tmp_path: Path,
    model: IJEPA,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole, out = tmp_path / "whole.parquet", tmp_path / "a.parquet"
    openjepa.embed(model, photos, whole, max_bad_fraction=1, **SMALL)
    interrupted(photos, out, model, monkeypatch)
    assert len(list((tmp_path / "a.parquet.parts").glob("*.parquet"))) == 1
    openjepa.embed(model, photos, out, max_bad_fraction=1, **(SMALL | {"progress": True}))
    said = capsys.readouterr().err
    assert "going on after 8 of 23 images" in said
    assert "1 images that cannot be read were left out" in said
    assert "22 images" in said
    assert rows(out) == rows(whole)  # to the last bit
    # with another batch size, to rounding
    other = tmp_path / "b.parquet"
    interrupted(photos, other, model, monkeypatch)
    openjepa.embed(model, photos, other, max_bad_fraction=1, **(SMALL | {"batch_size": 5}))
    assert rows(other)["path"] == rows(whole)["path"]
    np.testing.assert_allclose(rows(other)["embedding"], rows(whole)["embedding"], rtol=1e-4, atol=1e-5)


def test_a_killed_command_goes_on(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.parquet"
    command = [
        sys.executable, "-m", "openjepa", "embed", str(GOLDEN), str(photos), "--out", str(out), "--num-heads",
        str(HEADS), "--precision", "float32", "--device", "cpu", "--max-bad-fraction", "0.1",
    ]  # fmt: skip

    def run(**environment: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **environment}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

    assert run(OPENJEPA_FAILPOINT="embed-merged").returncode == -signal.SIGKILL
    assert not out.exists()
    done = run()
    assert done.returncode == 0, done.stderr
    assert "going on after 23 of 23 images" in done.stderr
    assert len(rows(out)["path"]) == 22


def test_what_differs_is_named(
    photos: Path, tmp_path: Path, model: IJEPA, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a.parquet"
    interrupted(photos, out, model, monkeypatch)
    with torch.no_grad():
        model.target_encoder.norm.bias.add_(1)
    with pytest.raises(UserError, match=r"weights_sha256: .* then") as error:
        openjepa.embed(model, photos, out, encoder="target", **SMALL)
    assert "encoder" not in str(error.value)
    with pytest.raises(UserError, match=r"(?s)encoder: 'target' then, 'context' now.*--overwrite"):
        openjepa.embed(model, photos, out, encoder="context", **SMALL)


def test_the_measured_precision_is_kept(
    photos: Path, tmp_path: Path, model: IJEPA, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a.parquet"
    monkeypatch.setattr(module, "bfloat16_pays", lambda device: True)
    interrupted(photos, out, model, monkeypatch, precision="auto")
    monkeypatch.setattr(module, "bfloat16_pays", lambda device: False)
    openjepa.embed(model, photos, out, max_bad_fraction=1, batch_size=4, progress=False)
    assert read_metadata(out)["precision"] == "bfloat16"


def test_too_many_bad_images(tmp_path: Path, model: IJEPA) -> None:
    for number in range(100):
        name, raw = ("a.jpg", bad_images()["text.jpg"]) if number == 50 else ("b.png", None)
        path = tmp_path / "photos" / f"{number:03}{name}"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(path) if raw is None else path.write_bytes(raw)
    (tmp_path / "photos" / "051.jpg").touch()
    with pytest.raises(DataError, match=r"2 of the 52 images read .* raise --max-bad-fraction"):
        openjepa.embed(model, tmp_path / "photos", tmp_path / "a.parquet", **SMALL)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").touch()
    for out in (None, tmp_path / "b.parquet"):
        with pytest.raises(DataError, match="none of its 1 images can be read"):
            openjepa.embed(model, tmp_path / "bad", out, **SMALL)
    assert not (tmp_path / "b.parquet").exists()


def test_weights_that_are_nan(photos: Path, tmp_path: Path, model: IJEPA) -> None:
    with torch.no_grad():
        model.target_encoder.norm.weight[0] = torch.nan
    with pytest.raises(CheckpointError, match="a model in memory: the features of 4 of 4") as error:
        openjepa.embed(model, photos, tmp_path / "a.parquet", **SMALL)
    assert error.value.exit_code == 4


def test_bfloat16_stays_near() -> None:
    shape = Architecture(
        image_size=(64, 64), patch_size=(8, 8), in_channels=3, embed_dim=64, depth=4, num_heads=2, mlp_ratio=4.0,
        predictor_dim=32, predictor_depth=1, predictor_heads=2,
    )  # fmt: skip
    model = build_ijepa(replace(shape, in_channels=1))
    model.preprocess = Preprocess.imagenet((64, 64), 1)
    images = torch.randn(6, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    exact = openjepa.embed(model, images)
    rough = openjepa.embed(model, images, precision="bfloat16")
    assert rough.dtype == torch.float32
    assert not torch.equal(exact, rough)
    assert torch.cosine_similarity(exact, rough).min() >= 0.999
    assert model.target_encoder.norm.weight.dtype == torch.float32
    encode = frozen_encoder(model.target_encoder, device="cpu", precision="bfloat16")
    assert encode(images).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "both"}, "--encoder 'both': expected target or context"),
        ({"pool": "median"}, r"--pool 'median': expected mean, max, mean\+max, grid2 or grid3"),
        ({"precision": "half"}, "--precision 'half': expected auto, float32 or bfloat16"),
        ({"device": "tpu"}, "--device: 'tpu' is not available here"),
        ({"batch_size": 0}, "--batch-size 0: at least 1"),
        ({"patches": True}, "patches: they are written to a file"),
        ({"out": "a.parquet"}, "out: a file of embeddings is made of a data set"),
    ],
)
def test_mistakes(model: IJEPA, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        openjepa.embed(model, torch.zeros(1, 3, 32, 32), **options)


def test_images_that_cannot_be_embedded(model: IJEPA, photos: Path) -> None:
    with pytest.raises(UserError, match=r"expected \(B, c, H, W\)"):
        openjepa.embed(model, torch.zeros(3, 32, 32))
    with pytest.raises(UserError, match="an empty list"):
        openjepa.embed(model, [])
    with pytest.raises(DataError, match=r"05b\.jpg: can't be used"):
        openjepa.embed(model, [photos / "05b.jpg"])
    model.preprocess = None
    with pytest.raises(UserError, match="does not know how its images are prepared"):
        openjepa.embed(model, good(photos)[:1])
