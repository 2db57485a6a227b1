"""What a data set holds, looked at image by image: formats, sizes, modes, broken files, copies.

survey = look_at(open_source("photos"))
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from openjepa.data.bad_files import BadFile, BadImage
from openjepa.data.decode import decode, kind_of, wide_bands
from openjepa.data.levels import Bands, ValueRange
from openjepa.data.sources import Source
from openjepa.data.statistics import extremes_of, shared_value_range

_TOGETHER = 64  # images, a task of a thread


class Numbers(NamedTuple):
    """What an image wider than 8 bits holds."""

    type: str
    """uint16, float32, …; of a TIFF of fewer bits with their number."""
    low: float
    """Nearly the smallest number."""
    high: float
    """Nearly the largest one."""
    white: float | None
    """What file or type say is white."""


@dataclass
class Survey:
    """What was found in a source."""

    source: Source
    value_range: ValueRange | None = None
    """One scale for the images of which neither file nor type says what is white."""
    formats: Counter[str] = field(default_factory=Counter)
    """JPEG, PNG, …; `?` where no header says."""
    modes: Counter[str] = field(default_factory=Counter)
    """Pillow's modes: RGB, L, P, CMYK, I;16, …"""
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    """(width, height) in pixels of the images that can be read."""
    broken: list[BadFile] = field(default_factory=list)
    """Images that cannot be read, and why."""
    numbers: dict[int, Numbers] = field(default_factory=dict)
    """Of the images wider than 8 bits, by index."""
    digests: dict[int, bytes] = field(default_factory=dict)
    """Of the pixels of each image that can be read, by its index: equal where the images are."""

    @property
    def shorter_sides(self) -> list[int]:
        """Of the images that can be read, ascending."""
        return sorted(side for size, count in self.sizes.items() for side in [min(size)] * count)

    def copies(self) -> list[list[int]]:
        """Groups of images with the same pixels, each in order, the first of a group counted as the original."""
        groups: dict[bytes, list[int]] = defaultdict(list)
        for index, digest in self.digests.items():
            groups[digest].append(index)
        return [group for group in groups.values() if len(group) > 1]


def look_at(
    source: Source,
    *,
    channels: int = 3,
    progress: Callable[[Iterable[None]], Iterable[None]] = lambda work: work,
) -> Survey:
    """Read and decode every image once.

    Args:
        source: The images.
        channels: Channels they are decoded to.
        progress: Wraps the work, one element for 64 images, to show how far it is.
    """
    survey = Survey(source, value_range=shared_value_range(source, channels=channels))
    tasks = np.array_split(np.arange(len(source)), -(-len(source) // _TOGETHER))

    def run() -> Iterable[None]:
        with ThreadPoolExecutor() as pool:  # Pillow decodes without the interpreter's lock
            for found in pool.map(lambda task: [_look(survey, int(i), channels) for i in task], tasks):
                for one in found:
                    _add(survey, one)
                yield

    for _ in progress(run()):
        pass
    return survey


def overlap(one: Survey, other: Survey) -> list[tuple[int, int]]:
    """Pairs of images with the same pixels, one of each source."""
    places = {digest: index for index, digest in one.digests.items()}
    return [(places[digest], index) for index, digest in other.digests.items() if digest in places]


class _Seen(NamedTuple):
    """An image as it was found."""

    place: int
    kind: tuple[str, str] = ("?", "?")
    size: tuple[int, int] = (0, 0)
    numbers: Numbers | None = None
    digest: bytes = b""
    wrong: str = ""


def _look(survey: Survey, index: int, channels: int) -> _Seen:
    seen = _Seen(index)
    try:
        raw = survey.source.read(index)
        seen = seen._replace(kind=kind_of(raw))
        pixels = decode(raw, channels=channels, value_range=survey.value_range)
        numbers = _numbers(wide_bands(raw, channels=channels))
    except BadImage as error:
        return seen._replace(wrong=str(error))
    digest = hashlib.blake2b(repr(pixels.shape).encode() + pixels.tobytes(), digest_size=16).digest()
    return seen._replace(size=(pixels.shape[1], pixels.shape[0]), numbers=numbers, digest=digest)


def _numbers(bands: Bands | None) -> Numbers | None:
    if bands is None or (found := extremes_of(bands)) is None:
        return None
    kind = str(bands.values.dtype.newbyteorder("="))
    white = bands.white or (65535.0 if kind == "uint16" else None)
    return Numbers(kind if bands.white is None else f"{kind} up to {bands.white:g}", *found, white)


def _add(survey: Survey, seen: _Seen) -> None:
    survey.formats[seen.kind[0]] += 1
    survey.modes[seen.kind[1]] += 1
    if seen.wrong:
        survey.broken.append(BadFile(survey.source.path(seen.place), seen.wrong))
        return
    survey.sizes[seen.size] += 1
    survey.digests[seen.place] = seen.digest
    if seen.numbers is not None:
        survey.numbers[seen.place] = seen.numbers
