"""The examples of docs/weights.md, run as they stand there, in a folder that has what they speak of."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import openjepa
from openjepa.apps.export import export
from openjepa.data.preprocess import Preprocess
from openjepa.methods.ijepa import build_ijepa
from openjepa.models.architecture import Architecture

PAGE = Path(__file__).parents[1] / "docs" / "weights.md"
EXAMPLES = dict(
    re.findall(r'```python title="([^"]+)"\n(.*?)```', PAGE.read_text(encoding="utf-8"), re.DOTALL)
)
MODULES = {"transformers": "transformers", "timm": "timm", "ONNX Runtime": "onnxruntime", "DuckDB": "duckdb",
           "scikit-learn": "sklearn"}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    architecture = Architecture(
        image_size=(32, 32), patch_size=(8, 8), in_channels=3, embed_dim=192, depth=2, num_heads=3, mlp_ratio=2.0,
        predictor_dim=64, predictor_depth=1, predictor_heads=2,
    )  # fmt: skip
    model = build_ijepa(architecture)
    model.preprocess = Preprocess.imagenet((32, 32), 3)
    openjepa.HubModel.of(model).save_pretrained(folder / "runs" / "mine")
    draw = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for number in range(12):
        pixels = (draw.integers(0, 100, (32, 32, 3)) + 150 * (number % 2)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{number:02}.png")
    openjepa.embed(folder / "runs" / "mine", folder / "photos", folder / "photos.parquet", progress=False)
    for kind in ("hf", "timm", "onnx"):
        export(folder / "runs" / "mine", to=kind, out=folder / f"mine-{kind}")
    return folder


def test_all_are_tested() -> None:
    assert EXAMPLES.keys() == MODULES.keys()


@pytest.mark.parametrize("title", MODULES)
def test_an_example(title: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(MODULES[title])
    monkeypatch.chdir(place)
    paths = sorted(str(path) for path in (place / "photos").iterdir())
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    names: dict[str, Any] = {"images": images, "paths": paths, "labels": [0, 1] * 6}
    exec(EXAMPLES[title], names)
    if "features" in names:
        with torch.no_grad():
            expected = openjepa.load(place / "runs" / "mine").target_encoder(images).mean(1)
        torch.testing.assert_close(torch.as_tensor(names["features"]), expected, rtol=1e-4, atol=1e-4)
    if title == "DuckDB":
        assert len(names["rows"]) == 3
    if title == "scikit-learn":
        assert names["classifier"].score(paths, names["labels"]) == 1
