"""Optimisers: Muon against PyTorch's and its definition, who optimises what, and state that survives a stop."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from openjepa.errors import CheckpointError
from openjepa.masks import make_masks
from openjepa.methods.ijepa import IJEPA, build_ijepa
from openjepa.models.architecture import Architecture
from openjepa.muon import Muon, orthogonal
from openjepa.optim import load_optimizer_tensors, make_optimizers, optimizer_tensors

SHAPE = Architecture((16, 16), (4, 4), 3, 16, 2, 2, 2.0, 8, 1, 2)
SHAPES = [(24, 8), (8, 24), (8, 24), (16, 16)]


def matrices(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def test_muon_is_pytorchs() -> None:
    ours, theirs = matrices(), matrices()
    reference = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    mine = Muon(ours, lr=0.02, weight_decay=0.1)
    for step in range(4):
        before = [parameter.detach().clone() for parameter in theirs]
        for one, other, gradient in zip(ours, theirs, matrices(seed=step + 1), strict=True):
            one.grad, other.grad = gradient.detach().clone(), gradient.detach().clone()
        mine.step()
        reference.step()
        for one, other, old in zip(ours, theirs, before, strict=True):
            # PyTorch's five rounds leave singular values between 0.7 and 1.2, and the least ones lower; ours are
            # between 0.8 and 1.14. So directions agree, and lengths within a fifth.
            update, expected = one.detach() - old, other.detach() - old
            assert torch.cosine_similarity(update.flatten(), expected.flatten(), dim=0) > 0.95
            assert update.norm().item() == pytest.approx(expected.norm().item(), rel=0.2)
            one.data.copy_(other)


def test_the_orthogonal_factor_is_that_of_the_singular_value_decomposition() -> None:
    generator = torch.Generator().manual_seed(0)
    for height, width, scale in ((12, 40, 1e-3), (64, 64, 1e-12), (48, 192, 1e6)):
        left, _, right = torch.linalg.svd(
            torch.randn(2, height, width, generator=generator), full_matrices=False
        )
        values = torch.linspace(0.01, 1.0, height)
        found = orthogonal(scale * (left * values) @ right)
        error = torch.linalg.matrix_norm(found - left @ right, ord=2)
        assert error.max() < 0.21
        assert torch.backends.mkldnn.matmul.fp32_precision != "bf16"
        rounded = orthogonal(scale * (left * values) @ right, dtype=torch.bfloat16)
        assert (rounded - found).norm() < 0.1 * found.norm()


def test_singular_values_become_about_one_and_zeros_stay() -> None:
    generator = torch.Generator().manual_seed(0)
    found = orthogonal(torch.randn(3, 12, 40, generator=generator) * 1e-3)
    values = torch.linalg.svdvals(found)
    assert 0.78 < values.min() < values.max() < 1.15
    assert not orthogonal(torch.zeros(1, 4, 6)).any()


@pytest.mark.parametrize("smallest", [1e-1, 1e-2, 1e-4, 1e-8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_direction_is_thrown_far_off_whatever_the_spectrum(smallest: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    for height, width in ((16, 16), (96, 192)):
        left, _, right = torch.linalg.svd(
            torch.randn(4, height, width, generator=generator), full_matrices=False
        )
        spectrum = torch.logspace(0, math.log10(smallest), height)
        values = torch.linalg.svdvals(orthogonal((left * spectrum) @ right, dtype=dtype))
        assert values.max() < (1.15 if dtype == torch.float32 else 2.2)
        assert (values > 0.75).sum(dim=1).min() >= (spectrum > 5e-3).sum()


def test_an_update_is_as_long_as_adams() -> None:
    (parameter,) = matrices()[:1]
    old = parameter.detach().clone()
    parameter.grad = torch.randn_like(parameter)
    Muon([parameter], lr=0.1).step()
    assert (parameter - old).square().mean().sqrt().item() == pytest.approx(0.1 * 0.2, rel=0.2)
    old = parameter.detach().clone()
    Muon([parameter], lr=0.1, ratio=2.0).step()
    assert (parameter - old).square().mean().sqrt().item() == pytest.approx(0.1 * 0.4, rel=0.2)
    with pytest.raises(ValueError, match=r"matrices, got a parameter of shape \(5,\)"):
        Muon([nn.Parameter(torch.zeros(5))])


def test_muon_takes_the_matrices_of_blocks_and_adamw_the_rest() -> None:
    model = build_ijepa(SHAPE)
    adamw, muon = make_optimizers(model, name="muon")
    names = {parameter: name for name, parameter in model.named_parameters()}
    taken = [names[one] for group in muon.param_groups for one in group["params"]]
    assert len(taken) == 3 * 4  # of three blocks, each qkv, proj and two of the MLP
    assert all("blocks." in name and name.endswith("weight") and "norm" not in name for name in taken)
    rest = [names[one] for group in adamw.param_groups for one in group["params"]]
    assert sorted(taken + rest) == sorted(name for name, p in model.named_parameters() if p.requires_grad)
    (alone,) = make_optimizers(model)
    assert sum(len(group["params"]) for group in alone.param_groups) == len(taken + rest)


def train(model: IJEPA, optimizers: list[torch.optim.Optimizer], *, steps: range) -> list[float]:
    numbers, losses = np.arange(8), []
    for step in steps:
        images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(step))
        masks = make_masks("random", grid=(4, 4))(seed=0, step=step, epochs=0 * numbers, samples=numbers)
        loss = model(images, masks).loss
        loss.backward()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 1e-2
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_a_run_goes_on_from_saved_moments_as_if_it_had_not_stopped() -> None:
    model = build_ijepa(SHAPE)
    optimizers = make_optimizers(model, name="muon")
    train(model, optimizers, steps=range(3))
    saved = copy.deepcopy(optimizer_tensors(model, optimizers))
    other = build_ijepa(SHAPE)
    other.load_state_dict(model.state_dict())
    again = make_optimizers(other, name="muon")
    load_optimizer_tensors(other, again, saved)
    assert train(other, again, steps=range(3, 6)) == train(model, optimizers, steps=range(3, 6))
    with pytest.raises(CheckpointError, match="another model or optimiser"):
        load_optimizer_tensors(other, make_optimizers(other), saved)
