"""Features kept on disk for the next evaluation, keyed by everything that makes them: weights, data, view.

    $OPENJEPA_CACHE/features/KEY.safetensors

Data are known by their content or, where they are too many to be read, by place, times and a sample
(`openjepa.data.fingerprint`); the program's version is in the key too.

The folder is kept below `MOST_BYTES`: what was not used for longest goes first.
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from openjepa.writing import written_whole

_log = logging.getLogger(__name__)
MOST_BYTES = 10 * 1024**3
"""Of all files together."""


def feature_folder() -> Path:
    """Where features are kept: below $OPENJEPA_CACHE, or the user's cache folder."""
    cache = os.environ.get("OPENJEPA_CACHE") or platformdirs.user_cache_path("openjepa", appauthor=False)
    return Path(cache) / "features"


class FeatureStore:
    """Features of several kinds, by name.

    Args:
        folder: Where they are kept.
        facts: For each name what makes its features, beside the images: JSON values.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self.folder, self.facts = folder, facts

    def load(self, name: str, images: str) -> tuple[Tensor, NDArray[np.int64]] | None:
        """Features (N, …) and the places (N,) of their images in the data, or None.

        Args:
            name: Of the kind.
            images: What the images are: data and view.
        """
        path = self._path(name, images)
        try:
            tensors = load_file(path)
            os.utime(path)
        except (OSError, SafetensorError):  # none, or damaged: made anew
            return None
        return tensors["features"], tensors["samples"].numpy()

    def save(self, name: str, images: str, features: Tensor, samples: NDArray[np.int64]) -> None:
        """Keep them; what is there under this key is replaced. Where there is no room for them they are not kept."""
        path = self._path(name, images)
        try:
            with written_whole(path) as draft:
                save_file({"features": features.contiguous(), "samples": torch.from_numpy(samples)}, draft)
            self._make_room()
        except (OSError, SafetensorError) as error:
            _log.warning("%s: features are not kept here: %s", self.folder, error)

    def _make_room(self) -> None:
        files = sorted(self.folder.glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
        total = sum(file.stat().st_size for file in files)
        for file in files[:-1]:
            if total <= MOST_BYTES:
                break
            total -= file.stat().st_size
            file.unlink(missing_ok=True)

    def _path(self, name: str, images: str) -> Path:
        key = json.dumps([version("openjepa"), self.facts[name], images], sort_keys=True)
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"
