"""What tells two data sets apart: names, sizes and the images' bytes, of very large sets the bytes of a sample.

Up to `MOST_BYTES` in at most `MOST_FILES` files every byte is read (one pass, a second or two a gigabyte from memory).
A larger set is not read whole at every start: only the bytes of at most `SAMPLE_FILES` files are, spread evenly over
its order, as many as `SAMPLE_BYTES` hold. That recognises another data set whatever its names and sizes, but not that a
few images of a huge set were replaced by others of exactly their sizes. The cache of features therefore uses
`cache_key`, which for a huge set also holds its place and the times of change: there a false alarm only costs time,
while a run must be able to go on after its data were copied to another disk.
"""

import hashlib
from abc import ABC, abstractmethod
from array import array
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openjepa.data.bad_files import BadImage
from openjepa.data.listing import Names

MOST_BYTES = 2**30
MOST_FILES = 100_000
SAMPLE_BYTES = 2**26
SAMPLE_FILES = 1024
_READ_TOGETHER = 256  # images, a task of the threads
_GONE = b"gone"


class Fingerprints(ABC):
    """The identity of a source of files, computed when it is first asked for.

    A class that has this as its base has ``names`` and ``listing``, and reads.
    """

    names: Names
    listing: "Listing"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of names, sizes and bytes, in order; see the module's text for very large sets."""
        total = hashlib.sha256(self.listing.digest.encode())
        chosen = self.listing.sample
        indices = np.arange(len(self.names)) if chosen is None else chosen
        parts = range(0, len(indices), _READ_TOGETHER)
        with ThreadPoolExecutor() as pool:  # reading and hashing release the interpreter's lock
            for digest in pool.map(lambda start: self._hash(indices[start : start + _READ_TOGETHER]), parts):
                total.update(digest)
        return total.hexdigest()

    @property
    def names_and_sizes(self) -> str:
        """SHA-256 of names and sizes alone: the whole fingerprint of earlier versions."""
        return self.listing.digest

    @property
    def cache_key(self) -> str:
        """What features of these images are kept under; of a set that is not read whole with place and times."""
        if self.listing.sample is None:
            return self.fingerprint
        return f"{self.fingerprint} {self.listing.place} {self.listing.changes}"

    @abstractmethod
    def read(self, index: int) -> bytes:
        """The bytes of an image."""

    def _hash(self, indices: NDArray[np.int64]) -> bytes:
        """Digests of a stretch of images, end to end; one that cannot be read has a mark of its own."""
        digests = []
        for index in indices.tolist():
            try:
                digests.append(hashlib.sha256(self.read(index)).digest())
            except BadImage:
                digests.append(_GONE)
        return b"".join(digests)


class Listing:
    """What is known of the files of a source before any is read.

    Args:
        names: Of the files.
        sizes: Of each, in bytes; negative where a file is not there.
        place: Where they are.
        changes: Times of change of what holds them, in nanoseconds.

    Attributes:
        digest: SHA-256 of names and sizes, in order.
        changes: SHA-256 of the times.
        sample: The files whose bytes are in the fingerprint, in order; None where all are.
    """

    def __init__(self, names: Names, sizes: "array[int]", *, place: str, changes: Sequence[int]) -> None:
        self.digest = names.digest(sizes)
        self.place = place
        self.changes = hashlib.sha256(np.asarray(changes, "<i8").tobytes()).hexdigest()
        self.sample = _sample(np.maximum(np.asarray(sizes, np.int64), 0))


def _sample(sizes: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """Files spread evenly over a set that is too large to be read whole, of these sizes; None of another."""
    count = len(sizes)
    if count <= MOST_FILES and int(sizes.sum()) <= MOST_BYTES:
        return None
    chosen = np.unique(np.linspace(0, count - 1, min(count, SAMPLE_FILES)).astype(np.int64))
    while len(chosen) > 1 and int(sizes[chosen].sum()) > SAMPLE_BYTES:
        chosen = chosen[::2]
    return chosen


def pixels_fingerprint(*arrays: NDArray[Any]) -> str:
    """SHA-256 of arrays, their shapes included."""
    total = hashlib.sha256()
    for values in arrays:
        total.update(repr((values.shape, values.dtype.str)).encode())
        total.update(np.ascontiguousarray(values).data)
    return total.hexdigest()
