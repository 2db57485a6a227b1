"""Batches made ahead, by a thread or by worker processes; and what may go wrong with such processes, told in words.

Workers hand their batches over in shared memory, which containers often have little of (Docker: 64 MB). Where it is
full PyTorch waits for ever, so there must be room before they are started. Each side watches the other: a worker ends
with the process that it works for, and one that died, or that gives nothing for `HANG_SECONDS`, is an error.
"""

import logging
import multiprocessing
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.context import BaseContext
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from openjepa.data.dataset import Batch
from openjepa.errors import DataError, UserError

_log = logging.getLogger(__name__)
HANG_SECONDS = 900
"""A batch that takes longer never comes: a dead network drive."""
_SHARED_MEMORY = "/dev/shm"
_SPARE_BYTES = 2**20  # of shared memory, for tables of names and the like
_AHEAD = 2  # batches that each worker makes ahead, where there is room for them


def compute_ahead(
    make: Callable[[int], Batch], steps: range, *, num_workers: int, batch_bytes: int, in_memory: bool = False
) -> Iterator[Batch]:
    """``map(make, steps)``, computed ahead: by a thread, or by so many worker processes.

    Args:
        make: A batch from its step; it is sent to the workers.
        steps: Which.
        num_workers: Processes; with 0 a thread works one batch ahead.
        batch_bytes: Size of a batch.
        in_memory: A thread is enough. There must be room for the workers all the same, so that a trial on a part of the
            data does not end otherwise than the run on all of them.

    Raises:
        DataError: Shared memory is too small, or a worker died or hangs; or what ``make`` raised.
    """
    fitting = _that_fit(num_workers, batch_bytes) if num_workers else (0, 0)
    if in_memory or not num_workers:
        return _one_ahead(make, steps)
    return _in_workers(make, steps, *fitting)


def _that_fit(num_workers: int, batch_bytes: int) -> tuple[int, int]:
    """How many workers, and batches ahead of each, shared memory has room for.

    Raises:
        DataError: Not even for one that makes one batch while another is used.
    """
    try:
        free = shutil.disk_usage(_SHARED_MEMORY).free
    except OSError:  # a system that has it elsewhere
        return num_workers, _AHEAD
    room = (free - _SPARE_BYTES) // max(1, batch_bytes)
    for workers, ahead in (
        (num_workers, _AHEAD),
        (num_workers, 1),
        *((n, 1) for n in range(num_workers - 1, 0, -1)),
    ):
        if workers * ahead + 1 <= room:
            if workers < num_workers:
                _log.warning(
                    "shared memory (%s, %s free) has room for the batches of %d workers, not of %d",
                    _SHARED_MEMORY, _megabytes(free), workers, num_workers,
                )  # fmt: skip
            return workers, ahead
    raise DataError(
        f"too little shared memory for workers: {_SHARED_MEMORY} has {_megabytes(free)} free, and two batches take "
        f"{_megabytes(2 * batch_bytes + _SPARE_BYTES)}. Give the container more (docker run --shm-size=1g), or decode "
        "in a thread: data.num_workers=0 (--num-workers 0)"
    )


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB"


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


def _in_workers(make: Callable[[int], Batch], steps: range, num_workers: int, ahead: int) -> Iterator[Batch]:
    loader: DataLoader[Batch | UserError] = DataLoader(
        _Guarded(make),
        sampler=steps,
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=num_workers,
        prefetch_factor=ahead,
        timeout=HANG_SECONDS,
        multiprocessing_context=_clean_processes(),
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # not the global one, whose state may not depend on num_workers
    )
    batches = iter(loader)
    for _ in steps:
        try:
            batch = next(batches)
        except (RuntimeError, EOFError, ConnectionError) as error:
            if "timed out" in str(error):
                raise DataError(
                    f"A process that loads data has given nothing for {HANG_SECONDS} seconds; most likely a drive "
                    "does not answer. --resume goes on from the last checkpoint."
                ) from error
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
