"""Targets of a frozen teacher used again: each crop serves several steps, with other masks each time.

A frozen teacher says the same of a crop whenever it is asked, and on slow machines asking it is most of a step. So a
run goes over its batches in blocks: a block's batches once with new targets, then again with those kept, until each
was seen `objective.target_reuse` times. A step is still a function of its number:

    step = (block · reuse + turn) · size + place      its crops: batch number block · size + place
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from openjepa.data.dataset import Batch
from openjepa.data.loader import Loader
from openjepa.methods import Targets

_MOST_BATCHES = 16
_MOST_BYTES = 256 * 2**20


class Crops(NamedTuple):
    """What one step sees."""

    batch: Batch
    """Images with their samples and epochs."""
    targets: Targets | None
    """Their targets, float32; None where the step asks for them itself."""
    turn: int
    """How often these crops were seen before."""


class TargetBuffer:
    """The crops of each step of a run, with their targets where these are used again.

    Args:
        loader: The run's batches.
        ask: What the teacher says of a batch, on the loader's device; None where the steps ask themselves, and each
            crop serves one.
        reuse: How many steps each crop serves.
        row_bytes: Bytes of an image and its targets, in half precision: at most 256 MiB are kept.
    """

    def __init__(
        self, loader: Loader, ask: Callable[[Batch], Targets] | None, *, reuse: int, row_bytes: int
    ) -> None:
        self._loader, self._ask, self._reuse = loader, ask, reuse
        images = max(1, loader.batch_size // loader.world_size)
        self.size = max(1, min(_MOST_BATCHES, _MOST_BYTES // (row_bytes * images))) if reuse > 1 else 1
        self._targets: dict[int, Targets] = {}

    def forget(self) -> None:
        """Ask again: the teacher was renewed."""
        self._targets.clear()

    def iterate(self, step: int, num_steps: int) -> Iterator[Crops]:
        """The crops of so many steps from a step on."""
        if self._ask is None:
            for batch in self._loader.iterate(step, num_steps):
                yield Crops(batch, None, 0)
            return
        block, done = divmod(step, self.size * self._reuse)
        end = step + num_steps
        fresh = self._loader.iterate(block * self.size, -(-end // self._reuse) + self.size)
        while step < end:
            kept: list[Batch] = []
            self.forget()
            for index in range(self.size * self._reuse):
                turn, place = divmod(index, self.size)
                if turn == 0:
                    kept.append(next(fresh))
                if index < done:
                    continue  # seen before the run was resumed
                if place not in self._targets:
                    self._targets[place] = self._ask(kept[place]).to(torch.float16)
                yield Crops(kept[place], self._targets[place].to(torch.float32), turn)
                step += 1
                if step == end:
                    return
            done = 0
