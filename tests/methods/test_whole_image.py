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
from openjepa.methods.method import Targets
from openjepa.methods.whole_image import WholeImage, describe, whitening, with_whitening
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


def whiten(rows: Tensor) -> Tensor:
    mean, basis = whitening(rows)
    return (rows.float().flatten(1) - mean) @ basis


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
    whole, layers = WholeImage(WIDTH, 2), rows[:, :, None]  # of one patch
    assert not whole.fitted
    with torch.autocast("cpu", torch.bfloat16):
        whole.fit(rows)
        targets = whole.targets(layers)
    assert whole.fitted
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


def test_what_whitens_is_saved_and_older_checkpoints_lack_it() -> None:
    one, other = WholeImage(WIDTH, 2), WholeImage(WIDTH, 2)
    one.fit(descriptions(200))
    other.load_state_dict(one.state_dict())
    said = descriptions(5)
    assert torch.equal(other.targets(said), one.targets(said))
    model = build_ijepa(SHAPE, seed=4)
    model.ask_for_the_whole(1.0)
    state = model.state_dict()
    older = {name: state[name] for name in state if name not in ("whole_image.mean", "whole_image.basis")}
    model.load_state_dict(with_whitening(older, like=state))
    plain = build_ijepa(SHAPE).state_dict()
    assert with_whitening(plain, like=state).keys() == plain.keys()


def batch() -> tuple[Tensor, Masks]:
    numbers = np.arange(6)
    sampler = make_masks("multiblock", grid=(8, 8), num_contexts=2)
    masks = sampler(seed=0, step=0, epochs=0 * numbers, samples=numbers)
    return torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0)), masks


def test_the_loss_is_that_of_the_patches_and_of_the_whole_from_each_context() -> None:
    plain, both = (build_ijepa(SHAPE, loss="mse", target_norm="double_centred", seed=4) for _ in range(2))
    both.ask_for_the_whole(0.5, seed=4)
    (images, masks), targets = batch(), torch.randn(6, 2 * WIDTH)
    expected, found = (
        plain(images, masks).loss,
        both(images, masks, Targets(plain.encode_targets(images), targets)).loss,
    )
    assert both.whole_image is not None
    errors = []
    for context in range(2):
        visible = both.encode_context(images, masks.context[:, context : context + 1])[:, 0]
        errors.append((both.whole_image.head(visible.mean(dim=1)) - targets).square().mean())
    torch.testing.assert_close(found, expected + 0.5 * torch.stack(errors).mean())
    torch.testing.assert_close(both(images, masks).loss, expected)  # not fitted yet
    found.backward()
    assert all(parameter.grad is not None for parameter in both.whole_image.parameters())


def test_both_targets_are_of_one_pass_of_the_teacher() -> None:
    model = build_ijepa(SHAPE, loss="mse", target_norm="double_centred")
    model.ask_for_the_whole(1.0)
    model.renew_teacher()
    images, masks = batch()
    assert model.ask(images).whole is None
    assert model.whole_image is not None
    assert model.teacher is not None
    model.whole_image.fit(descriptions(300))
    asked = model.ask(images)
    assert asked.whole is not None
    torch.testing.assert_close(asked.patches, model.encode_targets(images))
    torch.testing.assert_close(
        asked.whole, model.whole_image.targets(describe(model.teacher.layers(images, 4)))
    )
    assert torch.equal(model(images, masks).loss, model(images, masks, asked).loss)
    halves = asked.split(3)
    assert [len(half.patches) for half in halves] == [3, 3]
    assert torch.equal(torch.cat([half.whole for half in halves if half.whole is not None]), asked.whole)


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
