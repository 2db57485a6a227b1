"""Optimisers: Muon against PyTorch's and its definition, who optimises what, and state that survives a stop."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from openjepa.errors import CheckpointError
from openjepa.masks import make_masks
from openjepa.methods.ijepa import IJEPA, build_ijepa
from openjepa.models.architecture import Architecture
from openjepa.muon import Muon, orthogonal
from openjepa.optim import load_optimizer_tensors, make_optimizers, moments_to_parameters, optimizer_tensors

SHAPE = Architecture((16, 16), (4, 4), 3, 16, 2, 2, 2.0, 8, 1, 2)
SHAPES = [(24, 8), (8, 24), (8, 24), (16, 16)]


def matrices(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def test_muon_is_pytorchs() -> None:
    ours, theirs = matrices(), matrices()
    reference = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    mine = Muon(ours, lr=0.02, weight_decay=0.1, dtype=torch.bfloat16)
    for step in range(4):
        before = [parameter.detach().clone() for parameter in theirs]
        for one, other, gradient in zip(ours, theirs, matrices(seed=step + 1), strict=True):
            one.grad, other.grad = gradient.detach().clone(), gradient.detach().clone()
        mine.step()
        reference.step()
        for one, other, old in zip(ours, theirs, before, strict=True):
            # bfloat16 keeps eight bits of every product of the iteration.
            assert (one - other).norm() < 0.02 * (step + 1) * (other - old).norm()


def test_singular_values_become_about_one_and_zeros_stay() -> None:
    generator = torch.Generator().manual_seed(0)
    found = orthogonal(torch.randn(3, 12, 40, generator=generator) * 1e-3)
    values = torch.linalg.svdvals(found)
    assert 0.65 < values.min() < values.max() < 1.25
    assert not orthogonal(torch.zeros(1, 4, 6)).any()


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


def test_moments_follow_their_parameters_to_another_device() -> None:
    """A resumed run reads them before the model is moved, to a GPU for example; "meta" stands for one here."""
    parameter = nn.Parameter(torch.empty(3, device="meta"))
    optimizer = torch.optim.AdamW([parameter])
    optimizer.state[parameter] = {
        "step": torch.ones(()),
        "exp_avg": torch.ones(3),
        "exp_avg_sq": torch.ones(3),
    }
    moments_to_parameters([optimizer])
    assert {value.device.type for value in optimizer.state[parameter].values()} == {"meta"}
