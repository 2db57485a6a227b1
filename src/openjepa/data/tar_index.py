"""What tars hold, gathered sample by sample: images, the labels that belong to them, and what is left out."""

import json
import tarfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from openjepa.data.listing import (
    IMAGE_SUFFIXES,
    LABEL_COLUMNS,
    Names,
    Unread,
    label_text,
    printable,
    suffix_of,
)
from openjepa.errors import DataError


@dataclass
class TarIndex:
    """What indexing gathers, a row an image."""

    names: Names = field(default_factory=Names)
    shard_of: "array[int]" = field(default_factory=lambda: array("i"))
    offsets: "array[int]" = field(default_factory=lambda: array("q"))
    sizes: "array[int]" = field(default_factory=lambda: array("q"))
    labels: list[str | None] = field(default_factory=list)
    apart: dict[bytes, str | None] = field(default_factory=dict)  # labels of which no image was beside them
    columns: set[str] = field(default_factory=set)
    unread: Unread = field(default_factory=Unread)
    problems: list[tuple[str, str]] = field(default_factory=list)


def sample_key(name: bytes) -> bytes:
    """WebDataset's key: the name up to the first dot of its last part."""
    folder, slash, base = name.rpartition(b"/")
    return folder + slash + base.partition(b".")[0]


def add_sample(
    group: list[tuple[bytes, tarfile.TarInfo]],
    file: BinaryIO,
    path: str,
    number: int,
    target: str | None,
    index: TarIndex,
) -> None:
    """Add the images of members of one key with their labels."""
    images = [(name, member) for name, member in group if suffix_of(name) in IMAGE_SUFFIXES]
    labels: dict[bytes, str | None] = {}
    if len(images) < len(group):
        labels = _labels(group, file, path, target, index)
        fewest = min((_num_dots(name) for name, _ in images), default=0)
        for name, _ in images:  # 1.mask.png beside 1.jpg
            if _num_dots(name) > fewest:
                index.problems.append(
                    (f"{printable(path)}/{printable(name)}", "in a tar: not the sample's image")
                )
        images = [(name, member) for name, member in images if _num_dots(name) == fewest]
    if not images:
        index.apart.update(labels)
    for name, member in images:
        index.names.append(name)
        index.shard_of.append(number)
        index.offsets.append(member.offset_data)
        index.sizes.append(member.size)
        index.labels.append(next((labels[stem] for stem in _stems(name) if stem in labels), None))


def _num_dots(name: bytes) -> int:
    return name.rpartition(b"/")[2].count(b".")


def _stems(name: bytes) -> Iterator[bytes]:
    """A name without its last suffix, then without the one before it, and so on."""
    folder, slash, base = name.rpartition(b"/")
    while b"." in base:
        base = base.rpartition(b".")[0]
        yield folder + slash + base


def _labels(
    group: list[tuple[bytes, tarfile.TarInfo]], file: BinaryIO, path: str, target: str | None, index: TarIndex
) -> dict[bytes, str | None]:
    """The labels that a sample's .json and .cls files tell, by their names without suffix."""
    fields: dict[bytes, dict[str, object]] = {}
    for name, member in group:
        suffix = suffix_of(name)
        if suffix not in (b".cls", b".json"):
            if suffix not in IMAGE_SUFFIXES:
                index.unread.add(name)
            continue
        file.seek(member.offset_data)
        text = file.read(member.size)
        try:
            value = json.loads(text) if suffix == b".json" else text.decode()
        except ValueError as error:
            raise DataError(
                f"{printable(path)}/{printable(name)}: not {suffix.decode()[1:]}: {error}."
            ) from error
        told = value if isinstance(value, dict) else {suffix.decode()[1:]: value}
        fields.setdefault(next(_stems(name)), {}).update(told)
    labels = {}
    for stem, told in fields.items():
        index.columns.update(told)
        column = target or next((column for column in LABEL_COLUMNS if column in told), None)
        labels[stem] = label_text(told.get(column)) if column else None
    return labels


def join_labels(index: TarIndex) -> None:
    """Give images the labels that lie elsewhere in the tars, and name what is left over."""
    if not index.apart:
        return
    used = set()
    for place, name in enumerate(index.names):
        stem = next((stem for stem in _stems(name) if stem in index.apart), None)
        if stem is not None and index.labels[place] is None:
            index.labels[place] = index.apart[stem]
            used.add(stem)
    for stem, label in index.apart.items():
        if stem not in used and label is not None:
            index.problems.append((printable(stem), "in a tar: a label without an image"))


def folder_labels(names: Names) -> Iterator[str | None]:
    """Each image's first folder below the folder that all have in common."""
    common = names[0][: names[0].rfind(b"/") + 1]
    for name in names:
        while not name.startswith(common):
            common = common[: common.rstrip(b"/").rfind(b"/") + 1]
    for name in names:
        folder, slash, _ = name[len(common) :].partition(b"/")
        yield folder.decode("utf-8", "surrogateescape") if slash else None
