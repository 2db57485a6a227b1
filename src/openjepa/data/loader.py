"""The order of a run's batches, and the processes that make them.

The order has no state. Position p of a run belongs to epoch p // N, and the seed's shuffle of that
epoch puts a sample there; step k is positions k * batch_size onwards. So a run that goes on from
step k asks for step k, whatever the number of workers or devices before and after.

Workers compute whole batches, each from its step alone. They are started clean (by a fork server
on Linux, spawned elsewhere), never forked from a process in which PyTorch has threads: a fork
copies locks but not the threads that would release them, and open files with them, such as the
lock on the output folder. As always with such processes, a script that trains at import time
needs ``if __name__ == "__main__":``.
"""

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.context import BaseContext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from openjepa.data.bad_files import BadFiles
from openjepa.data.dataset import Batch, ImageDataset
from openjepa.errors import DataError, UserError
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
        return _compute(self.batch, range(start_step, start_step + num_steps), self.dataset, self.num_workers)


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
        bad_files: Where bad images are counted; by default a count of its own, with its limit of 1 %.

    Raises:
        DataError: Too many images are bad, or a worker died.
    """
    samples = np.arange(len(dataset)) if samples is None else samples
    bad_files = bad_files or BadFiles(num_images=len(samples))
    steps = range(-(-len(samples) // batch_size))
    for batch in _compute(_InOrder(dataset, samples, batch_size), steps, dataset, num_workers):
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


def _compute(
    make: Callable[[int], Batch], steps: range, dataset: ImageDataset, num_workers: int
) -> Iterator[Batch]:
    """``map(make, steps)``, computed ahead: by a thread or by worker processes."""
    if num_workers and not dataset.cached:
        return _in_workers(make, steps, num_workers)
    return _one_ahead(make, steps)


def _one_ahead(make: Callable[[int], Batch], steps: range) -> Iterator[Batch]:
    """A thread makes the next batch while the present one is used."""
    if not steps:
        return
    with ThreadPoolExecutor(max_workers=1) as thread:
        coming = thread.submit(make, steps[0])
        for step in steps[1:]:
            batch, coming = coming.result(), thread.submit(make, step)
            yield batch
        yield coming.result()


def _in_workers(make: Callable[[int], Batch], steps: range, num_workers: int) -> Iterator[Batch]:
    loader: DataLoader[Batch | UserError] = DataLoader(
        _Guarded(make),
        sampler=steps,
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=num_workers,
        multiprocessing_context=_clean_processes(),
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # not the global one, whose state may not depend on num_workers
    )
    batches = iter(loader)
    for _ in steps:
        try:
            batch = next(batches)
        except (RuntimeError, EOFError, ConnectionError) as error:
            if isinstance(error, RuntimeError) and "DataLoader worker (pid" not in str(error):
                raise
            raise DataError(
                f"A process that loads data died: {str(error) or 'it broke off while handing over a batch'}. "
                "Most often memory ran out (see `dmesg`), or shared memory (`df /dev/shm`): lower "
                "data.num_workers or data.batch_size. --resume goes on from the last checkpoint."
            ) from error
        if isinstance(batch, UserError):
            raise batch
        yield batch


class _Guarded(Dataset["Batch | UserError"]):
    """Returns a user's error: raised in a worker, it would arrive with a traceback for its text."""

    def __init__(self, make: Callable[[int], Batch]) -> None:
        self.make = make

    def __getitem__(self, step: int) -> Batch | UserError:
        try:
            return self.make(step)
        except UserError as error:
            return error


def _as_it_is(batch: Any) -> Any:
    return batch


def _clean_processes() -> BaseContext:
    """How workers are started; the fork server imports what they need once, for all of them."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", __name__])
    return context


def _start_worker(_: int) -> None:
    """Tie a worker's life to the process it works for, and to nothing else."""
    if hasattr(os, "setsid"):
        os.setsid()  # signals to the run's process group (Ctrl-C, `timeout`) are the run's to answer
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # PyTorch's own watch compares os.getppid(), which under a fork server is not the parent:
    # the workers of a killed run would wait for ever.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
