"""Data sets known by name: `fashion-mnist` and `cifar10`, from the user's own copy; nothing is downloaded.

The user's copies lie in the folder that the environment variable OPENJEPA_DATA names. Fashion-MNIST
also comes with Debian's package `dataset-fashion-mnist`.
"""

import gzip
import math
import os
import zlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openjepa.data.fingerprint import pixels_fingerprint
from openjepa.data.folders import FileSource, open_folder
from openjepa.data.listing import Names
from openjepa.data.tars import TarSource, open_tars
from openjepa.errors import DataError

BUILT_INS = ("cifar10", "fashion-mnist")
SPLITS = ("train", "test")
_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR10_RECORD = 1 + 3 * 32 * 32  # a label byte, then planes of red, green and blue


@dataclass(frozen=True, eq=False)
class ArraySource:
    """Images that are pixels already, (N, H, W, C) uint8; the `Source` protocol."""

    name: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    names_and_sizes: str
    problems: tuple[tuple[str, str], ...] = ()
    unread: str = ""

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the pixels."""
        return pixels_fingerprint(self.images)

    @property
    def cache_key(self) -> str:
        """The fingerprint: it is of all there is."""
        return self.fingerprint

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> NDArray[Any]:
        """The pixels, (H, W, C) uint8, a view."""
        view: NDArray[Any] = self.images[index]
        return view

    def path(self, index: int) -> str:
        """The data set's name and the sample's number."""
        return f"{self.name}/{index:05d}"


def open_builtin(name: str, *, split: str) -> FileSource | TarSource | ArraySource:
    """Open a split of a built-in data set.

    Raises:
        DataError: There is no copy (the message says where it was looked for), or it is damaged.
    """
    title = f"{name}:{split}"
    home = Path(folder) if (folder := os.environ.get("OPENJEPA_DATA")) else None
    return _open_fashion(home, split, title) if name == "fashion-mnist" else _open_cifar10(home, split, title)


def _open_fashion(home: Path | None, split: str, title: str) -> ArraySource:
    stem = "train" if split == "train" else "t10k"
    folders = [*([home / "fashion-mnist"] if home else []), _DEBIAN]
    for folder in folders:
        for ending in (".gz", ""):
            files = [folder / f"{stem}-{kind}-ubyte{ending}" for kind in ("images-idx3", "labels-idx1")]
            if all(file.is_file() for file in files):
                images, labels = (_read_idx(file) for file in files)
                if images.ndim != 3 or labels.shape != images.shape[:1] or labels.max(initial=0) >= 10:
                    raise DataError(
                        f"{folder}: {images.shape} images do not fit {labels.shape} labels of 10 classes."
                    )
                return _array_source(title, images[..., None], labels, _FASHION, files)
    raise DataError(
        f"{title}: found no {stem}-images-idx3-ubyte.gz and {stem}-labels-idx1-ubyte.gz in"
        f" {_listed(folders)}. Install Debian's package dataset-fashion-mnist, or put the four files"
        f" of the data set into the folder fashion-mnist of $OPENJEPA_DATA{_unset(home)}."
    )


def _open_cifar10(home: Path | None, split: str, title: str) -> FileSource | TarSource | ArraySource:
    if home is None:
        raise DataError(
            f"{title}: set OPENJEPA_DATA to the folder that holds {_CIFAR10_FORMS.format(split)}."
        )
    tar, folder, binary = (
        home / f"cifar10-{split}.tar",
        home / "cifar10" / split,
        home / "cifar-10-batches-bin",
    )
    if tar.is_file():
        return open_tars(str(tar), target=None, name=title)
    if folder.is_dir():
        return open_folder(str(folder), name=title)
    numbers = [f"data_batch_{number}" for number in range(1, 6)] if split == "train" else ["test_batch"]
    files = [binary / f"{number}.bin" for number in numbers]
    if all(file.is_file() for file in files):
        return _read_cifar10(title, files)
    pickled = home / "cifar-10-batches-py"
    raise DataError(
        f"{title}: looked in $OPENJEPA_DATA for {_listed([tar, folder, *files])}."
        + (f" {pickled} holds pickles, which are not read: they can run code." if pickled.is_dir() else "")
        + f" Put there {_CIFAR10_FORMS.format(split)}."
    )


_CIFAR10_FORMS = (
    "cifar10-{0}.tar or a folder cifar10/{0} (images in a folder a class), or the unpacked binary version"
    " of the data set, cifar-10-batches-bin (cifar-10-binary.tar.gz on its page)"
)


def _read_cifar10(title: str, files: Sequence[Path]) -> ArraySource:
    raw = b"".join(_read(file) for file in files)
    records, rest = divmod(len(raw), _CIFAR10_RECORD)
    if rest or not records:
        raise DataError(
            f"{files[0].parent}: {len(raw)} bytes are no whole number of {_CIFAR10_RECORD}-byte records."
        )
    table = np.frombuffer(raw, np.uint8).reshape(records, _CIFAR10_RECORD)
    images = table[:, 1:].reshape(records, 3, 32, 32).transpose(0, 2, 3, 1)
    if table[:, 0].max() >= len(_CIFAR10):
        raise DataError(f"{files[0].parent}: has labels above 9; is this the binary version of CIFAR-10?")
    return _array_source(title, images, table[:, 0], _CIFAR10, files)


def _array_source(
    title: str,
    images: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    classes: tuple[str, ...],
    files: Sequence[Path],
) -> ArraySource:
    names = Names(file.name.encode() for file in files)
    sizes = array("q", (file.stat().st_size for file in files))
    return ArraySource(
        title, np.ascontiguousarray(images), labels.astype(np.int64), classes, names.digest(sizes)
    )


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """An array in the IDX format of MNIST: two zeros, type 8 (bytes), the shape in big-endian, data."""
    raw = _read(path)
    start = 4 + 4 * raw[3] if len(raw) > 3 else 0
    if raw[:3] != b"\0\0\x08" or len(raw) < start:
        raise DataError(f"{path}: not an IDX file of bytes.")
    shape = np.frombuffer(raw[4:start], ">u4").tolist()
    values = np.frombuffer(raw[start:], np.uint8)
    if values.size != math.prod(shape):
        raise DataError(f"{path}: damaged: {values.size} bytes of data for the shape {shape}.")
    return values.reshape(shape)


def _read(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}.") from error


def _listed(paths: Sequence[Path]) -> str:
    return ", ".join(map(str, paths))


def _unset(home: Path | None) -> str:
    return "" if home else " (which is not set)"
