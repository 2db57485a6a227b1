"""What a data set holds, looked at image by image: formats, sizes, modes, broken files, copies.

survey = look_at(open_source("photos"))
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from openjepa.data.bad_files import BadFile
from openjepa.data.decode import BadImage, decode, kind_of
from openjepa.data.sources import Source

_TOGETHER = 64  # images, a task of a thread


@dataclass
class Survey:
    """What was found in a source."""

    source: Source
    formats: Counter[str] = field(default_factory=Counter)
    """JPEG, PNG, …; `?` where no header says."""
    modes: Counter[str] = field(default_factory=Counter)
    """Pillow's modes: RGB, L, P, CMYK, I;16, …"""
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    """(width, height) in pixels of the images that can be read."""
    broken: list[BadFile] = field(default_factory=list)
    """Images that cannot be read, and why."""
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
    survey = Survey(source)
    tasks = np.array_split(np.arange(len(source)), -(-len(source) // _TOGETHER))

    def run() -> Iterable[None]:
        with ThreadPoolExecutor() as pool:  # Pillow decodes without the interpreter's lock
            for found in pool.map(lambda task: [_look(source, int(i), channels) for i in task], tasks):
                for one in found:
                    _add(survey, *one)
                yield

    for _ in progress(run()):
        pass
    return survey


def overlap(one: Survey, other: Survey) -> list[tuple[int, int]]:
    """Pairs of images with the same pixels, one of each source."""
    places = {digest: index for index, digest in one.digests.items()}
    return [(places[digest], index) for index, digest in other.digests.items() if digest in places]


def _look(
    source: Source, index: int, channels: int
) -> tuple[int, tuple[str, str], tuple[int, int], bytes | str]:
    """An image's kind, size, and the digest of its pixels or what is wrong with it."""
    kind = ("?", "?")
    try:
        raw = source.read(index)
        kind = kind_of(raw)
        pixels = decode(raw, channels=channels)
    except BadImage as error:
        return index, kind, (0, 0), str(error)
    digest = hashlib.blake2b(repr(pixels.shape).encode() + pixels.tobytes(), digest_size=16).digest()
    return index, kind, (pixels.shape[1], pixels.shape[0]), digest


def _add(
    survey: Survey, index: int, kind: tuple[str, str], size: tuple[int, int], found: bytes | str
) -> None:
    survey.formats[kind[0]] += 1
    survey.modes[kind[1]] += 1
    if isinstance(found, str):
        survey.broken.append(BadFile(survey.source.path(index), found))
    else:
        survey.sizes[size] += 1
        survey.digests[index] = found
