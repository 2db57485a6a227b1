"""The masks that the paper compares multi-block with (table 6): rasterized, block and random."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from openjepa.errors import UserError
from openjepa.masks.blocks import (
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


@dataclass(frozen=True)
class Rasterized:
    """One quadrant is the context, the three others are the targets: M = 3, C = 1.

    On an odd grid the middle row and column belong to the context's quadrant, whichever it is, and to
    no target, so that lengths are equal.
    """

    grid: tuple[int, int]
    """Patches (down, across), at least 2 each."""

    def __post_init__(self) -> None:
        if min(self.grid) < 2:
            raise UserError(
                f"masks.name=rasterized needs a grid of at least 2x2, got {self.grid[0]}x{self.grid[1]}"
            )

    @property
    def context_patches(self) -> int:
        """Nc, the patches of the larger half by the larger half."""
        return -(-self.grid[0] // 2) * -(-self.grid[1] // 2)

    def __call__(self, *, seed: int, step: int, epochs: Ints, samples: Ints) -> Masks:
        """See `MaskSampler`."""
        context, target = self._quadrants
        quadrant = (uniform(seed, "mask quadrant", epochs, samples, num=1)[:, 0] * 4).astype(np.int64)
        others = (quadrant[:, None] + np.arange(1, 4)) % 4
        return Masks.of(context[quadrant][:, None], target[others])

    @cached_property
    def _quadrants(self) -> tuple[Ints, Ints]:
        """Indices of each quadrant as the context (4, Nc), with the odd lines, and as a target (4, Nt)."""
        corner = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
        whole, half = np.array(self.grid), np.array(self.grid) // 2
        context, target = (
            block_indices(corner * (whole - shape), shape, self.grid) for shape in (whole - half, half)
        )
        return context, target


@dataclass(frozen=True)
class Block:
    """One target block of 60 % of the image; the context is all the rest: M = 1, C = 1.

    Lengths are the same at every step: the block's area is one that tall and wide shapes share, as near
    to the scale as the grid allows. A grid that allows none within a fifth or so is refused.
    """

    grid: tuple[int, int]
    """Patches (down, across)."""
    target_scale: float = 0.6
    """Share of the patches that the target block covers, (0, 1). Paper: 0.6."""
    target_aspect: Range = (0.75, 1.5)
    """Height over width of the target block, in patches. Paper: as multi-block's."""

    def __post_init__(self) -> None:
        check(self.grid, target_aspect=self.target_aspect)
        if not 0 < self.target_scale < 1:
            raise UserError(f"masks.target_scale={self.target_scale} must lie between 0 and 1")
        assert self.context_patches >= 1

    @property
    def context_patches(self) -> int:
        """Nc, the same at every step."""
        return self.grid[0] * self.grid[1] - int(self.target_shapes[0].prod())

    @cached_property
    def target_shapes(self) -> Ints:
        """The (K, 2) shapes, of one area, that the block takes over a run."""
        one_patch = 1 / (self.grid[0] * self.grid[1])
        high = min(1.25 * self.target_scale, 1 - one_patch)
        shapes = block_shapes(self.grid, (min(0.8 * self.target_scale, high), high), self.target_aspect)
        area = shapes.prod(-1)
        aspect = np.log(shapes[:, 0] / shapes[:, 1])
        sizes = np.unique(area)
        off_scale = np.abs(np.log(sizes * one_patch / self.target_scale))
        lopsided = np.abs([aspect[area == size].mean() for size in sizes])  # tall shapes only, or wide only
        chosen: Ints = shapes[area == sizes[np.argmin(off_scale + lopsided)]]
        return chosen

    def __call__(self, *, seed: int, step: int, epochs: Ints, samples: Ints) -> Masks:
        """See `MaskSampler`."""
        choice = int(uniform(seed, "mask sizes", step, num=1)[0, 0] * len(self.target_shapes))
        shape = self.target_shapes[choice]
        place = uniform(seed, "mask positions", epochs, samples, num=2)[:, None]
        corners = (place * (np.array(self.grid) + 1 - shape)).astype(np.int64)
        context = indices_of(~cover(corners, shape, self.grid)[:, None])
        return Masks.of(context, block_indices(corners, shape, self.grid))


@dataclass(frozen=True)
class Random:
    """Single patches drawn at random are the target, the rest is the context: M = 1, C = 1."""

    grid: tuple[int, int]
    """Patches (down, across)."""
    target_fraction: float = 0.6
    """Share of the patches to predict, (0, 1). Paper: 0.6."""

    def __post_init__(self) -> None:
        check(self.grid)
        num_patches = self.grid[0] * self.grid[1]
        if not 0 < self.target_fraction < 1 or not 1 <= self.context_patches < num_patches:
            raise UserError(
                f"masks.target_fraction={self.target_fraction} must leave a target and a context patch on a "
                f"{self.grid[0]}x{self.grid[1]} grid: "
                f"set it within [{1 / num_patches:.4f}, {1 - 1 / num_patches:.4f}]"
            )

    @property
    def context_patches(self) -> int:
        """Nc, the same at every step."""
        num_patches = self.grid[0] * self.grid[1]
        return num_patches - round(self.target_fraction * num_patches)

    def __call__(self, *, seed: int, step: int, epochs: Ints, samples: Ints) -> Masks:
        """See `MaskSampler`."""
        order = uniform(seed, "mask patches", epochs, samples, num=self.grid[0] * self.grid[1])[:, None]
        context = smallest(order, self.context_patches)
        return Masks.of(indices_of(context), indices_of(~context))
