import math
import random

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from openjepa.data.views import (
    Images,
    Interpolation,
    centre_box,
    coin_flips,
    crop_boxes,
    resize,
    resize_batch,
    resize_one,
)

FILTERS: list[Interpolation] = ["bilinear", "bicubic"]


def boxes_of(height: int, width: int, *, count: int, seed: int = 0) -> NDArray[np.int64]:
    return crop_boxes(
        seed, epochs=0, samples=np.arange(count), heights=[height] * count, widths=[width] * count
    )


def one_random_crop(height: int, width: int) -> tuple[int, int, int, int]:
    """RandomResizedCrop as it is usually written: draw until it fits. Only for sizes where it soon does."""
    while True:
        area = height * width * random.uniform(0.3, 1.0)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < h <= height and 0 < w <= width:
            return random.randint(0, height - h), random.randint(0, width - w), h, w


def noise(*shape: int, extreme: bool = False) -> Images:
    """Random pixels; extreme ones, black and white, make the cubic filter overshoot."""
    generator = np.random.default_rng(0)
    if extreme:
        return (generator.integers(0, 2, shape) * 255).astype(np.uint8)
    return generator.integers(0, 256, shape, dtype=np.uint8)


def test_crops_have_the_usual_distribution() -> None:
    random.seed(1)
    expected = np.array([one_random_crop(40, 50) for _ in range(10_000)], dtype=float)
    found = boxes_of(40, 50, count=40_000).astype(float)
    for power in (1, 2):  # mean and variance, four standard errors wide
        a, b = ((boxes - (power - 1) * expected.mean(axis=0)) ** power for boxes in (expected, found))
        error = np.sqrt(a.var(axis=0) / len(a) + b.var(axis=0) / len(b))
        assert (np.abs(a.mean(axis=0) - b.mean(axis=0)) < 4 * error).all()


@pytest.mark.parametrize(
    ("height", "width"), [(10_000, 40), (40, 10_000), (1, 1), (1, 1000), (1000, 1), (2, 3), (32, 32)]
)
def test_crops_lie_inside_images_of_any_shape(height: int, width: int) -> None:
    top, left, box_height, box_width = boxes_of(height, width, count=500).T
    assert (box_height >= 1).all()
    assert (box_width >= 1).all()
    assert ((top >= 0) & (top + box_height <= height)).all()
    assert ((left >= 0) & (left + box_width <= width)).all()


def test_a_very_long_image_gives_its_centre_within_the_aspect_limits() -> None:
    assert (boxes_of(10_000, 40, count=50) == [(10_000 - 53) // 2, 0, 53, 40]).all()
    assert (boxes_of(40, 10_000, count=50) == [0, (10_000 - 53) // 2, 40, 53]).all()


def test_a_crop_depends_on_seed_epoch_and_sample_only() -> None:
    together = crop_boxes(3, epochs=[0, 0, 1], samples=[5, 6, 5], heights=[64, 32, 64], widths=[48, 32, 48])
    alone = crop_boxes(3, epochs=1, samples=[5], heights=[64], widths=[48])
    assert (together[2] == alone[0]).all()
    assert (together[0] != together[2]).any()
    assert (boxes_of(64, 64, count=8) != boxes_of(64, 64, count=8, seed=1)).any()


def test_half_of_the_coins_show_heads() -> None:
    flips = coin_flips(0, epochs=0, samples=np.arange(10_000))
    assert abs(flips.mean() - 0.5) < 0.02
    assert (coin_flips(0, epochs=0, samples=[17, 4]) == flips[[17, 4]]).all()


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    ("shape", "size"),
    [((32, 32), (32, 32)), ((16, 20), (40, 33)), ((60, 35), (8, 12)), ((30, 50), (45, 20)), ((1, 7), (5, 3))],
)
def test_both_ways_to_resize(
    shape: tuple[int, int], size: tuple[int, int], channels: int, interpolation: Interpolation
) -> None:
    """In a batch to the last bit as Pillow, one by one to a level, or two where a cubic filter overshoots."""
    images = noise(24, *shape, channels, extreme=interpolation == "bicubic")
    boxes = boxes_of(*shape, count=24)
    flips = coin_flips(0, epochs=0, samples=np.arange(24))
    batch = resize_batch(images, boxes, flips, size, interpolation)
    assert batch.shape == (24, channels, *size)
    assert batch.dtype == np.uint8
    for view, image, box, flip in zip(batch, images, boxes.tolist(), flips, strict=True):
        assert (view == pillow(image, box, bool(flip), size, interpolation)).all()
        single = resize_one(image, box, bool(flip), size, interpolation)
        assert np.abs(single.astype(int) - view).max() <= {"bilinear": 1, "bicubic": 2}[interpolation]


def pillow(
    image: Images, box: list[int], flip: bool, size: tuple[int, int], interpolation: Interpolation
) -> Images:
    """Channel by channel, first along the rows: asked for both at once, recent Pillow chooses the order."""
    top, left, height, width = box
    method = Image.Resampling[interpolation.upper()]
    planes = []
    for plane in np.moveaxis(image[top : top + height, left : left + width], 2, 0):
        rows = Image.fromarray(np.ascontiguousarray(plane)).resize((size[1], height), method)
        planes.append(np.asarray(rows.resize((size[1], size[0]), method)))
    view = np.stack(planes)
    return view[:, :, ::-1] if flip else view


@pytest.mark.parametrize("interpolation", FILTERS)
def test_a_resize_is_pillows_of_the_crop(interpolation: Interpolation) -> None:
    image = noise(50, 70, 3) // 2 + 64  # without the extremes, which a cubic filter overshoots
    method = Image.Resampling[interpolation.upper()]
    for size in [(20, 31), (90, 80), (20, 90)]:
        expected = np.asarray(Image.fromarray(image).crop((11, 5, 66, 46)).resize(size[::-1], method))
        found = resize_one(image, (5, 11, 41, 55), False, size, interpolation).transpose(1, 2, 0)
        # one level, for Pillow rounds between the passes, and chooses which is first
        assert np.abs(found.astype(int) - expected).max() <= 1


def test_a_view_of_the_images_own_size_is_the_image_or_its_mirror_image() -> None:
    images = noise(2, 24, 24, 3)
    whole = np.array([[0, 0, 24, 24]] * 2)
    views = resize(list(images), whole, np.array([False, True]), (24, 24))
    assert (views[0] == images[0].transpose(2, 0, 1)).all()
    assert (views[1] == images[1, :, ::-1].transpose(2, 0, 1)).all()


def test_a_view_of_the_images_own_size_is_not_resized(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("resize_one", "resize_batch"):
        monkeypatch.setattr(f"openjepa.data.views.{name}", None)
    images = [noise(32, 32, 3), noise(60, 50, 3)]
    boxes, flips = np.array([[0, 0, 32, 32], [5, 8, 32, 32]]), np.array([False, True])
    views = resize(images, boxes, flips, (32, 32))
    assert (views[0] == images[0].transpose(2, 0, 1)).all()
    assert (views[1] == images[1][5:37, 8:40][:, ::-1].transpose(2, 0, 1)).all()


@pytest.mark.parametrize("interpolation", FILTERS)
def test_shrinking_does_not_alias(interpolation: Interpolation) -> None:
    stripes = np.zeros((1, 36, 36, 1), dtype=np.uint8)
    stripes[:, :, ::2] = 255
    view = resize_batch(stripes, np.array([[0, 0, 36, 36]]), np.array([False]), (9, 9), interpolation)
    assert np.abs(view[..., 1:-1].astype(int) - 128).max() <= 3


def test_a_view_depends_on_its_own_image_only() -> None:
    images, boxes = list(noise(70, 20, 20, 3)), boxes_of(20, 20, count=70)
    flips = coin_flips(0, epochs=0, samples=np.arange(70))
    together = resize(images, boxes, flips, (24, 24))
    some = [3, 68, 40]
    apart = resize([images[index] for index in some], boxes[some], flips[some], (24, 24))
    assert (together[some] == apart).all()
    mixed = resize([images[3], noise(90, 50, 3)], boxes[[3, 4]], flips[[3, 4]], (24, 24))
    assert (together[3] == mixed[0]).all()


@pytest.mark.parametrize(
    ("shape", "size", "box"),
    [
        ((32, 32), (32, 32), (0, 0, 32, 32)),
        ((100, 50), (224, 224), (25, 0, 50, 50)),
        ((51, 100), (32, 32), (0, 24, 51, 51)),
        ((100, 100), (10, 20), (25, 0, 50, 100)),
        ((10, 20), (10, 20), (0, 0, 10, 20)),
        ((1, 999), (7, 7), (0, 499, 1, 1)),
    ],
)
def test_the_evaluation_view_is_the_largest_centred_box(
    shape: tuple[int, int], size: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    assert centre_box(*shape, size) == box
