"""Masks: what every sampler promises, what multi-block adds, and the authors' sampler in distribution."""

import json
import pickle
import time
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from openjepa.errors import UserError
from openjepa.masks import Block, Masks, MaskSampler, MultiBlock, Reference, make_masks

GOLDEN = Path(__file__).parent / "golden"
GRIDS = [(5, 5), (6, 6), (7, 7), (8, 8), (7, 14), (14, 14), (16, 16), (32, 32)]
FIXED = ["multiblock", "rasterized", "block", "random"]  # samplers whose lengths a batch does not change


def draw(sampler: MaskSampler, *, num: int = 64, step: int = 0, seed: int = 0, epoch: int = 0) -> Masks:
    return sampler(seed=seed, step=step, epochs=np.full(num, epoch), samples=np.arange(num))


def counts(index: torch.Tensor, num_patches: int) -> NDArray[np.int64]:
    """How often (N,) each patch stands in these indices."""
    return np.bincount(index.numpy().ravel(), minlength=num_patches)


def check_masks(masks: Masks, grid: tuple[int, int], *, disjoint: bool = True) -> None:
    num_patches = grid[0] * grid[1]
    for index in (masks.context, masks.target):
        assert index.dtype == torch.int64
        assert index.ndim == 3
        assert index.shape[-1] >= 1
        assert index.min() >= 0
        assert index.max() < num_patches
        assert (index.diff(dim=-1) > 0).all()  # ascending, hence distinct
    if disjoint:
        for context, target in zip(masks.context.tolist(), masks.target.tolist(), strict=True):
            assert not {*chain(*context)} & {*chain(*target)}


# ------------------------------------------------------------------------------- every sampler


@pytest.mark.parametrize("grid", [(2, 3), (5, 5), (7, 7), (8, 8), (7, 10), (14, 14)])
@pytest.mark.parametrize("name", FIXED)
def test_masks_are_disjoint_sorted_and_of_the_promised_length(name: str, grid: tuple[int, int]) -> None:
    options: dict[str, Any] = {"target_scale": (0.15, 0.4)} if name == "multiblock" else {}
    sampler = make_masks(name, grid=grid, **options)
    lengths = set()
    for step in range(8):
        masks = draw(sampler, step=step)
        check_masks(masks, grid)
        lengths.add(masks.context.shape[2])
    assert lengths == {sampler.context_patches}


@pytest.mark.parametrize("name", FIXED)
def test_an_image_has_the_same_masks_in_any_batch(name: str) -> None:
    sampler = make_masks(name, grid=(8, 8))
    whole = draw(sampler, num=64, step=3, seed=5, epoch=2)
    some = np.array([40, 7, 63])
    part = sampler(seed=5, step=3, epochs=np.full(3, 2), samples=some)
    assert torch.equal(part.context, whole.context[some])
    assert torch.equal(part.target, whole.target[some])


@pytest.mark.parametrize("name", [*FIXED, "reference"])
def test_masks_are_a_function_of_seed_step_epoch_and_sample(name: str) -> None:
    sampler = make_masks(name, grid=(14, 14))
    first = draw(sampler)
    np.random.default_rng().random()
    torch.rand(1)
    again = draw(pickle.loads(pickle.dumps(make_masks(name, grid=(14, 14)))))  # as a spawned worker gets it
    assert torch.equal(first.context, again.context)
    assert torch.equal(first.target, again.target)
    for other in (draw(sampler, seed=1), draw(sampler, epoch=1)):
        assert other.context.shape != first.context.shape or not torch.equal(other.context, first.context)


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("grid", [(8, 8), (14, 14), (6, 10)])
def test_every_patch_is_seen_and_predicted(name: str, grid: tuple[int, int]) -> None:
    sampler = make_masks(name, grid=grid)
    seen, predicted = np.zeros((2, grid[0] * grid[1]), dtype=np.int64)
    for step in range(16):
        masks = draw(sampler, num=256, step=step, epoch=step)
        seen += counts(masks.context, seen.size)
        predicted += counts(masks.target, seen.size)
    assert predicted.min() > 0
    assert seen.min() > 0 or name == "block"  # a block of 60 % covers the middle wherever it lies


def test_masks_move_and_can_be_given_by_position() -> None:
    context, target = torch.zeros(2, 1, 3, dtype=torch.int64), torch.ones(2, 4, 5, dtype=torch.int64)
    moved = Masks(context, target).to("meta")
    assert moved.context.device.type == moved.target.device.type == "meta"


@pytest.mark.parametrize(
    ("name", "options", "hint"),
    [
        ("multi-block", {}, "did you mean 'multiblock'"),
        ("nonsense", {}, "multiblock, reference, rasterized, block, random"),
        ("multiblock", {"num_target": 4}, "did you mean 'num_targets'"),
        ("rasterized", {"target_scale": 0.5}, "unknown setting of masks.name=rasterized: 'target_scale'"),
        ("multiblock", {"num_targets": 1.5}, "masks.num_targets=1.5: Input should be a valid integer"),
        ("multiblock", {"target_scale": 0.2}, "masks.target_scale=0.2: Input should be a valid tuple"),
        ("multiblock", {"context_fraction": "half"}, "masks.context_fraction='half': .*number"),
    ],
)
def test_unknown_names_and_settings_and_wrong_types_are_refused(
    name: str, options: dict[str, Any], hint: str
) -> None:
    with pytest.raises(UserError, match=hint):
        make_masks(name, grid=(8, 8), **options)


# --------------------------------------------------------------------------------- multi-block


def test_settings_may_come_from_yaml() -> None:
    sampler = make_masks("multiblock", grid=(8, 8), target_scale=[0.15, 0.2], context_fraction="2.5e-1")
    assert sampler == MultiBlock((8, 8), context_fraction=0.25)


@settings(max_examples=150)
@given(
    grid=st.tuples(st.integers(2, 12), st.integers(2, 12)),
    num_targets=st.integers(1, 6),
    target_scale=st.tuples(st.floats(0.02, 0.25), st.floats(0.25, 0.5)),
    target_aspect=st.tuples(st.floats(0.3, 1.0), st.floats(1.0, 3.0)),
    num_contexts=st.integers(1, 3),
    context_scale=st.tuples(st.floats(0.5, 0.8), st.floats(0.8, 1.0)),
    context_fraction=st.none() | st.floats(0.01, 0.6),
    trim=st.sampled_from(["random", "contiguous"]),
    max_target_sizes=st.integers(1, 6),
    step=st.integers(0, 10**9),
)
def test_multiblock_keeps_its_promises_or_refuses(grid: tuple[int, int], step: int, **options: Any) -> None:
    try:
        sampler = MultiBlock(grid, **options)
    except UserError:
        event("refused")
        return
    event("drawn")
    check_promises(sampler, step)


@pytest.mark.parametrize("context_fraction", [28 / 64, 36 / 64, 44 / 64])
@pytest.mark.parametrize("num_contexts", [1, 2])
def test_targets_are_moved_together_when_the_context_is_large(
    context_fraction: float, num_contexts: int
) -> None:
    sampler = MultiBlock((8, 8), context_fraction=context_fraction, num_contexts=num_contexts)
    for step in range(8):
        check_promises(sampler, step)
    if context_fraction == 44 / 64:  # the most that is feasible
        assert sampler.first_draw_rate() < 0.01


def check_promises(sampler: MultiBlock, step: int) -> None:
    grid, target_scale = sampler.grid, sampler.target_scale
    masks = draw(sampler, num=32, step=step)
    check_masks(masks, grid)
    assert masks.context.shape == (32, sampler.num_contexts, sampler.context_patches)
    assert masks.target.shape[:2] == (32, sampler.num_targets)
    share = masks.target.shape[2] / (grid[0] * grid[1])
    assert target_scale[0] - 1e-6 <= share <= target_scale[1] + 1e-6
    assert len({height * width for height, width in sampler.target_shapes}) <= sampler.max_target_sizes
    if sampler.context_fraction is not None:
        assert sampler.context_patches == round(sampler.context_fraction * grid[0] * grid[1])


@pytest.mark.parametrize("grid", GRIDS)
def test_first_draw_meets_the_default_context_nine_times_in_ten(grid: tuple[int, int]) -> None:
    sampler = MultiBlock(grid)
    assert sampler.first_draw_rate() >= 0.9
    assert sampler.context_patches / (grid[0] * grid[1]) >= 0.3
    few = max(2, sampler.context_patches // 20)
    more = MultiBlock(grid, context_fraction=(sampler.context_patches + few) / (grid[0] * grid[1]))
    assert more.first_draw_rate() < 0.9  # no more than needed was given away


def test_context_size_and_target_sizes_over_a_run() -> None:
    for grid, areas in [((8, 8), {12}), ((14, 14), {30, 35, 36}), ((32, 32), {154, 168, 192, 195})]:
        sampler = MultiBlock(grid)
        drawn = [draw(sampler, num=2, step=step).target for step in range(100)]
        assert {target.shape[2] for target in drawn} == areas
        top_left, bottom_right = (torch.stack([target[0, 0, end] for target in drawn]) for end in (0, -1))
        height = bottom_right // grid[1] - top_left // grid[1] + 1
        width = bottom_right % grid[1] - top_left % grid[1] + 1
        drawn_shapes = set(zip(height.tolist(), width.tolist(), strict=True))
        assert drawn_shapes == set(sampler.target_shapes)
        assert all(0.75 <= height / width <= 1.5 for height, width in drawn_shapes)


def test_scale_and_aspect_are_independent() -> None:
    sampler = MultiBlock((32, 32), max_target_sizes=100)
    shape, _ = sampler._sizes(0, np.arange(20_000))
    scale, aspect = shape.prod(-1)[:, 0] / 32**2, shape[:, 0, 0] / shape[:, 0, 1]
    assert scale.mean() == pytest.approx(0.175, abs=0.002)
    assert aspect.mean() == pytest.approx(1.125, abs=0.03)
    assert abs(np.corrcoef(scale, aspect)[0, 1]) < 0.1  # the authors' sampler: 1 but for rounding


def test_context_blocks_are_of_the_scale_asked_for() -> None:
    for grid in GRIDS:
        _, shape = MultiBlock(grid)._sizes(0, np.arange(5000))
        scale = shape.prod(-1) / (grid[0] * grid[1])
        assert scale.mean() == pytest.approx(0.925, abs=0.03)
        assert scale.max() <= 1
        skew = shape[..., 0] / grid[0] - shape[..., 1] / grid[1]
        assert np.abs(skew).max() <= 1 / min(grid) + 1e-9  # the grid's aspect, to within one patch


def test_each_context_block_is_trimmed_by_itself() -> None:
    masks = draw(MultiBlock((8, 8), num_contexts=2))
    check_masks(masks, (8, 8))
    assert not torch.equal(masks.context[:, 0], masks.context[:, 1])


def test_contiguous_trim_keeps_a_compact_region() -> None:
    def mean_distance(trim: Any) -> float:
        index = draw(MultiBlock((14, 14), context_fraction=0.2, trim=trim), num=256).context[:, 0]
        place = torch.stack([index // 14, index % 14], -1).double()
        return float(torch.cdist(place, place).mean())

    assert mean_distance("contiguous") < 0.7 * mean_distance("random")


@pytest.mark.parametrize("trim", ["random", "contiguous"])
def test_targets_do_not_depend_on_the_trim(trim: Any) -> None:
    assert torch.equal(draw(MultiBlock((8, 8), trim=trim)).target, draw(MultiBlock((8, 8))).target)


@pytest.mark.parametrize(
    ("grid", "options", "said"),
    [
        ((4, 4), {}, r"4x4 grid has a scale in \[0.15, 0.2\].*nearest, 2x2, has 0.2500 and 1.0000"),
        ((2, 32), {}, "aspect in"),
        ((1, 1), {}, "1x1 grid has too few patches"),
        ((8, 8), {"context_fraction": 0.9}, r"0.9 means 58 context.*\[0.0156, 0.6875\] \(1 to 44 of 64"),
        ((8, 8), {"context_fraction": 0.001}, r"\[0.0156, 0.6875\]"),
        ((8, 8), {"context_fraction": 1.5}, r"context_fraction=1.5 must lie in \(0, 1\]"),
        ((8, 8), {"context_fraction": float("nan")}, "context_fraction=nan"),
        ((8, 8), {"num_targets": 40}, "auto means 0 context patches.*lower masks.num_targets"),
        ((8, 8), {"target_scale": (0.9, 1.0)}, "leave no context on a 8x8 grid"),
        ((8, 8), {"target_scale": (0.2, 0.15)}, r"target_scale=\(0.2, 0.15\) must be \(low, high\)"),
        ((8, 8), {"context_scale": (0.85, 1.1)}, "low <= high <= 1"),
        ((8, 8), {"target_aspect": (0.0, 1.0)}, "0 < low"),
        ((8, 8), {"target_aspect": (1.0, float("inf"))}, "high <= 100"),
        ((8, 8), {"num_targets": 0}, "num_targets=0 must be at least 1"),
        ((8, 8), {"trim": "none"}, "masks.trim='none'.*'random' or 'contiguous'"),
    ],
)
def test_infeasible_multiblock_settings_are_refused(
    grid: tuple[int, int], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        make_masks("multiblock", grid=grid, **options)


def test_a_refusal_names_settings_that_work() -> None:
    sampler = make_masks("multiblock", grid=(4, 4), target_scale=(0.15, 0.25))
    check_masks(draw(sampler), (4, 4))


def test_masks_of_256_images_take_under_two_milliseconds() -> None:
    sampler = MultiBlock((8, 8))
    taken = []
    for step in range(100):
        start = time.perf_counter()
        draw(sampler, num=256, step=step)
        taken.append(time.perf_counter() - start)
    assert min(taken) < 2e-3  # the best of many, since a busy machine only ever adds time


# ----------------------------------------------------------------------------------- reference


@pytest.mark.parametrize("size", [14, 16])
def test_reference_matches_the_authors_sampler_in_distribution(size: int) -> None:
    golden = json.loads((GOLDEN / f"reference-masks-{size}x{size}.json").read_text())
    batch, num_golden, num_ours = golden["batch"], golden["batches"], 600
    sampler = Reference((size, size), min_keep=golden["min_keep"])
    kept, area, shapes, context, target = [], [], [], [], []
    for step in range(num_ours):
        samples = np.arange(batch) + step * batch
        masks = sampler(seed=0, step=step, epochs=np.zeros_like(samples), samples=samples)
        kept.append(masks.context.shape[2])
        area.append(masks.target.shape[2])
        width = int((masks.target[0, 0] // size == masks.target[0, 0, 0] // size).sum())
        shapes.append(f"{area[-1] // width}x{width}")
        context.append(counts(masks.context, size**2) / batch)
        target.append(counts(masks.target, size**2) / batch / sampler.num_targets)

    def agree(ours: Any, theirs: Any, *, sigmas: float) -> None:
        """Means within so many standard errors, both of which our batches tell."""
        ours = np.asarray(ours, dtype=float)
        error = ours.std(0) * np.sqrt(1 / num_ours + 1 / num_golden)
        assert (np.abs(ours.mean(0) - theirs) <= sigmas * error + 1e-4).all()  # 1e-4: the golden's rounding

    agree(kept, golden["context_patches_kept"]["mean"], sigmas=4)
    assert np.std(kept) == pytest.approx(golden["context_patches_kept"]["std"], rel=0.2)
    agree(area, golden["target_patches"]["mean"], sigmas=4)
    agree(context, np.ravel(golden["context_frequency_by_patch"]), sigmas=5)
    agree(target, np.ravel(golden["target_frequency_by_patch"]), sigmas=5)
    for shape in golden["target_shapes_h_x_w"].keys() | set(shapes):
        agree(
            [one == shape for one in shapes],
            golden["target_shapes_h_x_w"].get(shape, 0) / num_golden,
            sigmas=4,
        )


def test_reference_never_uses_the_last_row_or_column() -> None:
    used = np.zeros(14 * 14, dtype=np.int64)
    for step in range(20):
        masks = draw(Reference((14, 14)), step=step)
        check_masks(masks, (14, 14))
        used += counts(masks.context, 14 * 14) + counts(masks.target, 14 * 14)
    used_grid = used.reshape(14, 14)
    assert used_grid[-1].sum() == used_grid[:, -1].sum() == 0
    assert used_grid[:-1, :-1].min() > 0


def test_reference_gives_up_the_last_targets_when_they_leave_too_little() -> None:
    # The context block is always the 7x7 patches at the top left, so what it must hold can be listed.
    sampler = Reference((8, 8), num_targets=10, target_scale=(0.25, 0.3), min_keep=12)
    block = [row * 8 + column for row in range(7) for column in range(7)]
    masks = draw(sampler, num=64)
    expected, given_up = [], []
    for target in masks.target.tolist():
        for num_avoided in range(10, -1, -1):
            left = [patch for patch in block if patch not in {*chain(*target[:num_avoided])}]
            if len(left) > 12:
                break
        expected.append(left)
        given_up.append(10 - num_avoided)
    shortest = min(map(len, expected))
    assert masks.context[:, 0].tolist() == [left[:shortest] for left in expected]
    assert max(given_up) > 3


@pytest.mark.parametrize(("grid", "largest"), [((8, 8), 8), ((7, 7), 5), ((6, 6), 3)])
def test_reference_refuses_what_would_hang(grid: tuple[int, int], largest: int) -> None:
    with pytest.raises(UserError, match=rf"min_keep=10 is impossible.*within \[0, {largest}\]"):
        Reference(grid)
    check_masks(draw(Reference(grid, min_keep=largest)), grid, disjoint=False)
    with pytest.raises(UserError):
        Reference(grid, min_keep=largest + 1)


# ----------------------------------------------------------------------------------- ablations


def test_rasterized_drops_odd_lines_from_the_targets_only() -> None:
    masks = draw(make_masks("rasterized", grid=(7, 5)))
    assert masks.context.shape == (64, 1, 4 * 3)
    assert masks.target.shape == (64, 3, 3 * 2)
    seen = counts(masks.context, 35).reshape(7, 5)
    predicted = counts(masks.target, 35).reshape(7, 5)
    assert predicted[3].sum() == predicted[:, 2].sum() == 0
    assert seen.min() > 0
    even = draw(make_masks("rasterized", grid=(8, 8)))
    both = torch.cat([even.context.flatten(1), even.target.flatten(1)], dim=1)
    assert torch.equal(both.sort(dim=1).values, torch.arange(64).expand(64, 64))


@pytest.mark.parametrize(("grid", "area"), [((7, 7), 30), ((8, 8), 36), ((14, 14), 120), ((16, 16), 154)])
def test_block_covers_sixty_percent_and_the_context_is_the_rest(grid: tuple[int, int], area: int) -> None:
    sampler = Block(grid)
    shapes = {tuple(shape) for shape in sampler.target_shapes.tolist()}
    assert {height * width for height, width in shapes} == {area}
    assert shapes == {(width, height) for height, width in shapes}  # as often tall as wide
    for step in range(4):
        masks = draw(sampler, step=step)
        assert masks.target.shape == (64, 1, area)
        both = torch.cat([masks.context, masks.target], dim=2)[:, 0]
        assert torch.equal(both.sort(dim=1).values, torch.arange(grid[0] * grid[1]).expand(64, -1))


def test_random_splits_the_patches() -> None:
    masks = draw(make_masks("random", grid=(8, 8)))
    assert masks.target.shape == (64, 1, 38)
    both = torch.cat([masks.context, masks.target], dim=2)[:, 0]
    assert torch.equal(both.sort(dim=1).values, torch.arange(64).expand(64, 64))


@pytest.mark.parametrize(
    ("name", "grid", "options"),
    [
        ("rasterized", (1, 8), {}),
        ("block", (1, 1), {}),
        ("block", (8, 8), {"target_scale": 1.0}),
        ("block", (4, 16), {}),
        ("block", (2, 64), {"target_aspect": (2.0, 3.0)}),
        ("random", (8, 8), {"target_fraction": 1.0}),
        ("random", (8, 8), {"target_fraction": 0.001}),
        ("random", (1, 1), {}),
    ],
)
def test_infeasible_ablation_settings_are_refused(
    name: str, grid: tuple[int, int], options: dict[str, Any]
) -> None:
    with pytest.raises(UserError):
        make_masks(name, grid=grid, **options)
