"""The order of a run's batches.

The order has no state. Position p of a run belongs to epoch p // N, and the seed's shuffle of that
epoch puts a sample there; step k is positions k * batch_size onwards. So a run that goes on from
step k asks for step k, whatever the number of workers or devices before and after.

Workers compute whole batches, each from its step alone. They are started clean (by a fork server
on Linux, spawned elsewhere), never forked from a process in which PyTorch has threads: a fork
copies locks but not the threads that would release them, and open files with them, such as the
lock on the output folder. As always with such processes, a script that trains at import time
needs ``if __name__ == "__main__":``.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from openjepa.data.bad_files import BadFiles
from openjepa.data.dataset import Batch, ImageDataset
from openjepa.data.workers import compute_ahead
from openjepa.errors import UserError
from openjepa.rng import permute


class Loader:
    """The training batches of a run, or of one rank of it, by step.

    Args:
        dataset: The images.
        batch_size: Images a step, over all ranks.
        seed: The run's seed.
        num_workers: Processes that decode. None are started for a data set of which all images are kept in
            memory, whatever the number; then, and with 0, a thread works one batch ahead.
        rank: Which contiguous part of every batch, of ...
        world_size: ... how many.

    Raises:
        UserError: The batch is larger than the data set, or no multiple of ``world_size``.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        *,
        batch_size: int,
        seed: int,
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size > len(dataset):
            largest = 1 << (len(dataset).bit_length() - 1)
            raise UserError(
                f"data.batch_size: {batch_size} images, but {dataset.source.name} has only {len(dataset)}. "
                f"Set data.batch_size={largest} or less, or give more images."
            )
        if batch_size % world_size:
            raise UserError(
                f"data.batch_size: {batch_size} images cannot be shared evenly among {world_size} devices. "
                f"Set data.batch_size={max(1, batch_size // world_size) * world_size}."
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.num_workers = num_workers
        self.rank = rank
        self.world_size = world_size

    def batch(self, step: int) -> Batch:
        """This rank's part of the batch of any step, (batch_size / world_size) samples."""
        part = self.batch_size // self.world_size
        positions = step * self.batch_size + self.rank * part + np.arange(part)
        epochs, places = np.divmod(positions, len(self.dataset))
        samples = permute(places, size=len(self.dataset), seed=self.seed, epoch=epochs)
        return self.dataset.batch(samples, epochs, self.seed)

    def iterate(self, start_step: int, num_steps: int) -> Iterator[Batch]:
        """The batches of ``num_steps`` steps from ``start_step`` on. Workers live as long as the iteration.

        Raises:
            DataError: No usable image was found, or a worker died.
        """
        return compute_ahead(
            self.batch,
            range(start_step, start_step + num_steps),
            num_workers=self.num_workers,
            in_memory=self.dataset.cached,
            batch_bytes=self.dataset.view_bytes * self.batch_size // self.world_size,
        )


def evaluate_batches(
    dataset: ImageDataset,
    samples: NDArray[np.int64] | None = None,
    *,
    batch_size: int,
    num_workers: int = 0,
    bad_files: BadFiles | None = None,
) -> Iterator[Batch]:
    """Evaluation views of images, of those that can be read, in order.

    Args:
        dataset: The images.
        samples: Which of them, (S,); by default all.
        batch_size: Images a batch; one is smaller where images are bad, and at the end.
        num_workers: As for `Loader`.
        bad_files: Where bad images are counted; by default a count of its own, with the data set's limit.

    Raises:
        DataError: Too many images are bad, or a worker died.
    """
    samples = np.arange(len(dataset)) if samples is None else samples
    bad_files = bad_files or BadFiles(num_images=len(samples), max_fraction=dataset.max_bad_fraction)
    batches = compute_ahead(
        _InOrder(dataset, samples, batch_size),
        range(-(-len(samples) // batch_size)),
        num_workers=num_workers,
        in_memory=dataset.cached,
        batch_bytes=dataset.view_bytes * batch_size,
    )
    for batch in batches:
        bad_files.add(num_good=len(batch.samples), bad=batch.bad)
        if len(batch.samples):
            yield batch


class _InOrder:
    """Step -> evaluation batch; a class because a worker is sent it."""

    def __init__(self, dataset: ImageDataset, samples: NDArray[np.int64], batch_size: int) -> None:
        self.dataset = dataset
        self.samples = samples
        self.batch_size = batch_size

    def __call__(self, step: int) -> Batch:
        start = step * self.batch_size
        return self.dataset.evaluation_batch(self.samples[start : start + self.batch_size])
