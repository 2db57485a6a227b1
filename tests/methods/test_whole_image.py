"""The whole image as one more target: against definitions, what it asks of an encoder, and who may use it."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from openjepa.config import Config
from openjepa.hub import model_of
from openjepa.masks import Masks, make_masks
from openjepa.methods.ijepa import IJEPA, build_ijepa
from openjepa.methods.whole_image import WholeImage, whiten
from openjepa.models.architecture import Architecture
from openjepa.presets import preset, with_method

WIDTH = 16
SHAPE = Architecture((32, 32), (4, 4), 3, WIDTH, 2, 2, 2.0, 8, 1, 2)


def descriptions(num_images: int) -> Tensor:
    """Of two layers, (N, 2, D): numbers that vary by 1 to a thousandth, mixed, around 3."""
    draw = torch.Generator().manual_seed(0)
    spread = torch.logspace(0, -3, 2 * WIDTH)
    mixing = torch.linalg.qr(torch.randn(2 * WIDTH, 2 * WIDTH, generator=draw))[0]
    return 3.0 + ((torch.randn(num_images, 2 * WIDTH, generator=draw) * spread) @ mixing).unflatten(
        1, (2, WIDTH)
    )


def test_targets_are_uncorrelated_and_the_strong_directions_count_alike() -> None:
    rows = descriptions(4000)
    targets = whiten(rows)
    assert targets.shape == (4000, 2 * WIDTH)
    assert targets.mean(dim=0).abs().max() < 1e-4
    assert targets.square().mean() == pytest.approx(1.0)
    covariance = targets.T @ targets / len(targets)
    torch.testing.assert_close(covariance, covariance.diagonal().diag(), rtol=0, atol=0.01)
    standardised = rows.flatten(1)
    standardised = (standardised - standardised.mean(dim=0)) / standardised.std(dim=0)
    variances = torch.linalg.eigvalsh(torch.cov(standardised.T)).flip(0)
    kept = variances / (variances + 1e-3 * variances[0])
    torch.testing.assert_close(covariance.diagonal(), kept / kept.mean(), rtol=0.01, atol=0.01)
    assert variances[0] > 20 * variances[10]  # not at all alike before
    assert covariance[0, 0] < 1.1 * covariance[10, 10]


def test_targets_are_float32_in_a_run_that_computes_in_bfloat16() -> None:
    rows = descriptions(500)
    with torch.autocast("cpu", torch.bfloat16):
        targets = whiten(rows)
    torch.testing.assert_close(targets, whiten(rows), rtol=0, atol=0)


def test_no_more_directions_than_128() -> None:
    assert whiten(torch.randn(300, 4, 64)).shape == (300, 128)
    wide = WholeImage(64, 12)
    assert wide(torch.randn(3, 1, 5, 64), torch.randn(3, 128)).shape == ()


def test_an_encoder_that_tells_images_apart_answers_and_one_that_does_not_cannot() -> None:
    rows = descriptions(2000)
    targets = whiten(rows)

    def missed(*, telling: bool) -> float:
        torch.manual_seed(0)
        whole = WholeImage(WIDTH, 2)
        optimizer = torch.optim.AdamW(whole.parameters(), lr=1e-2)
        seen = rows if telling else torch.ones_like(rows)
        for _ in range(150):
            loss = whole(seen[:, None, :1], targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    assert missed(telling=True) < 0.75  # half of the numbers, seen: those of one layer
    assert missed(telling=False) == pytest.approx(1.0, abs=0.02)


def test_images_without_a_target_are_left_out() -> None:
    whole, context, targets = WholeImage(WIDTH, 2), torch.randn(4, 2, 5, WIDTH), torch.randn(4, 2 * WIDTH)
    alone = whole(context[:3], targets[:3])
    targets[3] = torch.nan
    found = whole(context, targets)
    torch.testing.assert_close(found, alone)
    found.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in whole.parameters())
    assert whole(context, torch.full_like(targets, torch.nan)) == 0


def batch() -> tuple[Tensor, Masks]:
    numbers = np.arange(6)
    sampler = make_masks("multiblock", grid=(8, 8), num_contexts=2)
    masks = sampler(seed=0, step=0, epochs=0 * numbers, samples=numbers)
    return torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0)), masks


def test_the_loss_is_that_of_the_patches_and_of_the_whole_from_each_context() -> None:
    plain, both = (build_ijepa(SHAPE, loss="mse", target_norm="double_centred", seed=4) for _ in range(2))
    both.ask_for_the_whole(0.5, seed=4)
    (images, masks), targets = batch(), torch.randn(6, 2 * WIDTH)
    expected, found = plain(images, masks).loss, both(images, masks, targets).loss
    assert both.whole_image is not None
    errors = []
    for context in range(2):
        visible = both.encode_context(images, masks.context[:, context : context + 1])[:, 0]
        errors.append((both.whole_image.head(visible.mean(dim=1)) - targets).square().mean())
    torch.testing.assert_close(found, expected + 0.5 * torch.stack(errors).mean())
    torch.testing.assert_close(both(images, masks).loss, expected)  # a health check comes without
    found.backward()
    assert all(parameter.grad is not None for parameter in both.whole_image.parameters())


def test_weights_are_those_without_it_and_its_own() -> None:
    plain, both = (build_ijepa(SHAPE, seed=4) for _ in range(2))
    both.ask_for_the_whole(1.0, seed=4)
    ours, theirs = both.state_dict(), plain.state_dict()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    assert {name.split(".")[0] for name in ours.keys() - theirs.keys()} == {"whole_image"}


def test_a_configuration_asks_for_it_and_what_has_no_teacher_refuses() -> None:
    settings = preset("salt")
    settings["objective"] |= {"whole_weight": 0.25}
    model = model_of(Config.model_validate(settings))
    assert isinstance(model, IJEPA)
    assert model.whole_image is not None
    assert model.whole_weight == 0.25
    with pytest.raises(ValidationError, match=r"whole_weight: 0\.25 is for method ijepa"):
        Config.model_validate({**settings, "method": "mae"})
    with pytest.raises(ValidationError, match=r"whole_weight: 0\.25 .* ema\.generations=1 or more"):
        Config.model_validate({**settings, "ema": {"generations": 0}})
    assert Config.model_validate(with_method(settings, "mae")).objective.whole_weight == 0
