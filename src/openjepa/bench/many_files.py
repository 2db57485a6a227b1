"""Data sets of a thousand to a million JPEG files: what the index, a late start and random reading cost.

The files are names (hard links) of a few originals, so a million of them need no more of the disk than their folders,
and their bytes stay in the system's cache. What is measured is what this project does for each file, not the disk.
Every data set is measured in a process of its own, so that its memory is counted from the same start.
"""

import math
import os
import shutil
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from openjepa.allocator import keep_freed_memory
from openjepa.bench.turns import Answers, Sides, memory, timed
from openjepa.data.dataset import ImageDataset
from openjepa.data.loader import Loader
from openjepa.data.scenes.render import render
from openjepa.data.sources import open_source
from openjepa.errors import UserError

LATE_STEP = 1_000_000
_ORIGINALS = 64
_NAMES = 50_000  # of one file; ext4 allows 65,000
_CLASS = 1_000  # files, a folder
_VIEW = 32  # pixels


class Reading(NamedTuple):
    """One process with one data set."""

    index_seconds: float
    """To list the files."""
    index_bytes: int
    """By which the process grew; 0 where the system does not say."""
    first_seconds: float
    """To the batch of step 0."""
    late_seconds: float
    """To the batch of step LATE_STEP."""
    batch_seconds: float
    """Of a random batch, the mean of several."""
    peak_bytes: int
    """Most memory that the process has held; 0 where the system does not say."""


class DataSet(NamedTuple):
    """A number of files, and what every process found with them."""

    num_files: int
    batch: int
    readings: list[Reading]

    @property
    def rates(self) -> list[float]:
        """Images/s of each process."""
        return [self.batch / reading.batch_seconds for reading in self.readings]

    def median(self, name: str) -> float:
        """Of one number of the readings."""
        return statistics.median(getattr(reading, name) for reading in self.readings)


def read_data_sets(
    counts: Sequence[int], *, batch: int = 64, num_batches: int = 20, threads: int, repeats: int
) -> list[DataSet]:
    """Make the data sets in a temporary folder, and measure each in turn in fresh processes.

    Args:
        counts: Files of each data set.
        batch: Images a batch; fewer where a data set has fewer.
        num_batches: Random batches of a reading.
        threads: Threads of a process.
        repeats: Readings of each data set.

    Raises:
        UserError: No room for the files.
    """
    batch = min(batch, *counts)
    found: dict[int, list[Reading]] = {count: [] for count in counts}
    with tempfile.TemporaryDirectory(prefix="openjepa-bench-", ignore_cleanup_errors=True) as folder:
        with Sides({"files": partial(make_files, folder, counts)}) as sides:
            sides.ask("files", "done")
        for _ in range(repeats):
            for count, readings in found.items():
                maker = partial(
                    make_reader, folder, count, batch=batch, num_batches=num_batches, threads=threads
                )
                with Sides({"reader": maker}) as sides:
                    readings.append(Reading(*sides.ask("reader", "read")))
    return [DataSet(count, batch, readings) for count, readings in found.items()]


def make_files(folder: str, counts: Sequence[int]) -> Answers:
    """Write the originals (`originals`) and a data set of each size (`<count>/class0000/…`); answers `done`.

    Raises:
        UserError: The folder cannot be written.
    """
    top = Path(folder)
    try:
        originals = _originals(top / "originals", max(_ORIGINALS, math.ceil(sum(counts) / _NAMES)))
        for count in counts:
            names = _names(top / str(count), count)
            for number, name in enumerate(names):
                _link(originals[number % len(originals)], name)
    except OSError as error:
        raise UserError(
            f"{folder}: {sum(counts):,} files cannot be made here: {error}. Make room, name another folder in the "
            "environment variable TMPDIR, or lower --max-images."
        ) from error
    return {"done": lambda: True}


def make_reader(folder: str, count: int, *, batch: int, num_batches: int, threads: int) -> Answers:
    """A process that answers `read` once, with the numbers of a `Reading`."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    # What is imported and set up at the first batch of all is no matter of the number of files.
    _loader(f"{folder}/originals", min(batch, _ORIGINALS)).batch(0)

    def read() -> tuple[float | int, ...]:
        before, _ = memory()
        index_seconds, loader = timed(lambda: _loader(f"{folder}/{count}", batch))
        grown = memory()[0] - before
        first_seconds, _ = timed(lambda: loader.batch(0))
        late_seconds, _ = timed(lambda: loader.batch(LATE_STEP))
        seconds, _ = timed(lambda: [loader.batch(1 + step) for step in range(num_batches)])
        numbers = (index_seconds, grown, first_seconds, late_seconds, seconds / num_batches, memory()[1])
        return tuple(Reading(*numbers))

    return {"read": read}


def _loader(folder: str, batch: int) -> Loader:
    """The training batches of a folder. Nothing is cached: of a million photographs nothing could be."""
    dataset = ImageDataset(open_source(Path(folder)), image_size=(_VIEW, _VIEW), cache="never")
    return Loader(dataset, batch_size=batch, seed=0)


def _originals(folder: Path, num: int) -> list[Path]:
    """Scenes as JPEG files of 64 px."""
    folder.mkdir()
    paths = [folder / f"{number:05d}.jpg" for number in range(num)]
    for start in range(0, num, _ORIGINALS):  # so many at once, for they take much memory
        some = paths[start : start + _ORIGINALS]
        for path, image in zip(some, render(0, start + np.arange(len(some))).images, strict=True):
            Image.fromarray(image).save(path, quality=90)
    return paths


def _names(folder: Path, count: int) -> Iterator[Path]:
    """Paths in class folders, which are made on the way."""
    for number in range(count):
        part = folder / f"class{number // _CLASS:04d}"
        if number % _CLASS == 0:
            part.mkdir(parents=True)
        yield part / f"{number:07d}.jpg"


def _link(original: Path, name: Path) -> None:
    """Give a file another name, or copy it where that cannot be done."""
    try:
        os.link(original, name)
    except OSError:  # a file system without hard links, or with few
        shutil.copyfile(original, name)
