"""Features are what the paper says, made in one pass, and never silently broken."""

import weakref
from collections.abc import Iterable, Iterator

import pytest
import torch
from torch import Tensor

from openjepa.errors import CheckpointError
from openjepa.evals.features import Encoder, extract, pooled, raw_pixels

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
