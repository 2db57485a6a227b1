"""The step is one graph of fixed shapes, which `torch.compile` and CUDA graphs need; compiled, it computes the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from openjepa.masks import Masks, make_masks
from openjepa.methods.ijepa import IJEPA, build_ijepa
from openjepa.models.architecture import Architecture
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
    from openjepa.models.transformer import set_attention_path

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
def test_a_compiled_run_computes_the_same(tmp_path: Path) -> None:
    """The real compiler: losses agree to rounding over ten steps."""
    import json

    import openjepa
    from make_images import jpeg

    for number in range(8):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(32, 40 + number))
    rows = []
    for flag in ("false", "true"):
        settings = [
            "data.batch_size=4",
            "model.name=vit_pico",
            "log.every_steps=1",
            f"runtime.compile={flag}",
        ]
        run = openjepa.pretrain(
            data=tmp_path,
            out=tmp_path / f"run-{flag}",
            preset="small",
            steps=10,
            set=[*settings, "log.tensorboard=false"],
        )
        rows.append([json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()])
    assert rows[0] == pytest.approx(rows[1], rel=1e-3)
