"""`openjepa scan`: every kind of thing it can find, found."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openjepa.apps.scan import scan
from openjepa.data.scenes import source as scenes
from openjepa.errors import DataError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten images in two classes: a copy, one grey PNG, one cut off, one empty."""
    folder = tmp_path / "photos"
    generator = np.random.default_rng(0)
    for number in range(7):
        path = folder / ("cat" if number < 4 else "dog") / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (40, 30 + number, 3), dtype=np.uint8)).save(path)
    Image.fromarray(generator.integers(0, 255, (50, 60), dtype=np.uint8)).save(folder / "cat" / "grey.png")
    (folder / "dog" / "cut.jpg").write_bytes((folder / "cat" / "0.jpg").read_bytes()[:-300])
    (folder / "dog" / "empty.jpg").write_bytes(b"")
    shutil.copy(folder / "cat" / "1.jpg", folder / "dog" / "again.jpg")
    return folder


def test_what_is_in_there(photos: Path) -> None:
    lines = {line.partition(" ")[0]: line for line in scan(photos).splitlines()}
    assert "11 images" in lines["data"]
    assert "JPEG 9" in lines["formats"]
    assert "PNG 1" in lines["formats"]
    assert "RGB 9" in lines["modes"]
    assert "L 1" in lines["modes"]
    assert "31×40 2" in lines["sizes"]
    assert "shorter side 30 to 50" in lines["sizes"]
    assert lines["broken"].startswith("broken      2:")
    assert "empty file 1" in lines["broken"]
    assert lines["duplicates"] == "duplicates  1 with the pixels of another image"
    assert "2: dog 6, cat 5; the most frequent is 54.5%" in lines["classes"]
    assert "salt, 8 × 8 patches of 4 px, batch 8" in lines["preset"]


def test_the_paths_of_what_is_wrong(photos: Path) -> None:
    text = scan(photos)
    assert f"{photos}/dog/empty.jpg: empty file" in text
    assert f"{photos}/cat/1.jpg = {photos}/dog/again.jpg" in text


def test_overlap_of_train_and_test(photos: Path, tmp_path: Path) -> None:
    held_out = tmp_path / "held-out"
    held_out.mkdir()
    shutil.copy(photos / "dog" / "5.jpg", held_out / "other-name.jpg")
    Image.new("RGB", (30, 30), "white").save(held_out / "own.png")
    text = scan(photos, test=held_out)
    assert f"1 of 2 images of {held_out} are in {photos} too" in text
    assert f"{photos}/dog/5.jpg = {held_out}/other-name.jpg" in text


def test_overlap_of_folders_named_like_splits(tmp_path: Path) -> None:
    for split, colours in {"train": ("red", "green"), "val": ("blue", "red")}.items():
        for colour in colours:
            path = tmp_path / split / f"{colour}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (30, 30), colour).save(path)
    assert "overlap     1 pictures in more than one of train, val" in scan(tmp_path)


def test_a_built_in_with_all_its_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENJEPA_CACHE", str(tmp_path))
    monkeypatch.setattr(scenes, "SIZES", {"train": 16, "test": 8})
    text = scan("scenes")
    for name in scenes.TARGETS:
        assert f"\n{name:<11} " in text
    assert "overlap     0 of 8 images of scenes:test are in scenes:train too" in text
    assert "pixels 16" in text


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images"):
        scan(tmp_path)
