"""Depth and things by patch: against fits done another way, and on images of which the answer is known."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from openjepa.data.builtin import ArraySource
from openjepa.data.dataset import ImageDataset
from openjepa.errors import DataError
from openjepa.evals.dense import Views, dense_depth, raw_patches, segmentation

GRID = (4, 4)


@dataclass(frozen=True, eq=False)
class Known(ArraySource):
    """Images of which the depth is ten minus the red, and whose bright green pixels are things."""

    def depth(self, index: int) -> NDArray[np.float32]:
        return (10 - self.images[index][..., 0] / 50).astype(np.float32)

    def segments(self, index: int) -> NDArray[np.uint8]:
        return (self.images[index][..., 1] > 128).astype(np.uint8)

    @property
    def segment_names(self) -> tuple[str, ...]:
        return ("floor", "thing")


def images(num: int, *, seed: int, kind: type[ArraySource] = Known) -> ImageDataset:
    """Of 16 × 16 pixels in blocks of 4, with noise; a third of the blocks are things."""
    draw = np.random.default_rng(seed)
    blocks = draw.integers(20, 200, (num, *GRID, 3))
    blocks[..., 1] = np.where(draw.random((num, *GRID)) < 1 / 3, 210, 60)
    pixels = blocks.repeat(4, axis=1).repeat(4, axis=2) + draw.normal(0, 4, (num, 16, 16, 3))
    source = kind(
        f"known-{seed}", pixels.clip(0, 255).astype(np.uint8), np.zeros(num, np.int64), ("all",), ""
    )
    return ImageDataset(source, image_size=(16, 16))


def views(**changes: ImageDataset) -> Views:
    data = {"train": images(120, seed=1), "test": images(40, seed=2), **changes}
    return Views(**data, grid=GRID, mean=(0.5,) * 3, std=(0.25,) * 3)


def colours(pictures: Tensor) -> Tensor:
    """Mean colour of each patch."""
    return torch.nn.functional.adaptive_avg_pool2d(pictures, GRID).flatten(2).mT


def blind(pictures: Tensor) -> Tensor:
    """The blue, which tells neither."""
    return colours(pictures)[..., 2:]


def test_depth_is_found_where_it_can_be_and_nowhere_else() -> None:
    scores = dense_depth({"sees": colours, "blind": blind}, views())
    assert scores["sees"]["rmse"] < 0.02
    assert scores["sees"]["delta1"] == 1
    assert scores["blind"]["rmse"] == pytest.approx(scores["constant"]["rmse"], rel=0.05)
    assert 0 < scores["constant"]["delta1"] < 0.95


def test_depth_is_that_of_a_ridge_regression_in_one_go() -> None:
    """The same fit from all patches at once, by another solver."""
    data = views()
    found = dense_depth({"blind": blind}, data)["blind"]
    x, y = [], []
    for dataset in (data.train, data.test):
        rows = [(samples, blind(pictures)) for samples, pictures in data.batches(dataset)]
        x.append(torch.cat([features for _, features in rows]).double().numpy())
        maps = np.stack([dataset.source.depth(int(i)) for samples, _ in rows for i in samples])  # type: ignore[attr-defined]
        y.append(maps.reshape(-1, 4, 4, 4, 4).mean(axis=(2, 4)).reshape(-1, 16))
    fit = np.arange(120) % 10 != 1
    design = np.c_[x[0][fit].reshape(-1, 1), np.ones(16 * fit.sum())]
    penalty = np.diag([found["penalty"] * (design[:, 0] ** 2).sum(), 0])
    weights = np.linalg.solve(design.T @ design + penalty, design.T @ y[0][fit].ravel())
    answers = np.c_[x[1].reshape(-1, 1), np.ones(16 * 40)] @ weights
    assert found["rmse"] == pytest.approx(np.sqrt(((answers - y[1].ravel()) ** 2).mean()), rel=1e-4)


def test_things_are_found_where_they_can_be_and_nowhere_else() -> None:
    scores = segmentation({"sees": colours, "blind": blind, "raw": raw_patches(GRID)}, views())
    assert scores["sees"]["miou"] == scores["sees"]["top1"] == 1
    assert scores["raw"]["miou"] > 0.95
    share = scores["constant"]["top1"]
    assert 0.6 < share < 0.73
    assert scores["constant"]["miou"] == pytest.approx(
        share / 2
    )  # the floor's overlap, and none of the things'
    assert scores["blind"]["miou"] == pytest.approx(share / 2, abs=0.02)


def test_raw_patches_are_the_pixels_and_the_position() -> None:
    pictures = torch.arange(2 * 3 * 16 * 16.0).view(2, 3, 16, 16)
    found = raw_patches(GRID)(pictures)
    assert found.shape == (2, 16, 3 * 4 * 4 + 16)
    torch.testing.assert_close(found[1, 6, :48], pictures[1, :, 4:8, 8:12].flatten())
    assert found[0, 6, 48:].nonzero().item() == 6


def test_data_that_know_neither_are_refused() -> None:
    plain = views(test=images(10, seed=3, kind=ArraySource))
    with pytest.raises(DataError, match="known-3 has no depth maps"):
        dense_depth({"sees": colours}, plain)
    with pytest.raises(DataError, match="known-3 does not know what each pixel shows"):
        segmentation({"sees": colours}, plain)
