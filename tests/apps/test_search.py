"""`openjepa search` on a real file of embeddings, and features in a scikit-learn pipeline."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import openjepa
from openjepa.apps import search as module
from openjepa.apps.search import search
from openjepa.errors import CheckpointError, UserError
from openjepa.formats.embeddings import read_metadata

pytest.importorskip("pyarrow")

GOLDEN = Path(__file__).parents[1] / "golden" / "tiny-32-p4-before.pth.tar"
HEADS: int = json.loads(GOLDEN.with_name("tiny-32-p4.json").read_text())["num_heads"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty images of noise, one of them twice, and one that is white."""
    folder, draw = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(20):
        low = Image.fromarray(draw.integers(0, 255, (5, 5, 3), dtype=np.uint8))
        low.resize((40, 36), Image.Resampling.BICUBIC).save(folder / f"{number:02}.png")
    (folder / "copy.png").write_bytes((folder / "07.png").read_bytes())
    Image.new("RGB", (40, 36), "white").save(folder / "white.png")
    return folder


@pytest.fixture(scope="module")
def file(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("embedded") / "photos.parquet"
    openjepa.embed(GOLDEN, photos, out, num_heads=HEADS, progress=False, precision="float32")
    return out


def names(found: list[openjepa.apps.search.Found]) -> list[str]:
    return [Path(one.path).name for one in found]


def test_an_image_finds_itself_and_its_copy(
    file: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pictures" / "nearest.png"
    found = search(file, photos / "07.png", k=4, num_heads=HEADS, out=out)
    assert set(names(found)[:2]) == {"07.png", "copy.png"}
    likeness = [one.similarity for one in found]
    assert likeness[0] == pytest.approx(1, abs=1e-5)
    assert likeness == sorted(likeness, reverse=True)  # type: ignore[type-var]
    table = capsys.readouterr().out
    assert "similarity" in table
    with Image.open(out) as picture:
        assert picture.size == (5 * 168 + 8, 192)  # the query and four
        colours = picture.convert("RGB").getpixel((60, 60))
    assert colours != (255, 255, 255)


def test_a_query_is_pooled_as_the_file_says(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "grid.parquet"
    openjepa.embed(GOLDEN, photos, out, pool="grid2", num_heads=HEADS, progress=False, precision="float32")
    found = search(out, photos / "07.png", k=2, num_heads=HEADS)
    assert set(names(found)) == {"07.png", "copy.png"}
    assert found[0].similarity == pytest.approx(1, abs=1e-5)


def test_files_of_earlier_versions_call_the_mean_by_its_name(
    file: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = read_metadata(file)
    assert metadata["embedding"]["pooling"] == "mean"
    metadata["embedding"]["pooling"] = "mean over patches"
    monkeypatch.setattr(module, "read_metadata", lambda path: metadata)
    assert search(file, photos / "07.png", k=1, num_heads=HEADS)[0].similarity == pytest.approx(1, abs=1e-5)


def test_copies_odd_ones_and_a_selection(file: Path) -> None:
    groups = search(file, duplicates=True, threshold=0.99999)
    assert sorted(names(groups)) == ["07.png", "copy.png"]
    assert {one.group for one in groups} == {0}
    odd = search(file, outliers=True, k=3)
    assert len(odd) == 3
    chosen = names(search(file, select=10))
    assert len(set(chosen)) == 10
    assert not {"07.png", "copy.png"} <= set(chosen)
    assert len(search(file, select=1000)) == 22


def test_other_weights_are_refused(file: Path, photos: Path) -> None:
    other = GOLDEN.with_name(GOLDEN.name.replace("before", "after"))
    with pytest.raises(CheckpointError, match="made with other weights"):
        search(file, photos / "07.png", checkpoint=other, num_heads=HEADS)


def test_mistakes(file: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Give one of IMAGE, --duplicates"):
        search(file)
    with pytest.raises(UserError, match="Give one of IMAGE, --duplicates"):
        search(file, photos / "07.png", duplicates=True)
    with pytest.raises(UserError, match="--k 0"):
        search(file, photos / "07.png", k=0)
    (tmp_path / "other.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match="can't be read as parquet"):
        search(tmp_path / "other.parquet", duplicates=True)


def test_in_a_pipeline_of_scikit_learn(photos: Path) -> None:
    files = sorted(photos.glob("[0-9]*.png"))
    labels = [int(file.stem) % 2 for file in files]
    features = openjepa.OpenJEPAFeatures(GOLDEN, num_heads=HEADS)
    pipeline = make_pipeline(clone(features), LogisticRegression(C=1e4, max_iter=10_000)).fit(files, labels)
    assert pipeline.score(files, labels) > 0.7
    expected = openjepa.embed(GOLDEN, files, num_heads=HEADS).numpy()
    np.testing.assert_allclose(features.fit_transform(files), expected, rtol=1e-5, atol=1e-5)
    pixels = np.stack([np.asarray(Image.open(file)) for file in files])
    np.testing.assert_allclose(features.transform(pixels), expected, rtol=1e-4, atol=1e-4)
    assert len(features.get_feature_names_out()) == expected.shape[1]
    regions = openjepa.OpenJEPAFeatures(GOLDEN, pool="grid2", num_heads=HEADS)
    assert regions.fit_transform(files[:2]).shape == (2, 4 * expected.shape[1])
    assert len(regions.get_feature_names_out()) == 4 * expected.shape[1]
    with pytest.raises(UserError, match="pool 'median': expected mean"):
        openjepa.OpenJEPAFeatures(GOLDEN, pool="median", num_heads=HEADS).fit(files)
