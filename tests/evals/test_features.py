"""Features are what the paper says, made in one pass, and never silently broken."""

import weakref
from collections.abc import Iterable, Iterator

import pytest
import torch
from torch import Tensor

from openjepa.errors import CheckpointError, UserError
from openjepa.evals.features import (
    POOLINGS,
    Encoder,
    extract,
    pool_patches,
    pooled,
    pooled_size,
    raw_pixels,
    remembering,
)

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (7, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def encode(images: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 4, 3): means of the four quarters, squared."""
    quarters = torch.nn.functional.adaptive_avg_pool2d(images, 2)
    return quarters.flatten(2).mT.square()


def embed(encode: Encoder, batches: Iterable[Tensor]) -> Tensor:
    return extract({"it": pooled(encode)}, batches=batches, num_images=9, mean=MEAN, std=STD)["it"]


def test_pooled_averages_over_patches_whatever_the_batches(images: Tensor) -> None:
    x = (images.double() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    quarters = x.view(7, 3, 2, 4, 2, 4).mean(dim=(3, 5))
    expected = quarters.square().mean(dim=(2, 3))
    for size in (7, 3, 1):
        features = embed(encode, images.split(size))
        assert features.dtype == torch.float32
        torch.testing.assert_close(features.double(), expected, rtol=1e-5, atol=1e-6)


def test_pooled_gives_float32_without_gradient(images: Tensor) -> None:
    weight = torch.ones(3, requires_grad=True)
    features = embed(lambda x: (encode(x) * weight).bfloat16(), [images])
    assert features.dtype == torch.float32
    assert not features.requires_grad


def test_several_encoders_share_one_pass(images: Tensor) -> None:
    served = []

    def once() -> Iterator[Tensor]:
        for batch in images.split(2):
            served.append(len(batch))
            yield batch

    features = extract(
        {"a": pooled(encode), "b": raw_pixels}, batches=once(), num_images=7, mean=MEAN, std=STD
    )
    assert sum(served) == len(images)
    torch.testing.assert_close(features["a"], embed(encode, [images]))
    assert features["b"].shape == (7, 3 * 8 * 8)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_pooling_is_that_of_each_layer_and_has_its_size(pooling: str) -> None:
    patches = torch.randn(2, 4, 20, 6)  # (B, L, P, D)
    found = pool_patches(patches.bfloat16(), pooling, grid=(5, 4))
    assert found.shape == (2, 4, pooled_size(pooling, 6))
    assert found.dtype == torch.float32
    alone = pool_patches(patches[:, 1].bfloat16(), pooling, grid=(5, 4))
    torch.testing.assert_close(found[:, 1], alone)


def test_poolings_are_what_they_are_called() -> None:
    patches = torch.randn(3, 24, 5)
    maps = patches.view(3, 4, 6, 5)  # (B, rows, columns, D)
    torch.testing.assert_close(pool_patches(patches, "max"), maps.amax(dim=(1, 2)))
    both = torch.cat([maps.mean(dim=(1, 2)), maps.amax(dim=(1, 2))], dim=1)
    torch.testing.assert_close(pool_patches(patches, "mean+max"), both)
    quarters = maps.view(3, 2, 2, 2, 3, 5).mean(dim=(2, 4)).flatten(1)  # top left, top right, bottom left, …
    torch.testing.assert_close(pool_patches(patches, "grid2", grid=(4, 6)), quarters)


def test_regions_cover_grids_that_their_number_does_not_divide() -> None:
    """Of 8 rows the three regions are rows 0 to 2, 2 to 5 and 5 to 7, as in adaptive average pooling."""
    patches = torch.randn(2, 64, 5)
    maps = patches.view(2, 8, 8, 5)
    spans = [slice(0, 3), slice(2, 6), slice(5, 8)]
    expected = torch.cat(
        [maps[:, down, across].mean(dim=(1, 2)) for down in spans for across in spans], dim=1
    )
    torch.testing.assert_close(pool_patches(patches, "grid3", grid=(8, 8)), expected)


def test_the_grid_is_that_of_the_images(images: Tensor) -> None:
    wide = torch.cat([images, images], dim=3).float()  # (7, 3, 8, 16)

    def by_patch(x: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(x, 4).flatten(2).mT  # (7, 2 · 4, 3)

    found = pooled(by_patch, "grid2", patch_size=(4, 4))(wide)
    expected = torch.nn.functional.adaptive_avg_pool2d(wide, 2).flatten(2).mT.flatten(1)
    torch.testing.assert_close(found, expected)


def test_an_unknown_pooling_is_refused() -> None:
    with pytest.raises(UserError, match=r"pool 'median': expected mean, max, mean\+max, grid2 or grid3"):
        pooled_size("median", 8)


def test_an_encoder_is_asked_once_for_each_batch(images: Tensor) -> None:
    asked = []

    def counting(x: Tensor) -> Tensor:
        asked.append(len(x))
        return encode(x)

    shared = remembering(counting)
    kinds = {"mean": pooled(shared), "max": pooled(shared, "max")}
    found = extract(kinds, batches=images.split(3), num_images=len(images), mean=MEAN, std=STD)
    assert asked == [3, 3, 1]
    torch.testing.assert_close(found["mean"], embed(encode, [images]))
    expected = extract(
        {"max": pooled(encode, "max")}, batches=[images], num_images=len(images), mean=MEAN, std=STD
    )
    torch.testing.assert_close(found["max"], expected["max"])


def test_features_of_a_batch_are_written_to_their_place_and_not_kept(images: Tensor) -> None:
    held = most = 0

    def let_go() -> None:
        nonlocal held
        held -= 1

    def featurise(images: Tensor) -> Tensor:
        nonlocal held, most
        found = images.mean(dim=(2, 3))
        weakref.finalize(found, let_go)
        held += 1
        most = max(most, held)
        return found

    extract({"it": featurise}, batches=images.split(1), num_images=7, mean=MEAN, std=STD)
    assert most <= 2  # that of the batch before may still be there


def test_raw_pixels_of_small_images_are_the_pixels() -> None:
    images = torch.randn(2, 3, 32, 20)
    assert torch.equal(raw_pixels(images), images.flatten(1))


def test_raw_pixels_of_large_images_are_averaged_down_to_32() -> None:
    images = torch.randn(2, 1, 64, 16)
    expected = images.view(2, 1, 32, 2, 16).mean(dim=3).flatten(1)
    torch.testing.assert_close(raw_pixels(images), expected)
    assert raw_pixels(torch.randn(1, 3, 224, 100)).shape == (1, 3 * 32 * 32)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_name_the_checkpoint(images: Tensor, value: float) -> None:
    def broken(x: Tensor) -> Tensor:
        features = encode(x)
        features[1, 0, 0] = value
        return features

    with pytest.raises(CheckpointError, match=r"runs/mine: the features of 1 of 7 images") as error:
        extract({"runs/mine": pooled(broken)}, batches=[images], num_images=7, mean=MEAN, std=STD)
    assert error.value.exit_code == 4
