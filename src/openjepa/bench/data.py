"""Decoding and cropping, timed on one thread beside the authors' transform.

    openjepa bench data photos --reference path/to/ijepa

Ours is what a worker of the loader does, for batches of 32: read, decode, crop, resize, and normalise. Theirs is
the transform of their `src/transforms.py` (it needs torchvision) on images opened as torchvision's `ImageFolder` does.
"""

import importlib
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from openjepa.allocator import keep_freed_memory
from openjepa.data.dataset import ImageDataset
from openjepa.data.preprocess import normalise
from openjepa.data.sources import open_source
from openjepa.errors import UserError

_BATCH = 32
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def bench_data(
    data: str | Path,
    *,
    reference: str | Path | None = None,
    image_size: int = 224,
    num_images: int = 512,
    repeats: int = 5,
    say: Callable[[str], None],
) -> None:
    """Time the training views of a folder of images.

    Args:
        data: What `pretrain` takes; for the comparison, a folder of files that Pillow reads.
        reference: Clone of the authors' code; without it only our side is timed.
        image_size: Side of the views in pixels.
        num_images: How many images a round reads.
        repeats: Rounds of each side, after one to warm up.
        say: Called with each line of the result, Markdown.

    Raises:
        UserError: Data that cannot be read, or a reference that is no clone or lacks torchvision.
    """
    keep_freed_memory()
    source = open_source(data)
    samples = np.arange(num_images) % len(source)
    dataset = ImageDataset(source, image_size=(image_size, image_size), cache="never")

    def ours() -> None:
        for part in np.array_split(samples, -(-num_images // _BATCH)):
            batch = dataset.batch(part, 0, 0)
            normalise(batch.images, mean=_MEAN, std=_STD)

    sides: dict[str, Callable[[], None]] = {"ours": ours}
    if reference is not None:
        sides["theirs"] = _theirs(Path(reference), image_size, [source.path(int(i)) for i in samples])
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(repeats + 1):
        for side, work in sides.items():
            start = time.perf_counter()
            work()
            seconds[side].append(time.perf_counter() - start)
    say(f"{source.name}: {len(source)} images, views of {image_size} px, one thread\n")
    say("| | images/s (range) |\n|---|---|")
    for side, times in seconds.items():
        rates = sorted(num_images / one for one in times[1:])
        say(f"| {side} | {statistics.median(rates):.0f} ({rates[0]:.0f}–{rates[-1]:.0f}) |")
    if "theirs" in seconds:
        pairs = list(zip(seconds["ours"], seconds["theirs"], strict=True))[1:]
        ratios = sorted(b / a for a, b in pairs)
        say(f"\nours / theirs: {statistics.median(ratios):.2f}× ({ratios[0]:.2f}–{ratios[-1]:.2f})")


def _theirs(clone: Path, image_size: int, paths: list[str]) -> Callable[[], None]:
    sys.path.insert(0, str(clone))
    try:
        transforms = importlib.import_module("src.transforms")
    except ModuleNotFoundError as error:
        raise UserError(
            f"--reference {clone}: {error}; it must be a clone of facebookresearch/ijepa, and their transform needs "
            "torchvision: pip install torchvision"
        ) from None
    transform = transforms.make_transforms(crop_size=image_size, crop_scale=(0.3, 1.0))

    def work() -> None:
        for path in paths:
            with Image.open(path) as image:
                transform(image.convert("RGB"))

    return work
