"""Where encoded images come from: `open_source` turns what the user calls DATA into a `Source`.

    source = open_source("photos")                          # a folder, nested to any depth
    source = open_source("shards-{000..015}.tar")           # tars, plain or WebDataset
    source = open_source("labels.csv", target="species")    # a manifest: .txt, .csv, .tsv, .parquet
    source = open_source("fashion-mnist:test")              # a built-in
    pixels = decode(source.read(0))

Nothing is decoded here. Every source can be pickled for a worker, and can be read by several
processes and threads at once.
"""

import difflib
import logging
import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from openjepa.data.builtin import BUILT_INS, SPLITS, open_builtin
from openjepa.data.clevr import is_clevr, open_clevr
from openjepa.data.folders import ARCHIVES, open_folder
from openjepa.data.listing import IMAGE_SUFFIXES, printable, suffix_of
from openjepa.data.manifests import open_csv, open_list, open_parquet
from openjepa.data.scenes.source import open_scenes
from openjepa.data.tars import open_tars
from openjepa.errors import DataError

_log = logging.getLogger(__name__)
_TARS = frozenset(b".tar .tgz .gz .bz2 .xz .zst".split())  # compressed ones are refused once looked into
_NAMES = ("scenes", *BUILT_INS)
_KINDS = (
    "DATA can be a folder of images, a list (.txt), a manifest (.csv, .tsv, .parquet), a .tar or a pattern"
    " such as 'shards-{000..015}.tar', or a built-in: " + ", ".join(_NAMES) + " (with :train or :test)"
)


class Source(Protocol):
    """Encoded images in a fixed order, the same on every machine."""

    @property
    def name(self) -> str:
        """What the user called it."""

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """The class of each image, (N,), -1 where unknown; None when there are none."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes' names; a label is a place in it. Two sources need not have the same."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the files' relative names, sizes and bytes, in order (`openjepa.data.fingerprint`)."""

    @property
    def cache_key(self) -> str:
        """What features of the images are kept under: the fingerprint, and more where that is not of every byte."""

    @property
    def names_and_sizes(self) -> str:
        """The fingerprint that earlier versions gave, of names and sizes alone."""

    @property
    def unread(self) -> str:
        """What lies among the images, may be some, and is not read; for people, "" where there is nothing."""

    @property
    def problems(self) -> tuple[tuple[str, str], ...]:
        """What could not be looked into: a path and the reason for each."""

    def __len__(self) -> int:
        """Number of images."""

    def read(self, index: int) -> bytes | NDArray[Any]:
        """The file's bytes, or pixels (H, W, C) that need no decoding.

        Raises:
            BadImage: The file is gone or cannot be read.
        """

    def path(self, index: int) -> str:
        """A name for people and logs: one line, with odd characters escaped."""


def same_data(source: Source, fingerprint: str) -> bool:
    """Whether a source is what a fingerprint was taken of; one of an earlier version tells names and sizes alone."""
    if fingerprint == source.names_and_sizes != source.fingerprint:
        _log.warning(
            "%s: recorded by an earlier version, so compared by names and sizes, not by content", source.name
        )
        return True
    return fingerprint == source.fingerprint


def open_source(data: str | Path, *, split: str = "train", target: str | None = None) -> Source:
    """List the images of a data set.

    Args:
        data: What to open, see the module's text. A Path is always a file or a folder; a str that is
            a built-in's name means the built-in (write ./cifar10 for a folder of that name).
        split: "train" or "test": which part of a built-in, unless its name says so (`cifar10:test`), or of a folder
            that is laid out as Clevr.
        target: The column that holds the label, for manifests and WebDataset tars; by default the first
            there is of `cls`, `label`, `class`, `target`. For `scenes` and Clevr: which of its labels.

    Raises:
        DataError: It does not exist, cannot be read, holds no image, or lacks the column.
    """
    assert split in SPLITS, split
    text = os.fspath(data)
    head, colon, part = text.partition(":")
    if isinstance(data, str) and (head in _NAMES or "://" in text):
        if head not in _NAMES:
            raise DataError(f"{text}: not available in this version. {_KINDS}.")
        if colon and part not in SPLITS:
            raise DataError(f"{text}: {head} has no split {part!r}; it has train and test.")
        if head == "scenes":
            return open_scenes(split=part or split, target=target)
        _refuse_target(text, target)
        return open_builtin(head, split=part or split)

    path = os.path.expanduser(text)
    suffix = suffix_of(os.fsencode(path))
    if os.path.isdir(path) and is_clevr(path):
        return open_clevr(path, split=split, target=target, name=text)
    if os.path.isdir(path):
        _refuse_target(text, target)
        return open_folder(path, name=text)
    if suffix in _TARS:
        return open_tars(path, target=target, name=text)
    if not os.path.exists(path):
        near = difflib.get_close_matches(head, _NAMES, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise DataError(f"{printable(os.path.abspath(path))}: does not exist.{hint} {_KINDS}.")
    if suffix in (b".csv", b".tsv"):
        return open_csv(path, target=target, name=text)
    if suffix == b".parquet":
        return open_parquet(path, target=target, name=text)
    if suffix == b".txt":
        _refuse_target(text, target)
        return open_list(path, name=text)
    hint = ""
    if suffix in IMAGE_SUFFIXES:
        hint = " For one image, give its folder."
    elif suffix in ARCHIVES:
        hint = " Unpack the archive, or pack the images into an uncompressed .tar."
    raise DataError(f"{printable(os.path.abspath(path))}: not a kind of data that is read.{hint} {_KINDS}.")


def _refuse_target(text: str, target: str | None) -> None:
    if target not in (None, "label"):
        raise DataError(
            f"{printable(text)}: has one label only, no {target!r}; --target is for manifests and tars."
        )
