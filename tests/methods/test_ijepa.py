"""The method: who gets a gradient, what the moving average holds, contexts that share one target pass."""

import numpy as np
import pytest
import torch
from torch import Tensor

from openjepa.masks import Masks, make_masks
from openjepa.methods.ijepa import IJEPA, build_ijepa
from openjepa.models.architecture import Architecture

SHAPE = Architecture(
    image_size=(32, 32),
    patch_size=(4, 4),
    in_channels=3,
    embed_dim=16,
    depth=1,
    num_heads=2,
    mlp_ratio=2.0,
    predictor_dim=8,
    predictor_depth=1,
    predictor_heads=2,
)


@pytest.fixture
def model() -> IJEPA:
    return build_ijepa(SHAPE, seed=1)


def batch(num_contexts: int = 1) -> tuple[Tensor, Masks]:
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    sampler = make_masks("multiblock", grid=(8, 8), num_contexts=num_contexts)
    return images, sampler(seed=0, step=0, epochs=np.zeros(4, np.int64), samples=np.arange(4))


def test_the_target_encoder_starts_as_a_copy_and_gets_no_gradient(model: IJEPA) -> None:
    for ours, theirs in zip(
        model.context_encoder.parameters(), model.target_encoder.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)
        assert not theirs.requires_grad
    out = model(*batch())
    assert not out.targets.requires_grad
    out.loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.context_encoder.parameters())


def test_a_snapshot_k_steps_old_weighs_as_it_should(model: IJEPA) -> None:
    """After K updates the snapshot of k updates ago weighs (1−m)·mᵏ, the first weights m^K."""
    momentum, steps = 0.9, 7
    start = model.target_encoder.norm.bias.clone()
    snapshots = []
    for step in range(steps):
        with torch.no_grad():
            model.context_encoder.norm.bias.copy_(
                torch.randn(16, generator=torch.Generator().manual_seed(step))
            )
        snapshots.append(model.context_encoder.norm.bias.detach().clone())
        model.update_target(momentum)
    expected = momentum**steps * start
    for age, snapshot in enumerate(reversed(snapshots)):
        expected = expected + (1 - momentum) * momentum**age * snapshot
    torch.testing.assert_close(model.target_encoder.norm.bias, expected)


def test_an_impossible_momentum_is_refused(model: IJEPA) -> None:
    with pytest.raises(ValueError, match=r"1\.5"):
        model.update_target(1.5)


def test_several_contexts_share_one_target_pass(model: IJEPA) -> None:
    images, masks = batch(num_contexts=3)
    calls = []
    model.target_encoder.register_forward_hook(lambda *_: calls.append(1))
    out = model(images, masks)
    assert len(calls) == 1
    assert out.predictions.shape == (4, 3, *masks.target.shape[1:], 16)
    alone = [model(images, Masks(masks.context[:, c : c + 1], masks.target)) for c in range(3)]
    torch.testing.assert_close(out.loss, torch.stack([one.loss for one in alone]).mean())


def test_the_loss_is_the_mean_over_all_elements(model: IJEPA) -> None:
    images, masks = batch()
    model.loss = "mse"
    out = model(images, masks)
    torch.testing.assert_close(out.loss, (out.predictions[:, 0] - out.targets).square().mean())
    model.loss = "smooth_l1"
    difference = (out.predictions[:, 0] - out.targets).abs()
    smooth = torch.where(difference < 1, 0.5 * difference.square(), difference - 0.5).mean()
    torch.testing.assert_close(model(images, masks).loss, smooth)


def test_targets_are_cut_from_the_output_of_whole_images(model: IJEPA) -> None:
    images, masks = batch()
    targets = model(images, masks).targets
    full = model.encode_targets(images)
    torch.testing.assert_close(targets[2, 1], full[2, masks.target[2, 1]])
    torch.testing.assert_close(full.mean(dim=-1), torch.zeros(4, 64), rtol=0, atol=1e-5)
    model.target_norm = "centred"
    assert model.encode_targets(images).mean(dim=0).abs().mean() < 0.5 * full.mean(dim=0).abs().mean()
    model.target_norm = "none"
    raw = model.encode_targets(images)
    torch.testing.assert_close(raw, model.target_encoder(images))
    model.target_norm = "double_centred"
    double = model.encode_targets(images)
    # What is added to a position of all images, or to all patches of one, is taken away again.
    model.raw_targets = lambda _: raw + torch.randn(64)[:, None] + torch.randn(4, 1, 1)  # type: ignore[method-assign]
    torch.testing.assert_close(model.encode_targets(images), double, rtol=0, atol=1e-4)


def test_weights_follow_from_the_seed_and_leave_the_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = (build_ijepa(SHAPE, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["predictor.mask_token"], other["predictor.mask_token"])


def test_a_teacher_sets_the_targets_and_is_held_still(model: IJEPA) -> None:
    images, masks = batch()
    model.renew_teacher()
    before = model.encode_targets(images)
    with torch.no_grad():
        model.context_encoder.norm.bias.add_(torch.arange(16.0))
    model.update_target(0.5)
    assert not torch.equal(
        model.target_encoder.norm.bias, build_ijepa(SHAPE, seed=1).target_encoder.norm.bias
    )
    torch.testing.assert_close(model.encode_targets(images), before)
    model(images, masks).loss.backward()
    assert model.teacher is not None
    assert all(p.grad is None for p in model.teacher.parameters())
