"""Images as files in a folder nested to any depth; the class of an image is its first-level subfolder."""

import logging
import os
import stat
from array import array
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openjepa.data.bad_files import BadImage
from openjepa.data.fingerprint import Fingerprints, Listing
from openjepa.data.listing import ACCEPTED, IMAGE_SUFFIXES, Names, Unread, index_labels, printable, suffix_of
from openjepa.errors import DataError

_log = logging.getLogger(__name__)
ARCHIVES = frozenset(b".7z .bz2 .gz .rar .tar .tgz .xz .zip .zst".split())
"""What may hold images but is not looked into when it lies in a folder."""
_MARKER = b".openjepa.json"  # in a folder that this program wrote: a run inside of its own data is no data
GONE = -1
"""The size of a file that is listed but not there."""


@dataclass(frozen=True, eq=False)
class FileSource(Fingerprints):
    """Image files below one root; the `Source` protocol, and which folders could not be read."""

    name: str
    root: str
    names: Names
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...]
    listing: Listing
    problems: tuple[tuple[str, str], ...] = ()
    unread: str = ""

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> bytes:
        """The file's bytes. Raises BadImage when it cannot be read."""
        try:
            with open(os.path.join(os.fsencode(self.root), self.names[index]), "rb") as file:
                return file.read()
        except OSError as error:
            raise BadImage(f"cannot be read: {error.strerror}") from error

    def path(self, index: int) -> str:
        """The file's absolute path, printable."""
        return printable(os.path.join(os.fsencode(self.root), self.names[index]))


def open_folder(folder: str, *, name: str) -> FileSource:
    """List a folder's images, in the order of their paths' bytes.

    Hidden files and folders are left out, and folders that this program wrote. Links are followed, each real folder
    once in each class, so that a loop ends. A subfolder that cannot be read is logged and listed in `problems`; files
    that may be images of a kind that is not read are counted in `unread`.

    Raises:
        DataError: The folder is missing, unreadable, or holds no image.
    """
    root = os.path.abspath(folder)
    top = os.fsencode(root)
    real_top = os.path.realpath(top)
    names, sizes, changes, problems = Names(), array("q"), array("q"), []
    unread, archives = Unread(), Names()
    visited: set[tuple[bytes, bytes]] = set()
    pending = [(b"", 0, 0)]  # names still to come, the next one last; a folder's ends in "/"
    while pending:
        entry, size, changed = pending.pop()
        if entry and not entry.endswith(b"/"):
            suffix = suffix_of(entry)
            if suffix in IMAGE_SUFFIXES:
                names.append(entry)
                sizes.append(size)
                changes.append(changed)
                continue
            unread.add(entry)
            if suffix in ARCHIVES:
                archives.append(entry)
            continue
        real = os.path.realpath(os.path.join(top, entry))
        place = (entry.partition(b"/")[0], real)
        linked = real != os.path.join(real_top, entry.rstrip(b"/")).rstrip(b"/")
        if place in visited or (linked and _is_loop(top, entry, real)):
            continue
        visited.add(place)
        try:
            pending += _list(top, entry)
        except OSError as error:
            if not entry:
                raise DataError(f"{printable(root)}: the folder cannot be read: {error.strerror}.") from error
            problems.append((printable(os.path.join(top, entry)), f"cannot be read: {error.strerror}"))
            _log.warning("%s: left out, %s", *problems[-1])
    if not len(names):
        raise DataError(_no_images(root, archives, unread))
    if told := unread.told():
        _log.warning("%s: %s", printable(name), told)
    labels, classes = index_labels(
        entry.partition(b"/")[0].decode("utf-8", "surrogateescape") if b"/" in entry else None
        for entry in names
    )
    listing = Listing(names, sizes, place=printable(root), changes=changes)
    return FileSource(name, root, names, labels, classes, listing, tuple(problems), told)


def _is_loop(top: bytes, folder: bytes, real: bytes) -> bool:
    """Whether a link leads back to a folder on the way to it."""
    on_the_way = folder.rstrip(b"/")
    while on_the_way:
        on_the_way = on_the_way.rpartition(b"/")[0]
        if os.path.realpath(os.path.join(top, on_the_way)) == real:
            return True
    return False


def _list(top: bytes, folder: bytes) -> list[tuple[bytes, int, int]]:
    """A folder's subfolders and files with sizes (bytes) and times of change (ns), in reverse order.

    A subfolder that this program wrote has none. Sorting a subfolder as its name + "/" makes a walk that enters it in
    its turn come upon the files in the order of their whole paths, with no sort of the whole.
    """
    found = []
    with os.scandir(os.path.join(top, folder)) as entries:
        for entry in entries:
            if folder and entry.name == _MARKER:
                return []
            if entry.name.startswith(b"."):
                continue
            wanted = suffix_of(entry.name) in IMAGE_SUFFIXES
            try:
                if entry.is_dir():
                    found.append((folder + entry.name + b"/", 0, 0))
                elif wanted and stat.S_ISREG((status := entry.stat()).st_mode):
                    found.append((folder + entry.name, status.st_size, status.st_mtime_ns))
                elif entry.is_file():
                    found.append((folder + entry.name, 0, 0))
            except OSError:  # a link to nothing, to itself, or to where we may not go
                found.append((folder + entry.name + (b"" if wanted else b"/"), GONE, 0))
    return sorted(found, reverse=True)


def _no_images(root: str, archives: Names, unread: Unread) -> str:
    message = f"{printable(root)}: no images in this folder; files ending in {ACCEPTED} are read."
    if len(archives):
        message += (
            f" There are only archives ({printable(archives[0])}, {len(archives)} in all): unpack them, or"
            " give uncompressed tars directly, as FILE.tar or 'shards-{000..015}.tar'."
        )
    elif told := unread.told():
        message += f" There are {told}: convert them, or give them such a suffix."
    return message
