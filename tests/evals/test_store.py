"""Features kept on disk: what they are found by, and that nothing is lost by damage or for want of room."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from openjepa.evals import store as module
from openjepa.evals.store import FeatureStore

FEATURES, PLACES = torch.arange(24.0).view(4, 2, 3), np.array([0, 2, 3, 5])


def test_what_was_kept_comes_back_for_the_same_weights_and_images_only(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "features", {"encoder": {"weights": "a"}, "raw_pixels": {"size": 8}})
    assert store.load("encoder", "images") is None
    store.save("encoder", "images", FEATURES, PLACES)
    found = FeatureStore(tmp_path / "features", {"encoder": {"weights": "a"}}).load("encoder", "images")
    assert found is not None
    torch.testing.assert_close(found[0], FEATURES)
    assert found[1].tolist() == PLACES.tolist()
    assert store.load("encoder", "other images") is None
    assert store.load("raw_pixels", "images") is None
    assert (
        FeatureStore(tmp_path / "features", {"encoder": {"weights": "b"}}).load("encoder", "images") is None
    )


def test_a_damaged_file_is_as_good_as_none(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, {"encoder": 1})
    store.save("encoder", "images", FEATURES, PLACES)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-8])
    assert store.load("encoder", "images") is None
    store.save("encoder", "images", FEATURES, PLACES)
    assert store.load("encoder", "images") is not None
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


def test_what_was_not_used_for_longest_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FeatureStore(tmp_path, {"encoder": 1})
    for age, images in enumerate(("third", "second", "first")):
        store.save("encoder", images, FEATURES, PLACES)
        (newest,) = {path for path in tmp_path.iterdir() if path.stat().st_mtime > 1e6}
        os.utime(newest, (age, age))
    size = newest.stat().st_size
    store.load("encoder", "third")  # used now
    monkeypatch.setattr(module, "MOST_BYTES", 2.5 * size)
    store.save("encoder", "fourth", FEATURES, PLACES)
    kept = {
        name for name in ("first", "second", "third", "fourth") if store.load("encoder", name) is not None
    }
    assert kept == {"third", "fourth"}


def test_where_there_is_no_room_nothing_is_kept_and_nothing_fails(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        FeatureStore(tmp_path / "file", {"encoder": 1}).save("encoder", "images", FEATURES, PLACES)
    assert "features are not kept here" in caplog.text
