"""The step is one graph of fixed shapes, which `torch.compile` and CUDA graphs need; compiled, it computes the same."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from openjepa.masks import Masks, make_masks
from openjepa.methods.ijepa import IJEPA, build_ijepa
from openjepa.models.architecture import Architecture
from openjepa.models.transformer import set_attention_path
from openjepa.train import Objective

ARCHITECTURE = Architecture((32, 32), (4, 4), 3, 32, 2, 2, 4.0, 16, 2, 2)


def model_and_batches(**settings: Any) -> tuple[IJEPA, list[tuple[Tensor, Masks]]]:
    sampler = make_masks("multiblock", grid=(8, 8))
    samples = np.arange(4)
    generator = torch.Generator().manual_seed(0)
    batches = [
        (
            torch.randn(4, 3, 32, 32, generator=generator),
            sampler(seed=0, step=k, epochs=samples, samples=samples),
        )
        for k in range(3)
    ]
    return build_ijepa(ARCHITECTURE, **settings), batches


def losses_and_gradients(objective: Objective, batches: list[tuple[Tensor, Masks]]) -> list[Tensor]:
    found = []
    for images, masks in batches:
        objective.zero_grad()
        loss = objective(images, masks.context, masks.target)
        loss.backward()
        found += [loss.detach(), *(p.grad.clone() for p in objective.parameters() if p.grad is not None)]
    return found


@pytest.mark.parametrize("path", ["fused", "matmul"])
def test_the_objective_is_captured_whole_and_once(path: str) -> None:
    model, batches = model_and_batches(target_norm="centred")
    set_attention_path(model, path)
    objective = Objective(model)
    expected = losses_and_gradients(objective, batches)
    torch._dynamo.reset()
    graphs = []

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    objective.compile(backend=count, fullgraph=True, dynamic=False)  # fails on a graph break
    found = losses_and_gradients(objective, batches)
    assert len(graphs) == 1  # other masks, the same lengths: nothing is compiled again
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.slow
def test_the_real_compiler_gives_the_same_loss_and_gradients() -> None:
    """To rounding, over one batch: Adam's first updates are signs, which turn rounding into whole steps."""
    model, batches = model_and_batches(target_norm="centred")
    set_attention_path(model, "matmul")
    objective = Objective(model)
    expected = losses_and_gradients(objective, batches[:1])
    torch._dynamo.reset()
    objective.compile(dynamic=False)
    found = losses_and_gradients(objective, batches[:1])
    assert len(expected) == len(found)
    for one, other in zip(expected, found, strict=True):
        assert (one - other).abs().max() <= 1e-3 * one.abs().max() + 1e-9
