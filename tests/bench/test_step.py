"""The step benchmark: it runs, its sides compute the same, and mistakes are told."""

from pathlib import Path

import pytest
import torch

from openjepa.bench.sides import CASES, Options, make_side, ours
from openjepa.bench.step import bench_step
from openjepa.bench.turns import peak_memory
from openjepa.errors import UserError


def test_arithmetic_of_the_cases() -> None:
    """By the formula of the design, at the numbers of tokens of the case."""
    small = CASES["small"]
    masks = small.masks(0)
    num_context, num_target = masks.context.shape[2], masks.target.shape[2]
    assert num_context == round(0.26 * 196)
    by_hand = 12 * (24 * 196 * 384**2 + 4 * 196**2 * 384) + 3 * (
        12 * (24 * num_context * 384**2 + 4 * num_context**2 * 384)
        + 4 * 6 * (24 * (num_context + num_target) * 192**2 + 4 * (num_context + num_target) ** 2 * 192)
    )
    assert small.flops(masks) == pytest.approx(by_hand)


def test_a_shared_context_starts_from_the_same_loss() -> None:
    """The same weights, and context tokens that differ only from the second block on: losses are near, not equal."""
    case = CASES["tiny"]._replace(batch=2)
    masks, images = case.masks(0), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    options = Options(None, 1, False)
    joint, shared = (ours(case, options, images, masks, shared_context=flag).step() for flag in (False, True))
    assert joint == pytest.approx(shared, rel=0.02)
    assert joint != shared


def test_a_side_answers() -> None:
    case = CASES["tiny"]._replace(batch=2)
    answers = make_side("ours", case, Options(None, 1, False))
    seconds, loss = answers["step"]()
    drawing, operators, (_, peak) = (answers[name]() for name in ("masks", "operators", "memory"))
    assert seconds > 0
    assert loss > 0
    assert drawing > 0
    assert answers["data"]() > 0
    assert operators["addmm"] > 0
    assert 0 < peak <= peak_memory()
    parts = answers["phases"]()
    assert set(parts) == {
        *("target", "context", "predictor", "backward", "optimiser", "moving average", "the rest")
    }
    assert min(parts.values()) > 0
    assert torch.Tensor.backward.__module__ == "torch._tensor"  # as it was


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--case giant: unknown; choose from tiny, small, base"):
        bench_step(cases=["giant"], say=print)
    with pytest.raises(UserError, match=r"no clone of facebookresearch/ijepa"):
        bench_step(reference=tmp_path, say=print)
