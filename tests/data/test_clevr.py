"""A folder laid out as Clevr: which images, which labels, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from make_images import jpeg
from openjepa.data.sources import open_source
from openjepa.errors import DataError


def write(root: Path, split: str, scenes: list[list[float]]) -> None:
    """Images with objects at these distances."""
    (root / "images" / split).mkdir(parents=True, exist_ok=True)
    (root / "scenes").mkdir(exist_ok=True)
    told: list[dict[str, Any]] = []
    for number, distances in enumerate(scenes):
        name = f"CLEVR_{split}_{number:06}.png"
        (root / "images" / split / name).write_bytes(jpeg())
        things = [{"pixel_coords": [12, 7, distance], "shape": "cube"} for distance in distances]
        told.append({"image_filename": name, "split": split, "objects": things})
    file = root / "scenes" / f"CLEVR_{split}_scenes.json"
    file.write_text(json.dumps({"info": {}, "scenes": told}))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(
        tmp_path,
        "train",
        [[11, 9, 12], [8.5, 10, 11, 12], [7.9, 13, 14], [8.51, 10, 10], [10.0, 12, 12], [10.1] * 10],
    )
    write(tmp_path, "val", [[11, 12, 13], [7, 8, 9, 10]])
    return tmp_path


def labels(root: Path, split: str, target: str | None) -> list[str]:
    source = open_source(root, split=split, target=target)
    assert source.labels is not None
    return [source.classes[label] for label in source.labels]


def test_objects_are_counted_and_the_nearest_gives_the_distance(root: Path) -> None:
    assert labels(root, "train", "count") == labels(root, "train", None) == ["3", "4", "3", "3", "3", "10"]
    # An edge belongs to the nearer class, as in VTAB: label = the number of edges below the distance.
    assert labels(root, "train", "distance") == ["8.5-9", "8-8.5", "to 8", "8.5-9", "9.5-10", "from 10"]


def test_the_test_split_is_the_published_validation_split(root: Path) -> None:
    source = open_source(root, split="test")
    assert len(source) == 2
    assert source.path(1) == str(root / "images" / "val" / "CLEVR_val_000001.png")
    assert source.read(1) == jpeg()
    assert labels(root, "test", "distance") == ["from 10", "to 8"]


def test_mistakes(root: Path) -> None:
    with pytest.raises(DataError, match=r"no label 'colour'; --target can be count, distance"):
        open_source(root, target="colour")
    (root / "scenes" / "CLEVR_val_scenes.json").write_text('{"scenes": [{"image_filename": "x.png"}]}')
    with pytest.raises(DataError, match=r"CLEVR_val_scenes\.json: not Clevr's scenes: KeyError\('split'\)"):
        open_source(root, split="test")
    (root / "scenes" / "CLEVR_train_scenes.json").unlink()
    with pytest.raises(DataError, match=r"CLEVR_train_scenes\.json: cannot be read: No such file"):
        open_source(root)
