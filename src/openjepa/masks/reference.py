"""The masks that the authors' released code draws, in distribution: a reference, not a recommendation."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from openjepa.errors import UserError
from openjepa.masks.blocks import Bools, Ints, Masks, Range, block_indices, check, cover, indices_of
from openjepa.rng import uniform

_TRIES = 20  # failures after which one more target may be overlapped


@dataclass(frozen=True)
class Reference:
    """Multi-block masks with the quirks of the released code.

    - One random number sets both the scale and the aspect of the targets.
    - A block is shorter and narrower than the grid and never reaches the last row or column, so these
      are never used; a context block of the largest size always lies at the top left.
    - After 20 tries that leave `min_keep` context patches or fewer, the context may overlap the last
      target, after 20 more also the one before it, and so on.
    - Contexts are cut to the shortest of the batch in raster order: the bottom of the image is lost,
      Nc depends on the batch, and so do an image's masks.

    Settings for which the released code would never return are refused.
    """

    grid: tuple[int, int]
    """Patches (down, across), at least 2 each."""
    num_targets: int = 4
    """M, target blocks an image."""
    target_scale: Range = (0.15, 0.2)
    """Share of the patches that a target block covers, (0, 1]."""
    target_aspect: Range = (0.75, 1.5)
    """Height over width of a target block, in patches."""
    num_contexts: int = 1
    """C, context blocks an image; all avoid the same targets."""
    context_scale: Range = (0.85, 1.0)
    """Share of the patches in the context block before the targets are taken away, (0, 1]."""
    min_keep: int = 10
    """Every block has more patches than this. The released configurations: 10."""

    def __post_init__(self) -> None:
        check(
            self.grid,
            num_targets=self.num_targets,
            target_scale=self.target_scale,
            target_aspect=self.target_aspect,
            num_contexts=self.num_contexts,
            context_scale=self.context_scale,
        )
        chance = np.arange(4096) / 4096
        target = self._shape(chance, self.target_scale, self.target_aspect).prod(-1).min()
        context = self._shape(chance, self.context_scale, (1.0, 1.0)).prod(-1).min()
        least = int(min(target, context))
        if not 0 <= self.min_keep < least:
            allowed = f"set it within [0, {least - 1}]" if least else "no value is possible"
            raise UserError(
                f"masks.min_keep={self.min_keep} is impossible on a {self.grid[0]}x{self.grid[1]} grid: "
                f"blocks need more patches, and the smallest has {least} (the authors' sampler would hang); "
                f"{allowed}, or use masks.name=multiblock"
            )

    @property
    def context_patches(self) -> None:
        """Not fixed: the shortest context of the batch decides."""
        return None

    def __call__(self, *, seed: int, step: int, epochs: Ints, samples: Ints) -> Masks:
        """See `MaskSampler`; here the cut makes an image's context depend on the rest of its batch."""
        chance = uniform(seed, "reference sizes", step, num=2)[0]
        target = self._shape(chance[0], self.target_scale, self.target_aspect)
        place = uniform(seed, "reference targets", epochs, samples, num=2 * self.num_targets)
        corners = (place.reshape(-1, self.num_targets, 2) * (np.array(self.grid) - target)).astype(np.int64)

        context = self._shape(chance[1], self.context_scale, (1.0, 1.0))
        kept = np.zeros((len(samples), self.num_contexts, self.grid[0] * self.grid[1]), dtype=bool)
        for block in range(self.num_contexts):
            kept[:, block] = self._visible(seed, epochs, samples, block, corners, target, context)
        kept &= kept.cumsum(-1) <= kept.sum(-1).min()
        return Masks.of(indices_of(kept), block_indices(corners, target, self.grid))

    def _shape(self, chance: ArrayLike, scale: Range, aspect: Range) -> Ints:
        """Height and width (..., 2), in patches, from one random number in [0, 1)."""
        area = np.floor(self.grid[0] * self.grid[1] * (scale[0] + np.asarray(chance) * (scale[1] - scale[0])))
        ratio = aspect[0] + np.asarray(chance) * (aspect[1] - aspect[0])
        sides = np.rint(np.sqrt(np.stack([area * ratio, area / ratio], axis=-1)))
        shape: Ints = np.minimum(sides, np.array(self.grid) - 1).astype(np.int64)
        return shape

    def _visible(
        self, seed: int, epochs: Ints, samples: Ints, block: int, corners: Ints, target: Ints, context: Ints
    ) -> Bools:
        """The patches (B, N) of one context block, before the cut."""
        visible = np.zeros((len(samples), self.grid[0] * self.grid[1]), dtype=bool)
        short = np.arange(len(samples))
        for attempt in range(_TRIES * (self.num_targets + 1)):  # the last 20 avoid nothing, so one is enough
            place = uniform(seed, "reference context", epochs[short], samples[short], block, attempt, num=2)
            corner = (place * (np.array(self.grid) - context)).astype(np.int64)
            avoided = corners[short, : self.num_targets - attempt // _TRIES]
            visible[short] = cover(corner[:, None], context, self.grid) & ~cover(avoided, target, self.grid)
            short = short[visible[short].sum(-1) <= self.min_keep]
            if not short.size:
                break
        return visible
