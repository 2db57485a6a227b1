"""Images inside uncompressed tars, plain or WebDataset, read at random once indexed.

An image's label is the text of the `.cls`, or a field of the `.json`, that has its name up to the last dot, or, as in
WebDataset, up to an earlier one: of `0001.left.png` that is `0001.left.cls` or `0001.cls`. It need not lie beside the
image. Of a sample that has `0001.jpg` and `0001.mask.png` the image with fewer dots is taken; of images with as many,
all are. Where no image has a label, the class is the first folder below what all images have in common:
`train/airplane/0000.jpg` among `train/…` is an airplane. What is left out is counted and named.
"""

import glob
import io
import itertools
import logging
import os
import re
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from openjepa.data.bad_files import BadImage
from openjepa.data.fingerprint import Fingerprints, Listing
from openjepa.data.listing import (
    ACCEPTED,
    IMAGE_SUFFIXES,
    Names,
    index_labels,
    printable,
    suffix_of,
)
from openjepa.data.tar_index import TarIndex, add_sample, folder_labels, join_labels, sample_key
from openjepa.errors import DataError

_log = logging.getLogger(__name__)
# How compressed files begin, under the name of what unpacks them; a tar begins with its first member's name.
_COMPRESSED = re.compile(
    rb"(?P<gunzip>\x1f\x8b)|(?P<bunzip2>BZh[1-9]1AY)|(?P<unxz>\xfd7zXZ)|(?P<unzstd>\x28\xb5\x2f\xfd)"
)
_MAX_OPEN = 64  # tars a process keeps open: below the 256 files that macOS allows


@dataclass(frozen=True, eq=False)
class TarSource(Fingerprints):
    """Images at known places in tars; the `Source` protocol, and which members were left out."""

    name: str
    shards: tuple[str, ...]
    stamps: tuple[tuple[int, int], ...]
    names: Names
    shard_of: NDArray[np.int32]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...]
    listing: Listing
    problems: tuple[tuple[str, str], ...] = ()
    unread: str = ""

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> bytes:
        """The member's bytes. Raises BadImage when they cannot be read."""
        shard, size = self.shard_of[index], int(self.sizes[index])
        try:
            file = _open_shard(self.shards[shard], self.stamps[shard], os.getpid(), threading.get_ident())
            file.seek(int(self.offsets[index]))
            raw = file.read(size)
        except OSError as error:
            raise BadImage(f"cannot be read: {error.strerror}") from error
        if len(raw) < size:
            raise BadImage("cannot be read: the tar is now shorter than when it was indexed")
        return raw

    def path(self, index: int) -> str:
        """The tar's absolute path, "/", and the member's name, printable."""
        return printable(f"{self.shards[self.shard_of[index]]}/{printable(self.names[index])}")


class _Handle(io.FileIO):
    """A file that closes without a warning when the cache below lets go of it."""

    def __del__(self) -> None:
        self.close()


@lru_cache(maxsize=_MAX_OPEN)
def _open_shard(path: str, stamp: tuple[int, int], process: int, thread: int) -> _Handle:
    """An open tar. Seeking moves what processes after a fork, and threads, would share: each has its own.

    The stamp (size, time of change) keeps a tar written anew from being read through an old handle.
    """
    return _Handle(path, "rb")


class _QuickInfo(tarfile.TarInfo):
    """Reads an ordinary file's header without its owner, dates and devices: indexing takes half the time."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_QuickInfo":
        """A header, 512 bytes: name, size at 124, checksum at 148, type at 156, prefix of the name at 345."""
        size, checksum = bytes(buf[124:135]), bytes(buf[148:154])
        ordinary = (
            buf[156:157] == tarfile.REGTYPE
            and buf[135:136] in (b"\0", b" ")  # else a twelfth digit
            and buf[345:346] == b"\0"
            and size.isdigit()
            and checksum.isdigit()
        )
        # The checksum is the sum of all bytes, its own eight counted as spaces.
        if not ordinary or sum(buf) - sum(buf[148:156]) + 8 * 32 != int(checksum, 8):
            return super().frombuf(buf, encoding, errors)
        member = cls(bytes(buf[:100]).partition(b"\0")[0].decode(encoding, errors))
        member.size = int(size, 8)
        return member


def open_tars(pattern: str, *, target: str | None, name: str) -> TarSource:
    """Index a tar, or all tars of a pattern such as `shards-{000..015}.tar` or `shards-*.tar`.

    Args:
        pattern: The path of a tar, or a pattern.
        target: The WebDataset field that holds the label: "cls", or a field of `.json`.
        name: The source's name.

    Raises:
        DataError: A tar is missing, compressed, truncated or damaged, or there is no image or no such field.
    """
    shards = expand_shards(pattern)
    index = TarIndex()
    for number, shard in enumerate(shards):
        _index_shard(shard, number, target, index)
    if not len(index.names):
        raise DataError(f"{printable(pattern)}: no images in it; members ending in {ACCEPTED} are read.")
    join_labels(index)
    labels, classes = index_labels(index.labels)
    if labels is None and target is None:
        labels, classes = index_labels(folder_labels(index.names))
    elif labels is None:
        found = ", ".join(sorted(index.columns)) or "none"
        raise DataError(
            f"{printable(pattern)}: no sample has a label {target!r}; those present are: {found}."
        )
    if index.problems:
        _log.warning(
            "%s: %d members left out (the first: %s)", name, len(index.problems), index.problems[0][0]
        )
    if told := index.unread.told():
        _log.warning("%s: %s", printable(name), told)
    stamps = tuple((status.st_size, status.st_mtime_ns) for status in map(os.stat, shards))
    return TarSource(
        name=name,
        shards=tuple(shards),
        stamps=stamps,
        names=index.names,
        shard_of=np.array(index.shard_of, dtype=np.int32),
        offsets=np.array(index.offsets, dtype=np.int64),
        sizes=np.array(index.sizes, dtype=np.int64),
        labels=labels,
        classes=classes,
        listing=Listing(
            index.names,
            index.sizes,
            place=printable("\n".join(shards)),
            changes=[changed for _, changed in stamps],
        ),
        problems=tuple(index.problems),
        unread=told,
    )


def expand_shards(pattern: str) -> list[str]:
    """The absolute paths a pattern names, in order: {000..015} counts, {a,b} lists, * and ? are looked up.

    Raises:
        DataError: A file that the pattern names does not exist, or none fits.
    """
    if os.path.exists(pattern):
        return [os.path.abspath(pattern)]
    parts = re.split(r"\{([^{}]*)\}", pattern)  # text and the insides of braces by turns
    choices = [_choices(part) if turn % 2 else [part] for turn, part in enumerate(parts)]
    paths = ["".join(chosen) for chosen in itertools.product(*choices)]
    if glob.has_magic(pattern):
        paths = [path for each in paths for path in sorted(glob.glob(each), key=os.fsencode)]
    if not paths:
        raise DataError(f"{printable(os.path.abspath(pattern))}: no tar fits this pattern.")
    if missing := [path for path in paths if not os.path.isfile(path)]:
        count = (
            f" ({len(missing)} of the {len(paths)} tars of {printable(pattern)})" if len(paths) > 1 else ""
        )
        raise DataError(f"{printable(os.path.abspath(missing[0]))}: does not exist{count}.")
    return [os.path.abspath(path) for path in paths]


def _choices(braces: str) -> list[str]:
    """What stands for {braces}: the numbers of a range, as wide as they are written, or a list's parts."""
    if span := re.fullmatch(r"(\d+)\.\.(\d+)", braces):
        width = min(map(len, span.groups()))
        return [f"{number:0{width}d}" for number in range(int(span[1]), int(span[2]) + 1)]
    return braces.split(",")


def _index_shard(path: str, number: int, target: str | None, index: TarIndex) -> None:
    """Add a tar's images to the index."""
    try:
        with open(path, "rb") as file:
            if compressed := _COMPRESSED.match(file.read(8)):
                raise DataError(
                    f"{printable(path)}: compressed; images are read from all over a tar, so unpack it"
                    f" first ({compressed.lastgroup} FILE) and give the .tar."
                )
            file.seek(0)
            members = _members(file, path, index)
            for _, group in itertools.groupby(members, key=lambda member: sample_key(member[0])):
                add_sample(list(group), file, path, number, target, index)
    except OSError as error:
        raise DataError(f"{printable(path)}: cannot be read: {error.strerror or error}.") from error


def _members(file: BinaryIO, path: str, index: TarIndex) -> Iterator[tuple[bytes, tarfile.TarInfo]]:
    """A tar's files under their names, hidden ones left out. Raises DataError where it is not whole."""
    count = 0
    try:
        with tarfile.open(fileobj=file, mode="r:", tarinfo=_QuickInfo, encoding="utf-8") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would keep half a kilobyte a member
                count += 1
                parts = [part for part in member.name.split("/") if part not in ("", ".", "..")]
                if any(part.startswith(".") for part in parts):
                    continue
                name = "/".join(parts).encode("utf-8", "surrogateescape")
                if member.isreg() and not member.issparse():
                    yield name, member
                elif suffix_of(name) in IMAGE_SUFFIXES and not member.isdir():
                    kind = (
                        f"a link to {printable(member.linkname)}" if member.linkname else "no ordinary file"
                    )
                    index.problems.append((f"{printable(path)}/{printable(name)}", f"in a tar: {kind}"))
            # tarfile takes whatever is no header for the end; the real end is blocks of zeros.
            file.seek(tar.offset)
            end = file.read(1 << 20)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise DataError(_broken(path, count, str(error))) from error
    if len(end) < tarfile.BLOCKSIZE or end.strip(b"\0"):
        raise DataError(_broken(path, count, f"no end-of-archive mark at byte {tar.offset}"))


def _broken(path: str, count: int, reason: str) -> str:
    return (
        f"{printable(path)}: truncated, damaged or no tar ({reason}); {count} members could be read."
        " Copy or pack it again."
    )
