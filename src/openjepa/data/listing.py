"""What all sources share: which files count, a compact table of their names, labels.

A name is the file's path below the source's root, as the bytes on the disk with "/" between
folders. Bytes rather than text, because a file name need not be valid text, and because their
order is the same on every machine.
"""

import hashlib
import logging
import math
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_log = logging.getLogger(__name__)
IMAGE_SUFFIXES = frozenset(
    b".avif .bmp .gif .jfif .jp2 .jpe .jpeg .jpg .npy .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split()
)
ACCEPTED = " ".join(sorted(suffix.decode() for suffix in IMAGE_SUFFIXES))
_BESIDE_IMAGES = frozenset(
    b".caption .cls .css .csv .db .htm .html .ini .js .json .jsonl .license .lnk .log .md .parquet .pdf .py .rst .sh"
    b" .tsv .txt .url .xml .xmp .yaml .yml".split()
)
"""Suffixes of what lies beside images and is none; nobody misses it among them."""
PATH_COLUMNS = ("path", "file_name", "filename", "filepath", "image_path")
"""Columns of a manifest that name the image's file; the second is Hugging Face's."""
LABEL_COLUMNS = ("cls", "label", "class", "target")
"""Columns of a manifest, or members of a WebDataset sample, taken for the label when none is named."""

# What would break a line of a log or a terminal: control characters, line separators, and the
# surrogates that stand for bytes which are no UTF-8 (no encoder accepts those).
_WHOLE_NUMBER = re.compile(r"([+-]?[0-9]+)(?:\.0*)?")
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def suffix_of(name: bytes) -> bytes:
    """The last extension of a name, lower case with its dot (b"" when there is none)."""
    _, dot, suffix = name.rpartition(b".")
    return (dot + suffix).lower() if dot else b""


class Unread:
    """Files that may well be images and are not read, counted by their suffix."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()

    def add(self, name: bytes) -> None:
        """Count a file that is not read, unless it is something that belongs beside images."""
        base = name.rpartition(b"/")[2]
        suffix = suffix_of(base)
        if suffix not in _BESIDE_IMAGES:
            self.kinds[printable(suffix.lower()) or "no suffix"] += 1

    def told(self) -> str:
        """Their number and their kinds, for people; "" where there are none."""
        if not self.kinds:
            return ""
        shown = ", ".join(f"{kind} {count:,}" for kind, count in self.kinds.most_common(6))
        more = f" and {len(self.kinds) - 6} other kinds" if len(self.kinds) > 6 else ""
        return f"{sum(self.kinds.values()):,} files that are not read: {shown}{more}"


def printable(name: str | bytes) -> str:
    """A name as one line that any log, terminal, JSON or parquet file can hold."""
    text = name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class Names:
    """A growing table of names: their bytes end to end, and where each one ends.

    A name costs its length + 8 bytes, against about 100 more as a Python object. A table that is sent to a
    worker process moves into memory that all of them share; it can't grow any more then.
    """

    def __init__(self, names: Iterable[bytes] = ()) -> None:
        self._text: Any = bytearray()  # or, shared, a memoryview and an array of NumPy
        self._ends: Any = array("q", [0])
        self._shared: tuple[Tensor, Tensor] | None = None
        for name in names:
            self.append(name)

    def append(self, name: bytes) -> None:
        """Add a name at the end."""
        assert self._shared is None, "a shared table can't grow"
        self._text += name
        self._ends.append(len(self._text))

    def __getstate__(self) -> tuple[Tensor, Tensor]:
        """The table as two tensors in shared memory, of which multiprocessing sends no more than the handles."""
        if self._shared is None:
            ends, text = np.asarray(self._ends), np.frombuffer(self._text, np.uint8)
            shared = (torch.tensor(ends).share_memory_(), torch.tensor(text).share_memory_())
            self.__setstate__(shared)
            return shared
        return self._shared

    def __setstate__(self, shared: tuple[Tensor, Tensor]) -> None:
        """Read names from these tensors."""
        self._shared = shared
        self._ends, self._text = shared[0].numpy(), shared[1].numpy().data

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> bytes:
        if not 0 <= index < len(self):
            raise IndexError(f"name {index} of {len(self)}")
        return bytes(self._text[self._ends[index] : self._ends[index + 1]])

    def __iter__(self) -> Iterator[bytes]:
        return (self[index] for index in range(len(self)))

    def digest(self, sizes: "array[int]") -> str:
        """SHA-256 of the names and the files' sizes in bytes, in order."""
        numbers = [np.asarray(column, dtype="<i8").tobytes() for column in (self._ends, sizes)]
        return hashlib.sha256(b"".join([*numbers, self._text])).hexdigest()


def label_text(value: object) -> str | None:
    """A label as the name of a class; None (unknown) for null, NaN, "" and whole lists or objects.

    Whole numbers have no decimals, however a table writes them: 1.0 is 1.
    """
    if value is None or isinstance(value, (list, dict)):
        return None
    if isinstance(value, float):  # as whole numbers are stored in a column with gaps
        if math.isnan(value):
            return None
        value = int(value) if value.is_integer() else value
    text = str(value).strip()
    if whole := _WHOLE_NUMBER.fullmatch(text):
        text = whole[1]
    return text or None


def index_labels(values: Iterable[str | None]) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    """Number the classes in sorted order; by value where all of them are whole numbers.

    Names that only differ in their Unicode form (macOS decomposes accents) are one class. A label of -1 is an image
    without one, but where -1 and 1 are all that there is: then it is a class, as in CelebA's attributes.

    Args:
        values: The class of each sample, None where it is unknown.

    Returns:
        The number of each sample's class, (N,) int64 with -1 for unknown, and the N classes' names;
        None and () when every class is unknown.
    """
    found: dict[str, int] = {}
    codes = array("q", (-1 if value is None else found.setdefault(value, len(found)) for value in values))
    names = {value: unicodedata.normalize("NFC", value) for value in found}
    if set(names) != {"-1", "1"} and names.pop("-1", None) is not None:
        count = int((np.asarray(codes) == found["-1"]).sum())
        _log.warning(
            "labels: -1 is taken for no label (%d images); if it is a class, give it another name", count
        )
    if not names:
        return None, ()
    classes = sorted(set(names.values()))
    if all(value.isascii() and value.removeprefix("-").isdigit() for value in classes):
        classes.sort(key=int)
    places = {value: place for place, value in enumerate(classes)}
    rank = np.full(len(found) + 1, -1, dtype=np.int64)  # its last element is what code -1 selects
    for value, name in names.items():
        rank[found[value]] = places[name]
    return rank[np.asarray(codes)], tuple(map(printable, classes))
