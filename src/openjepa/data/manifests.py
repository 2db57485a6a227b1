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
from openjepa.data.listing import LABEL_COLUMNS, PATH_COLUMNS, Names, index_labels, label_text, printable
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
    """Open a CSV (or .tsv) table with a header, a column of paths, and label columns.

    Raises:
        DataError: The table cannot be read or lacks a column, or none of its files exists.
    """
    with _open_text(path, newline="") as lines:
        header = lines.readline()
        lines.seek(0)
        usual = "\t" if path.lower().endswith(".tsv") else ","
        between = next(
            (sign for sign in (usual, ";", "\t", "|") if sign in header), usual
        )  # Excel's own is ";"
        table = csv.DictReader(lines, delimiter=between, skipinitialspace=True)
        try:
            table.fieldnames = [column.strip() for column in table.fieldnames or ()]
            column, label = _columns(path, table.fieldnames, target)
            rows = ((row[column], label_text(row[label]) if label else None) for row in table)
            return open_rows(path, rows, target=target, name=name)
        except csv.Error as error:
            raise DataError(f"{printable(path)}, line {table.line_num}: not a CSV table: {error}.") from error


def open_parquet(path: str, *, target: str | None, name: str) -> FileSource:
    """Open a parquet table with a column of paths and label columns.

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
            schema = table.schema_arrow
            for field in schema:
                if pyarrow.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
                    raise DataError(
                        f"{printable(path)}: its column {field.name!r} holds images' bytes, as Hugging Face writes "
                        "them; these are not read from parquet. Write each image to a file, named in a column 'path'."
                    )
            column, label = _columns(path, schema.names, target)

            def rows() -> Iterator[tuple[object, str | None]]:
                for batch in table.iter_batches(columns=list({column, label or column})):
                    labels = map(label_text, batch[label].to_pylist()) if label else [None] * len(batch)
                    yield from zip(batch[column].to_pylist(), labels, strict=True)

            return open_rows(path, rows(), target=target, name=name)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{printable(path)}: cannot be read as parquet: {error}.") from error


def _open_text(path: str, *, newline: str) -> TextIO:
    try:
        return open(path, encoding="utf-8-sig", errors="surrogateescape", newline=newline)
    except OSError as error:
        raise DataError(f"{printable(path)}: cannot be read: {error.strerror}.") from error


def _columns(path: str, columns: Sequence[str], target: str | None) -> tuple[str, str | None]:
    """The columns of paths and of labels: `target`, or else the first of the usual names that is there, if any."""
    column = _column(columns, PATH_COLUMNS)
    label = _column(columns, LABEL_COLUMNS if target is None else (target,))
    if column is None or (label is None and target is not None):
        present, missing = printable(", ".join(columns)) or "none", "path" if column is None else target
        raise DataError(f"{printable(path)}: has no column {missing!r}; its columns are {present}.")
    return column, label


def _column(columns: Sequence[str], wanted: Sequence[str]) -> str | None:
    """The first that is wanted, if need be in other capitals."""
    by_lower = {column.lower(): column for column in reversed(columns)}
    found = (name if name in columns else by_lower.get(name.lower()) for name in wanted)
    return next((name for name in found if name is not None), None)


def _state(path: str) -> tuple[int, int]:
    """Size and time of change of a file; `GONE` and 0 where there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a NUL, which no path may hold
        return GONE, 0
    return status.st_size, status.st_mtime_ns


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
            size, changed = _state(os.path.join(root, path))
            if size == GONE and "\\" in path and os.sep == "/":  # a table made on Windows
                path_here = path.replace("\\", "/")
                size, changed = _state(os.path.join(root, path_here))
                path = path if size == GONE else path_here
            names.append(path.encode("utf-8", "surrogateescape"))
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
