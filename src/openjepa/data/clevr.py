"""A folder of Clevr as it is published, with the labels of the paper's counting and depth tasks.

    openjepa evaluate runs/mine --train CLEVR_v1.0 --test CLEVR_v1.0 --protocols count,depth --out clevr.json

`ROOT/images/{train,val}/NAME.png`, and what they show in `ROOT/scenes/CLEVR_{train,val}_scenes.json`. The published
test images have no scenes, so the validation images are the test split, as in VISSL and VTAB.
"""

import functools
import glob
import json
import os
from typing import Any, NamedTuple

import numpy as np

from openjepa.data.folders import FileSource
from openjepa.data.listing import printable
from openjepa.data.manifests import open_rows
from openjepa.errors import DataError

_PARTS = {"train": "train", "test": "val"}
TARGETS = ("count", "distance")
"""Labels; the first is the default."""
DISTANCE_EDGES = (8.0, 8.5, 9.0, 9.5, 10.0)
"""Between the six classes of `distance`; an edge belongs to the nearer class (VTAB, arXiv 1910.04867)."""
DISTANCES = ("to 8", "8-8.5", "8.5-9", "9-9.5", "9.5-10", "from 10")


class _Scene(NamedTuple):
    """An image and what is in it."""

    path: str
    num_objects: int
    distance: float
    """Of the nearest object's centre from the camera."""


def is_clevr(folder: str) -> bool:
    """Whether a folder is laid out as Clevr is: a folder of images and one of scenes alone are not enough."""
    scenes = os.path.join(glob.escape(folder), "scenes", "CLEVR_*_scenes.json")
    return os.path.isdir(os.path.join(folder, "images")) and bool(glob.glob(scenes))


def open_clevr(folder: str, *, split: str, target: str | None, name: str) -> FileSource:
    """The images of a split with one of the labels.

    Args:
        folder: Laid out as Clevr is.
        split: "train" or "test" (the published validation images).
        target: `count` (the default) or `distance`.
        name: What the user called it.

    Raises:
        DataError: Another label, or scenes that can't be read.
    """
    target = target or TARGETS[0]
    if target not in TARGETS:
        raise DataError(
            f"{printable(name)}: Clevr has no label {target!r}; --target can be {', '.join(TARGETS)}."
        )
    file = os.path.join(folder, "scenes", f"CLEVR_{_PARTS[split]}_scenes.json")
    try:
        status = os.stat(file)
    except OSError as error:
        raise DataError(
            f"{printable(file)}: cannot be read: {error.strerror}. What each image shows is read from there."
        ) from None
    scenes = _scenes(file, status.st_mtime_ns)
    if target == "count":
        labels = [str(scene.num_objects) for scene in scenes]
    else:
        places = np.digitize([scene.distance for scene in scenes], DISTANCE_EDGES, right=True)
        labels = [DISTANCES[place] for place in places]
    rows = zip((scene.path for scene in scenes), labels, strict=True)
    return open_rows(file, rows, target=target, name=name, root=os.path.abspath(folder))


@functools.lru_cache(maxsize=2)
def _scenes(file: str, changed: int) -> list[_Scene]:
    """The scenes of a split; of a file of 70,000, which takes seconds to read, several labels are asked for."""
    try:
        with open(file, encoding="utf-8") as text:
            scenes: list[dict[str, Any]] = json.load(text)["scenes"]
        return [
            _Scene(
                f"images/{scene['split']}/{scene['image_filename']}",
                len(scene["objects"]),
                min(float(thing["pixel_coords"][2]) for thing in scene["objects"]),
            )
            for scene in scenes
        ]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(
            f"{printable(file)}: not Clevr's scenes: {error!r}. Each needs `image_filename`, `split`, and `objects` "
            "with `pixel_coords`, of which the third is the distance."
        ) from None
