"""Images as files named by a manifest: a list, a CSV table or a parquet table.

Paths are relative to the folder that holds the manifest. Files that are missing stay in the listing
and are counted when they are read; only when none of them exists is the manifest refused.
"""

import csv
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO

from openjepa.data.fingerprint import Listing
from openjepa.data.folders import GONE, FileSource
from openjepa.data.listing import LABEL_COLUMNS, Names, index_labels, label_text, printable
from openjepa.errors import DataError


def open_list(path: str, *, name: str) -> FileSource:
    """Open a text file with one path a line; it has no labels.

    Raises:
        DataError: The list cannot be read, is empty, or none of its files exists.
    """
    with _open_text(path, newline="\n") as lines:  # only "\n" ends a line: "\r" may be part of a name
        paths = (line.removesuffix("\n").removesuffix("\r") for line in lines)
        return open_rows(path, ((text, None) for text in paths if text), target=None, name=name)


def open_csv(path: str, *, target: str | None, name: str) -> FileSource:
    """Open a CSV (or .tsv) table with a header, a `path` column, and label columns.

    Raises:
        DataError: The table cannot be read or lacks a column, or none of its files exists.
    """
    with _open_text(path, newline="") as lines:
        table = csv.DictReader(lines, delimiter="\t" if path.lower().endswith(".tsv") else ",")
        try:
            label = _label_column(path, table.fieldnames or (), target)
            rows = ((row["path"], label_text(row[label]) if label else None) for row in table)
            return open_rows(path, rows, target=target, name=name)
        except csv.Error as error:
            raise DataError(f"{printable(path)}, line {table.line_num}: not a CSV table: {error}.") from error


def open_parquet(path: str, *, target: str | None, name: str) -> FileSource:
    """Open a parquet table with a `path` column and label columns.

    Raises:
        DataError: The table cannot be read or lacks a column, or none of its files exists.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(f"{printable(path)}: needs pyarrow: pip install 'openjepa[parquet]'.") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            label = _label_column(path, table.schema_arrow.names, target)

            def rows() -> Iterator[tuple[object, str | None]]:
                for batch in table.iter_batches(columns=list({"path", label or "path"})):
                    labels = map(label_text, batch[label].to_pylist()) if label else [None] * len(batch)
                    yield from zip(batch["path"].to_pylist(), labels, strict=True)

            return open_rows(path, rows(), target=target, name=name)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{printable(path)}: cannot be read as parquet: {error}.") from error


def _open_text(path: str, *, newline: str) -> TextIO:
    try:
        return open(path, encoding="utf-8-sig", errors="surrogateescape", newline=newline)
    except OSError as error:
        raise DataError(f"{printable(path)}: cannot be read: {error.strerror}.") from error


def _label_column(path: str, columns: Sequence[str], target: str | None) -> str | None:
    """The column that holds the label: `target`, or else the first of the usual names that is there."""
    for column in ("path", target or "path"):
        if column not in columns:
            present = printable(", ".join(columns)) or "none"
            raise DataError(f"{printable(path)}: has no column {column!r}; its columns are {present}.")
    return target or next((column for column in LABEL_COLUMNS if column in columns), None)


def open_rows(
    manifest: str,
    rows: Iterable[tuple[object, str | None]],
    *,
    target: str | None,
    name: str,
    root: str | None = None,
) -> FileSource:
    """A source from (path, class) rows.

    Args:
        manifest: The file that they come from, for errors.
        rows: Of the images.
        target: The column that the classes are from, if one was asked for.
        name: What the user called it.
        root: What paths are relative to; by default the manifest's folder.

    Raises:
        DataError: No path in a row, no rows, no labels where asked for, or none of the files exists.
    """
    root = root or os.path.dirname(os.path.abspath(manifest))
    names, sizes, changes = Names(), array("q"), array("q")

    def classes() -> Iterator[str | None]:
        for row, (path, value) in enumerate(rows, start=1):
            if not isinstance(path, str) or not path:
                raise DataError(f"{printable(manifest)}: row {row} has no path (found {path!r}).")
            names.append(path.encode("utf-8", "surrogateescape"))
            try:
                status = os.stat(os.path.join(root, path))
                size, changed = status.st_size, status.st_mtime_ns
            except (OSError, ValueError):  # ValueError: a NUL, which no path may hold
                size, changed = GONE, 0
            sizes.append(size)
            changes.append(changed)
            yield value

    labels, class_names = index_labels(classes())
    if not len(names):
        raise DataError(f"{printable(manifest)}: names no images; it needs one path a row.")
    if max(sizes) == GONE:
        raise DataError(
            f"{printable(manifest)}: none of the {len(names)} files it names exists, the first is"
            f" {printable(names[0])}; paths are relative to {printable(root)}."
        )
    if target is not None and labels is None:
        raise DataError(f"{printable(manifest)}: the column {target!r} is empty.")
    listing = Listing(names, sizes, place=printable(root), changes=changes)
    return FileSource(name, root, names, labels, class_names, listing)
