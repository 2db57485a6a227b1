"""The data set `scenes`: 20,000 images to train on and 4,000 to test, rendered once and kept in the user's cache.

openjepa pretrain scenes --out runs/scenes --max-minutes 10
openjepa evaluate runs/scenes --train scenes --test scenes --target colour --out evaluation.json
"""

import functools
import hashlib
import itertools
import logging
import os
import shutil
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from filelock import FileLock
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from openjepa.data.scenes.draw import COLOURS, FINISHES, MAX_OBJECTS, MIN_OBJECTS, SHAPES
from openjepa.data.scenes.farm import num_parts, render_into
from openjepa.data.scenes.render import Rendered
from openjepa.errors import DataError

_log = logging.getLogger(__name__)

VERSION = 2
"""Of what is kept: to be raised with every change that moves a pixel or a label, or adds to them."""
SEEDS = {"train": 1, "test": 2}
SIZES = {"train": 20_000, "test": 4_000}
DISTANCE_EDGES = (6.123, 6.616, 7.057, 7.5, 7.987)
"""Between the six classes of `distance`; on the train split each holds a sixth of the images."""
TARGETS = {
    "shape": SHAPES,
    "colour": COLOURS,
    "finish": FINISHES,
    "count": tuple(str(number) for number in range(MIN_OBJECTS, MAX_OBJECTS + 1)),
    "distance": (
        f"<{DISTANCE_EDGES[0]}",
        *(f"{low}-{high}" for low, high in itertools.pairwise(DISTANCE_EDGES)),
        f">{DISTANCE_EDGES[-1]}",
    ),
}
"""Labels and their classes; the first is the default."""
SEGMENTS = ("floor", *SHAPES)
"""What a pixel can show."""


@dataclass(frozen=True, eq=False)
class SceneSource:
    """A split of `scenes`: the `Source` protocol, exact depth, what each pixel shows; on the disk until read."""

    name: str
    folder: Path
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    fingerprint: str
    problems: tuple[tuple[str, str], ...] = ()
    unread: str = ""

    @property
    def cache_key(self) -> str:
        """The fingerprint: it is of all there is."""
        return self.fingerprint

    @property
    def names_and_sizes(self) -> str:
        """The fingerprint, which was never of names and sizes."""
        return self.fingerprint

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> NDArray[np.uint8]:
        """The pixels, (64, 64, 3) uint8, a view."""
        image: NDArray[np.uint8] = _mapped(self.folder / "images.npy")[index]
        return image

    def depth(self, index: int) -> NDArray[np.float32]:
        """Depth of each pixel's centre along the camera's axis, (64, 64), in the scenes' unit of length."""
        depth: NDArray[np.float32] = _mapped(self.folder / "depth.npy")[index]
        return depth

    def segments(self, index: int) -> NDArray[np.uint8]:
        """What each pixel shows, (64, 64), places in `segment_names`."""
        segments: NDArray[np.uint8] = _mapped(self.folder / "segments.npy")[index]
        return segments

    @property
    def segment_names(self) -> tuple[str, ...]:
        """What a pixel can show."""
        return SEGMENTS

    def path(self, index: int) -> str:
        """The data set's name and the sample's number."""
        return f"{self.name}/{index:05d}"


def open_scenes(*, split: str, target: str | None = None) -> SceneSource:
    """Open a split, rendering it the first time (under a minute on two cores).

    Args:
        split: "train" or "test".
        target: Which label: shape (the default), colour, finish, count or distance.

    Raises:
        DataError: An unknown label, or a cache that cannot be written.
    """
    target = target or next(iter(TARGETS))
    if target not in TARGETS:
        raise DataError(f"scenes: has no label {target!r}; --target can be {', '.join(TARGETS)}.")
    cache = Path(
        os.environ.get("OPENJEPA_CACHE") or platformdirs.user_cache_path("openjepa", appauthor=False)
    )
    folder = cache / f"scenes-{VERSION}-{split}-{SIZES[split]}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):  # several processes may ask at once: one renders
            if not folder.is_dir():
                _render_split(folder, split)
        labels: NDArray[np.int64] = np.load(folder / f"label-{target}.npy")
        fingerprint = (folder / "sha256").read_text(encoding="ascii")
    except OSError as error:
        raise DataError(
            f"{folder}: scenes cannot be kept here: {error}. Make room for 0.8 GB, or name another folder in "
            "the environment variable OPENJEPA_CACHE."
        ) from error
    return SceneSource(f"scenes:{split}", folder, labels, TARGETS[target], fingerprint)


def labels_of(rendered: Rendered) -> dict[str, NDArray[np.int64]]:
    """The label of each image under each name of TARGETS, (S,) each."""
    return {
        "shape": rendered.shape,
        "colour": rendered.colour,
        "finish": rendered.finish,
        "count": rendered.count - MIN_OBJECTS,
        "distance": np.digitize(rendered.distance, np.asarray(DISTANCE_EDGES, np.float32)).astype(np.int64),
    }


def digest(rendered: Rendered) -> str:
    """SHA-256 of pixels, depth and labels: the same on every machine."""
    total = hashlib.sha256()
    for array in (rendered.images, rendered.depth, *labels_of(rendered).values()):
        total.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return total.hexdigest()


@functools.cache
def _mapped(path: Path) -> NDArray[Any]:
    array: NDArray[Any] = np.load(path, mmap_mode="r")
    return array


def _render_split(folder: Path, split: str) -> None:
    """Render a split into a folder, which appears when it is whole."""
    draft = folder.with_suffix(".partial")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    work = render_into(draft, seed=SEEDS[split], num=SIZES[split])
    console = Console(stderr=True)
    for _ in track(
        work, f"Rendering scenes:{split}", num_parts(SIZES[split]), console=console, transient=True
    ):
        pass
    rendered = Rendered(*(np.load(draft / f"{field.name}.npy", mmap_mode="r") for field in fields(Rendered)))
    for name, labels in labels_of(rendered).items():
        np.save(draft / f"label-{name}.npy", labels)
    (draft / "sha256").write_text(digest(rendered), encoding="ascii")
    draft.rename(folder)
    _log.info("scenes:%s: %d images rendered, kept in %s", split, SIZES[split], folder)
