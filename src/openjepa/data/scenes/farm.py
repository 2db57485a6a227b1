"""Renders many images with one process a core, into arrays on the disk.

Threads would wait for each other, for NumPy holds the interpreter's lock while it gathers; and worker processes of
`multiprocessing` would run a user's unguarded script again. So each worker is a command of its own:

    python -m openjepa.data.scenes.farm FOLDER SEED FIRST STRIDE
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np

from openjepa.allocator import keep_freed_memory
from openjepa.data.scenes.render import Rendered, render

_TOGETHER = 128  # images rendered at once


def render_into(folder: Path, *, seed: int, num: int) -> Iterator[None]:
    """Render images 0 to ``num`` into one `NAME.npy` for each field of `Rendered`; yields after every part.

    Args:
        folder: Exists and is empty.
        seed: Of the data set.
        num: How many images; ``num_parts`` says how many parts they make.

    Raises:
        OSError: A worker failed; its last words.
    """
    one = render(seed, np.arange(1))
    for field in fields(Rendered):
        array = getattr(one, field.name)
        np.lib.format.open_memmap(folder / f"{field.name}.npy", "w+", array.dtype, (num, *array.shape[1:]))
    count = min(os.cpu_count() or 1, num_parts(num))
    command = [sys.executable, "-m", __name__, str(folder), str(seed)]
    workers = [
        subprocess.Popen(
            [*command, str(i), str(count)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for i in range(count)
    ]
    try:
        for worker in workers:
            assert worker.stdout is not None
            for _ in worker.stdout:
                yield
        for worker in workers:
            _, words = worker.communicate()
            if worker.returncode:
                raise OSError(f"rendering failed: {words.strip().splitlines()[-1:]}")
    finally:
        for worker in workers:
            worker.kill()


def num_parts(num: int) -> int:
    """Parts in which so many images are rendered."""
    return -(-num // _TOGETHER)


def _work(folder: Path, seed: int, first: int, stride: int) -> None:
    """Render every ``stride``-th part from ``first`` on; a line of output for each."""
    arrays = {field.name: np.load(folder / f"{field.name}.npy", mmap_mode="r+") for field in fields(Rendered)}
    num = len(arrays["images"])
    for part in range(first, num_parts(num), stride):
        samples = np.arange(part * _TOGETHER, min((part + 1) * _TOGETHER, num))
        rendered = render(seed, samples)
        for name, array in arrays.items():
            array[samples[0] : samples[-1] + 1] = getattr(rendered, name)
        sys.stdout.write("\n")
        sys.stdout.flush()


if __name__ == "__main__":
    keep_freed_memory()
    _work(Path(sys.argv[1]), *map(int, sys.argv[2:5]))
