"""Decoded images in memory: the first ones for good, and of the rest the latest for a while."""

import threading

import numpy as np
from numpy.typing import NDArray

RECENT_BYTES = 128 * 2**20
"""Of the latest images: two batches of photographs of 12 megapixels at an eighth of their size."""


class ImageMemory:
    """Images by index. A shuffled pass over more of them than fit finds those that came first again.

    Beside them a few of the latest are kept, for what asks for the same image twice within a step. Threads may
    share it.

    Args:
        num_bytes: Most that images kept for good may take.
        recent_bytes: Most that the latest of the others may take.
    """

    def __init__(self, num_bytes: int, recent_bytes: int = 0) -> None:
        self._room, self._recent_room = num_bytes, recent_bytes
        self._first: dict[int, NDArray[np.uint8]] = {}
        self._recent: dict[int, NDArray[np.uint8]] = {}  # oldest first
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type["ImageMemory"], tuple[int]]:
        """A copy in another process keeps nothing: each worker would keep others, and as many."""
        return ImageMemory, (0,)

    def get(self, index: int) -> NDArray[np.uint8] | None:
        """The image, or None."""
        with self._lock:
            image = self._first.get(index)
            return self._recent.get(index) if image is None else image

    def put(self, index: int, image: NDArray[np.uint8]) -> None:
        """Keep an image if there is room."""
        with self._lock:
            if index in self._first or index in self._recent:
                return
            if image.nbytes <= self._room:
                self._room -= image.nbytes
                self._first[index] = image
                return
            self._recent_room -= image.nbytes
            self._recent[index] = image
            while self._recent_room < 0:
                self._recent_room += self._recent.pop(next(iter(self._recent))).nbytes
