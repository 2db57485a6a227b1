"""Multi-block masks as the paper describes them (section 3, appendix C), with a context of fixed size."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from openjepa.errors import UserError
from openjepa.masks.blocks import (
    Bools,
    Floats,
    Ints,
    Masks,
    Range,
    block_indices,
    block_shapes,
    check,
    cover,
    indices_of,
    smallest,
)
from openjepa.rng import uniform

_LEVELS = 16  # values that scale and aspect each take, evenly spaced, so that all sizes are known beforehand
_MAX_TRIES = 16  # positions that an image draws before its targets are moved together
_FIRST_DRAW_RATE = (
    0.91  # how often the first draw leaves the automatic Nc: 0.9, and 0.01 for the estimate's error
)


@dataclass(frozen=True)
class MultiBlock:
    """Four target blocks, and one context block less every target patch, cut to exactly Nc patches.

    An image whose first draw leaves fewer than Nc context patches is drawn again, 16 times at most;
    then its targets are moved onto the first one, one by one, until enough are left. A setting for
    which even that could fail is refused, so no draw can fail or loop. What is left over is trimmed.

    Lengths are fixed within a step. Nc is the same at every step; Nt takes at most `max_target_sizes`
    values in a run (one on 7x7 and 8x8, three on 14x14 and 16x16, four above), which is how often a
    model for fixed shapes is compiled.
    """

    grid: tuple[int, int]
    """Patches (down, across)."""
    num_targets: int = 4
    """M, target blocks an image. Paper: 4."""
    target_scale: Range = (0.15, 0.2)
    """Share of the patches that a target block covers, (0, 1]. Paper: (0.15, 0.2)."""
    target_aspect: Range = (0.75, 1.5)
    """Height over width of a target block, in patches. Paper: (0.75, 1.5)."""
    num_contexts: int = 1
    """C, context blocks an image; all avoid the same targets. Paper: 1."""
    context_scale: Range = (0.85, 1.0)
    """Share of the patches in the context block before the targets are taken away, (0, 1]; its aspect
    is the grid's, 1 on a square. Paper: (0.85, 1.0)."""
    context_fraction: float | None = None
    """Nc over all patches, (0, 1]. None: the most that nine first draws in ten leave, found by a quick
    simulation with a fixed seed: 0.31 on 7x7 and 8x8, 0.35 on 14x14, 16x16 and 32x32."""
    trim: Literal["random", "contiguous"] = "random"
    """Which patches stay when there are more than Nc: any, or the ones nearest to a random point."""
    max_target_sizes: int = 4
    """Most values that Nt takes in a run, at least 1."""

    def __post_init__(self) -> None:
        check(
            self.grid,
            num_targets=self.num_targets,
            target_scale=self.target_scale,
            target_aspect=self.target_aspect,
            num_contexts=self.num_contexts,
            context_scale=self.context_scale,
            max_target_sizes=self.max_target_sizes,
        )
        if self.trim not in ("random", "contiguous"):
            raise UserError(f"masks.trim={self.trim!r} is unknown: use 'random' or 'contiguous'")
        if self.context_fraction is not None and not 0 < self.context_fraction <= 1:
            raise UserError(f"masks.context_fraction={self.context_fraction} must lie in (0, 1]")
        num_patches = self.grid[0] * self.grid[1]
        where = f"on a {self.grid[0]}x{self.grid[1]} grid"
        # What is left when all targets lie on one another, inside the context block.
        most = int(self._context_table.prod(-1).min() - self._target_table.prod(-1).max())
        if most < 1:
            raise UserError(
                f"masks.target_scale={self.target_scale} and masks.context_scale={self.context_scale} leave "
                f"no context {where}: keep the largest target block smaller than the smallest context block"
            )
        if not 1 <= self.context_patches <= most:
            asked = "auto" if self.context_fraction is None else self.context_fraction
            raise UserError(
                f"masks.context_fraction={asked} means {self.context_patches} context patches {where} with "
                f"{self.num_targets} targets of scale {self.target_scale}: set it within "
                f"[{1 / num_patches:.4f}, {most / num_patches:.4f}] (1 to {most} of {num_patches} patches), "
                "or lower masks.num_targets or masks.target_scale"
            )

    @cached_property
    def context_patches(self) -> int:
        """Nc, the same at every step."""
        if self.context_fraction is not None:
            return round(self.context_fraction * self.grid[0] * self.grid[1])
        num_images = max(512, min(4096, 2**21 // (self.grid[0] * self.grid[1])))  # a few milliseconds
        left = np.sort(self._first_draws(num_images=num_images, seed=0))
        return int(left[int(num_images * (1 - _FIRST_DRAW_RATE))])

    @cached_property
    def target_shapes(self) -> tuple[tuple[int, int], ...]:
        """The (height, width) that target blocks take over a run, in patches."""
        return tuple((int(h), int(w)) for h, w in np.unique(self._target_table.reshape(-1, 2), axis=0))

    def first_draw_rate(self, *, num_images: int = 4096, seed: int = 1) -> float:
        """Share of images, in [0, 1], whose first draw of positions leaves at least Nc context patches."""
        return float(np.mean(self._first_draws(num_images=num_images, seed=seed) >= self.context_patches))

    def __call__(self, *, seed: int, step: int, epochs: Ints, samples: Ints) -> Masks:
        """See `MaskSampler`."""
        target, context = self._sizes(seed, np.array([step]))
        corners = self._corners(seed, epochs, samples, 0, target, context)
        visible = self._visible(corners, target, context)
        for attempt in range(1, _MAX_TRIES + self.num_targets - 1):
            short = np.flatnonzero((visible.sum(-1) < self.context_patches).any(-1))
            if not short.size:
                break
            if attempt < _MAX_TRIES:
                corners[short] = self._corners(seed, epochs[short], samples[short], attempt, target, context)
            else:
                corners[short, attempt - _MAX_TRIES + 1] = corners[short, 0]
            visible[short] = self._visible(corners[short], target, context)
        order = self._trim_order(seed, epochs, samples)
        kept = smallest(order, self.context_patches, among=visible)
        targets = block_indices(corners[:, : self.num_targets], target[0, 0], self.grid)
        return Masks.of(indices_of(kept), targets)

    def _sizes(self, seed: int, steps: Ints) -> tuple[Ints, Ints]:
        """Shapes of the target and of the context blocks at each of S steps, (S, 1, 2) each."""
        level = (uniform(seed, "mask sizes", steps, num=3) * _LEVELS).astype(np.int64)
        return self._target_table[level[:, :1], level[:, 1:2]], self._context_table[level[:, 2:]]

    def _corners(
        self, seed: int, epochs: Ints, samples: Ints, attempt: int, target: Ints, context: Ints
    ) -> Ints:
        """Tops and lefts (B, M + C, 2) of all blocks, uniform over where the whole block fits."""
        num_blocks = self.num_targets + self.num_contexts
        chance = uniform(seed, "mask positions", epochs, samples, attempt, num=2 * num_blocks)
        room = np.repeat(
            np.array(self.grid) + 1 - np.concatenate([target, context], axis=1),
            [self.num_targets, self.num_contexts],
            axis=1,
        )  # (B or 1, M + C, 2)
        corners: Ints = (chance.reshape(-1, num_blocks, 2) * room).astype(np.int64)
        return corners

    def _visible(self, corners: Ints, target: Ints, context: Ints) -> Bools:
        """The patches (B, C, N) of each context block that no target covers."""
        covered = cover(corners[:, : self.num_targets], target, self.grid)
        blocks = range(self.num_targets, corners.shape[1])
        return np.stack([cover(corners[:, i : i + 1], context, self.grid) & ~covered for i in blocks], axis=1)

    def _trim_order(self, seed: int, epochs: Ints, samples: Ints) -> Floats:
        """Which patches (B, C, N) to keep first: a number in [0, 1) for each."""
        (height, width), shape = self.grid, (len(samples), self.num_contexts)
        if self.trim == "random":
            order = uniform(seed, "mask trim", epochs, samples, num=self.num_contexts * height * width)
            return order.reshape(*shape, height * width)
        point = uniform(seed, "mask trim", epochs, samples, num=2 * self.num_contexts).reshape(*shape, 2, 1)
        down = np.arange(height) + 0.5 - height * point[..., 0, :]
        across = np.arange(width) + 0.5 - width * point[..., 1, :]
        distance = np.square(down)[..., :, None] + np.square(across)[..., None, :]
        return distance.reshape(*shape, height * width) / (height**2 + width**2)

    def _first_draws(self, *, num_images: int, seed: int) -> Ints:
        """Patches (num_images,) left to the smallest context of an image; each image is at its own step."""
        images = np.arange(num_images)
        target, context = self._sizes(seed, images)
        corners = self._corners(seed, np.zeros_like(images), images, 0, target, context)
        left: Ints = self._visible(corners, target, context).sum(-1).min(-1)
        return left

    @cached_property
    def _target_table(self) -> Ints:
        """Shape (16, 16, 2) at each level of scale and of aspect: the nearest of the allowed ones."""
        shapes = block_shapes(self.grid, self.target_scale, self.target_aspect)
        shapes = _widest(shapes, self.target_scale, self.grid, self.max_target_sizes)
        area = _levels(self.target_scale)[:, None] * self.grid[0] * self.grid[1]
        aspect = _levels(self.target_aspect)
        wanted = np.stack([np.sqrt(area * aspect), np.sqrt(area / aspect)], axis=-1)
        distance = np.square(np.log(wanted)[:, :, None] - np.log(shapes)).sum(-1)
        nearest: Ints = shapes[distance.argmin(-1)]
        return nearest

    @cached_property
    def _context_table(self) -> Ints:
        """Shape (16, 2) at each level of scale; the width makes up for the rounding of the height."""
        area = _levels(self.context_scale) * self.grid[0] * self.grid[1]
        height = np.clip(np.rint(np.sqrt(area * self.grid[0] / self.grid[1])), 1, self.grid[0])
        width = np.clip(np.rint(area / height), 1, self.grid[1])
        return np.stack([height, width], axis=-1).astype(np.int64)


def _levels(bounds: Range) -> Floats:
    """The middles of 16 equal parts of a range."""
    return bounds[0] + (bounds[1] - bounds[0]) * (np.arange(_LEVELS) + 0.5) / _LEVELS


def _widest(shapes: Ints, scale: Range, grid: tuple[int, int], num_sizes: int) -> Ints:
    """Thin shapes (K, 2) to `num_sizes` areas.

    Each equal part of the scale range keeps the area whose shapes span the widest range of aspects,
    so that fewer lengths do not mean that all blocks become squares.
    """
    area = shapes.prod(-1)
    if len(np.unique(area)) <= num_sizes:
        return shapes
    share = (area / (grid[0] * grid[1]) - scale[0]) / (scale[1] - scale[0])
    part = np.clip(np.floor(share * num_sizes), 0, num_sizes - 1)
    aspect = np.log(shapes[:, 0] / shapes[:, 1])
    spread = np.array([np.ptp(aspect[area == one]) for one in area])
    kept = [area[part == one][spread[part == one].argmax()] for one in np.unique(part)]
    return shapes[np.isin(area, kept)]
