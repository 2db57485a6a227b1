"""What a frozen teacher says about whole images, of which a run asks its crops: each image is described once.

An image is described when its first crop is asked about, together with its neighbours in the order of the first
epoch: so what is said of it does not depend on what was asked before, and a run that goes on has the same to the last
bit.
"""

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from openjepa.data.loader import Loader
from openjepa.inputs import prepare
from openjepa.methods import IJEPA
from openjepa.methods.whole_image import NUM_LAYERS, describe
from openjepa.rng import permute

_TOGETHER = 32  # images described in one pass
NUM_FITTED = 2048
"""Images that whitening is fitted to: thrice the numbers that a small encoder describes one with."""


class Descriptions:
    """Whole-image targets by sample, whitened as the model does it.

    Args:
        model: With a frozen teacher and whole-image targets, on its device.
        loader: The run's images, and their order.
    """

    def __init__(self, model: IJEPA, loader: Loader) -> None:
        assert model.whole_image is not None
        self._model, self._whole, self._dataset = model, model.whole_image, loader.dataset
        num = len(loader.dataset)
        self._order = permute(np.arange(num), size=num, seed=loader.seed, epoch=0)
        self._group = np.empty(num, np.int64)
        self._group[self._order] = np.arange(num) // _TOGETHER
        self._known = np.zeros(num, bool)
        self._rows = torch.zeros(num, self._whole.basis.shape[1], dtype=torch.float16)  # NaN: cannot be read

    def fit(self, *, anew: bool = False) -> None:
        """Fit whitening to the first images, where that was not done, or ``anew``: to a new teacher.

        Where fewer than two can be read nothing tells images apart: the model is left without whole-image targets.
        """
        if anew:
            self._known[:] = False
        if self._whole.fitted and not anew:
            return
        first = range(-(-min(NUM_FITTED, len(self._known)) // _TOGETHER))
        found = [(samples, said) for samples, said in map(self._describe, first) if len(samples)]
        if sum(len(samples) for samples, _ in found) < 2:
            return
        self._whole.fit(torch.cat([said for _, said in found]))
        for samples, said in found:
            self._keep(samples, said)

    def of(self, samples: ArrayLike, crops: Tensor) -> Tensor:
        """Targets of the whole images that these crops are of.

        Args:
            samples: (B,) of the run's images.
            crops: The crops' own, (B, K), for images that cannot be read.

        Returns:
            (B, K) float32, on the device of ``crops``.
        """
        samples = np.asarray(samples)
        for group in np.unique(self._group[samples[~self._known[samples]]]):
            self._known[self._members(group)] = True
            self._rows[self._members(group)] = torch.nan
            self._keep(*self._describe(group))
        rows = self._rows[torch.from_numpy(samples)].to(crops.device, torch.float32)
        return torch.where(rows.isnan(), crops, rows)

    def _members(self, group: int) -> NDArray[np.int64]:
        return self._order[group * _TOGETHER : (group + 1) * _TOGETHER]

    @torch.no_grad()
    def _describe(self, group: int) -> tuple[NDArray[np.int64], Tensor]:
        """The samples of a group that can be read, (n,), and what the teacher says of them, (n, L, D)."""
        assert self._model.teacher is not None, "the configuration was checked for it"
        batch = self._dataset.evaluation_batch(self._members(group))
        return batch.samples, describe(
            self._model.teacher.layers(prepare(batch.images, self._model), NUM_LAYERS)
        )

    def _keep(self, samples: NDArray[np.int64], said: Tensor) -> None:
        self._known[samples] = True
        self._rows[torch.from_numpy(samples)] = self._whole.targets(said).to("cpu", torch.float16)
