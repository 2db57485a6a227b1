"""Embeddings as a parquet file, written part by part: memory stays flat, and a kill loses one part at most.

Columns: `path` (string), `embedding` (list of D float32) and, where they were asked for, `patches` (list of N lists
of D float32, the grid's rows one after another). The schema's metadata says under `openjepa`, in JSON, what made them.

While FILE.parquet is being made, FILE.parquet.parts/ holds `manifest.json`, the same JSON, and the finished parts, each
named by the first and the past-last sample that it covers. The last step merges them.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from openjepa.errors import UserError
from openjepa.failpoint import failpoint
from openjepa.overwrite import Sources, check_file

METADATA_KEY = b"openjepa"
PART_IMAGES = 2048
PART_BYTES = 128 * 2**20  # a part is held in memory; 2,048 images with the patches of a ViT-B would be 1.2 GB
_MANIFEST = "manifest.json"
_PART = re.compile(r"(\d+)-(\d+)\.parquet")
_DRAFTS = ("part.tmp", "merged.tmp", f"{_MANIFEST}.tmp")


def part_size(batch_size: int, *, row_bytes: int) -> int:
    """Samples a part: whole batches, so that a resumed run cuts batches, and rounds, as one without a break."""
    num_images = max(1, min(PART_IMAGES, PART_BYTES // row_bytes))
    return -(-num_images // batch_size) * batch_size


def unfinished(out: Path) -> dict[str, Any] | None:
    """What an earlier process began to write to ``out``: its metadata, or None.

    Raises:
        UserError: There is something that cannot be read.
    """
    try:
        return json.loads((_folder(out) / _MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{_folder(out) / _MANIFEST}: can't be read: {error}. Use --overwrite, or remove the folder"
        ) from None


@contextlib.contextmanager
def only_writer(out: Path) -> Iterator[None]:
    """Keep other processes from writing a file of embeddings; a kill gives it free.

    Raises:
        UserError: Another process writes it, or its folder cannot be written to.
    """
    lock = FileLock(out.with_name(f".{out.name}.lock"), timeout=0)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise UserError(
            f"{out}: another process writes it at this moment; wait for it, or name another --out"
        ) from None
    except OSError as error:
        raise UserError(f"{out.parent}: cannot be written: {error.strerror or error}") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows keeps files that are open
            Path(lock.lock_file).unlink()
        lock.release()


class EmbeddingFile:
    """A parquet file that is being written, perhaps begun by an earlier process.

    Args:
        out: The file.
        metadata: What makes its rows, in JSON values. An unfinished file is gone on with where all of it is the
            same but `checkpoint`: the weights' hash is in it too, and a name is only a name.
        num_samples: Samples in all, with those that will be left out.
        part_size: Samples a part.
        overwrite: Begin anew; remove what this class wrote there.

    Attributes:
        next_sample: Where to go on: all samples before are in finished parts.
        num_rows: Rows so far.

    Raises:
        UserError: No pyarrow; the file is there; an unfinished one is of other images or another encoder; or the
            folder cannot be written to.
    """

    def __init__(
        self,
        out: Path,
        metadata: Mapping[str, Any],
        *,
        num_samples: int,
        part_size: int,
        overwrite: bool = False,
    ) -> None:
        _import_pyarrow()
        if out.is_dir():
            raise UserError(f"{out}: a folder; --out is a file, such as {out / 'embeddings.parquet'}")
        self.out, self.folder = out, _folder(out)
        self.metadata: dict[str, Any] = json.loads(json.dumps(metadata))
        self.num_samples, self.part_size = num_samples, part_size
        self.next_sample = self.num_rows = 0
        self._waiting: list[Any] = []  # tables of the part that is being filled
        if overwrite:
            check_embeddings(out, sources={})
            out.unlink(missing_ok=True)
            self._remove_parts()
        earlier = unfinished(out)
        if out.exists():
            # Complete, if the kill came while its parts were being removed.
            if earlier is None or self._differences(earlier) or self._differences(read_metadata(out)):
                raise UserError(f"{out}: exists; use --overwrite, or another --out")
            self.next_sample, self.num_rows = num_samples, _num_rows(out)
        elif earlier is None:
            self._begin()
        else:
            self._go_on(earlier)

    def add(
        self,
        samples: NDArray[np.int64],
        paths: Sequence[str],
        embeddings: NDArray[np.float32],
        patches: NDArray[np.float32] | None = None,
    ) -> None:
        """Take the rows of a batch, which lies within one part; a part is written when it is full.

        Args:
            samples: (B,), rising over all calls; what is left out has no row.
            paths: B names.
            embeddings: (B, D).
            patches: (B, N, D), in every call or in none.
        """
        part = (int(samples[0]) - self.next_sample) // self.part_size
        if part:  # the ends of parts, or whole parts, were left out
            self._flush(self.next_sample + part * self.part_size)
        end = self.next_sample + self.part_size
        assert samples[-1] < end, "a batch lies within one part"
        self._waiting.append(_table(paths, embeddings, patches))
        self.num_rows += len(paths)
        if samples[-1] == end - 1:
            self._flush(end)

    def finish(self) -> None:
        """Write the last part, merge all row group by row group, and remove the folder of parts.

        Raises:
            UserError: The disk is full; the parts are kept.
        """
        if not self.out.exists():
            if self.next_sample < self.num_samples:
                self._flush(self.num_samples)
            merged = self.folder / "merged.tmp"  # beside it, no draft would be left there by a kill
            self._write(merged, self._row_groups())
            failpoint("embed-merged")
            os.replace(merged, self.out)
        failpoint("embed-replaced")
        self._remove_parts()

    def _remove_parts(self) -> None:
        """Remove what was written beside the file, the manifest last; anything else there stays."""
        for path, _, _ in self._parts() if self.folder.is_dir() else ():
            path.unlink()
        for name in (*_DRAFTS, _MANIFEST):
            (self.folder / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # there is no folder, or something else lies in it
            self.folder.rmdir()

    def _begin(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            draft = self.folder / f"{_MANIFEST}.tmp"
            draft.write_text(json.dumps(self.metadata, indent=1), encoding="utf-8")
            os.replace(draft, self.folder / _MANIFEST)
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be written: {error.strerror}") from error

    def _go_on(self, earlier: Mapping[str, Any]) -> None:
        if differences := self._differences(earlier):
            raise UserError(
                f"{self.folder}: holds an unfinished file that was asked for otherwise:\n"
                + "\n".join(differences)
                + "\nAsk for the same again, use --overwrite to begin anew, or remove the folder"
            )
        for path, first, last in self._parts():
            assert first == self.next_sample, path
            self.next_sample = last
            self.num_rows += _num_rows(path)

    def _differences(self, earlier: Mapping[str, Any]) -> list[str]:
        return [
            f"  {key}: {earlier.get(key)!r} then, {self.metadata.get(key)!r} now"
            for key in sorted((earlier.keys() | self.metadata.keys()) - {"checkpoint"})
            if earlier.get(key) != self.metadata.get(key)
        ]

    def _parts(self) -> list[tuple[Path, int, int]]:
        """Finished parts with the first and the past-last sample of each, in order."""
        found = [(path, _PART.fullmatch(path.name)) for path in self.folder.iterdir()]
        parts = [(path, int(match[1]), int(match[2])) for path, match in found if match]
        return sorted(parts, key=lambda part: part[1:])

    def _flush(self, end: int) -> None:
        """Write what waits as the part up to a sample."""
        draft = self.folder / "part.tmp"
        self._write(draft, self._waiting)
        os.replace(draft, self.folder / f"{self.next_sample:012d}-{end:012d}.parquet")
        self._waiting, self.next_sample = [], end
        failpoint(f"embed-part-{end}")

    def _row_groups(self) -> Iterator[Any]:
        for path, _, _ in self._parts():
            with _import_pyarrow().parquet.ParquetFile(path) as part:
                for group in range(part.num_row_groups):
                    yield part.read_row_group(group)

    def _write(self, path: Path, tables: Iterable[Any]) -> None:
        pyarrow = _import_pyarrow()
        schema = _schema(
            patches=self.metadata["patches"] is not None, metadata={METADATA_KEY: json.dumps(self.metadata)}
        )
        # Random-looking floats: neither a dictionary nor a compressor nor bounds find anything in them.
        plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
        try:
            with path.open("wb") as stream:
                with pyarrow.parquet.ParquetWriter(stream, schema, **plain) as writer:
                    for table in tables:
                        if len(table):
                            writer.write_table(table)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            path.unlink(missing_ok=True)
            raise UserError(
                f"{path}: cannot be written: {error.strerror or error}. The finished parts are kept; free some "
                "space and run the same command again to go on"
            ) from error


def check_embeddings(out: Path, *, sources: Sources) -> None:
    """Refuse to overwrite a file that `openjepa embed` did not write, or one that the command reads.

    Raises:
        UserError: As said, or no pyarrow.
    """
    check_file(out, sources=sources, ours=_is_embeddings, what="a file that openjepa embed wrote")


def _is_embeddings(path: Path) -> bool:
    try:
        read_metadata(path)
    except UserError:
        return False
    return True


def read_metadata(path: Path) -> dict[str, Any]:
    """What made the rows of an embedding file.

    Raises:
        UserError: No pyarrow, or no such file, or one that something else wrote.
    """
    pyarrow = _import_pyarrow()
    try:
        metadata = pyarrow.parquet.read_schema(path).metadata or {}
        return json.loads(metadata[METADATA_KEY])
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path}: can't be read as parquet: {error}") from error
    except KeyError:
        raise UserError(f"{path}: not written by `openjepa embed`: no such metadata in it") from None


def read_embeddings(path: Path) -> tuple[list[str], NDArray[np.float32]]:
    """Paths and embeddings (N, D) of a file of `openjepa embed`; patches, if any, are not read.

    Raises:
        UserError: No pyarrow, or the file can't be read.
    """
    pyarrow = _import_pyarrow()
    size = read_metadata(path)["embedding"]["size"]
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            found = np.empty((file.metadata.num_rows, size), np.float32)
            paths: list[str] = []
            for batch in file.iter_batches(columns=["path", "embedding"]):  # memory: the numbers once
                start = len(paths)
                paths += batch.column("path").to_pylist()
                found[start : len(paths)] = batch.column("embedding").flatten().to_numpy().reshape(-1, size)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise UserError(f"{path}: can't be read: {error}") from error
    return paths, found


def _num_rows(path: Path) -> int:
    return int(_import_pyarrow().parquet.read_metadata(path).num_rows)


def _folder(out: Path) -> Path:
    return out.with_name(out.name + ".parts")


def _schema(*, patches: bool, metadata: Mapping[bytes, str] | None = None) -> Any:
    pyarrow = _import_pyarrow()
    vector = pyarrow.list_(pyarrow.float32())
    columns = {"path": pyarrow.string(), "embedding": vector}
    if patches:
        columns["patches"] = pyarrow.list_(vector)
    return pyarrow.schema(columns, metadata=metadata)


def _table(paths: Sequence[str], embeddings: NDArray[np.float32], patches: NDArray[np.float32] | None) -> Any:
    columns = [list(paths), _lists(embeddings)]
    if patches is not None:
        columns.append(_lists(patches))
    return _import_pyarrow().table(columns, schema=_schema(patches=patches is not None))


def _lists(values: NDArray[np.float32]) -> Any:
    """(B, …, D) -> an array of B lists (of lists) of float32, without a Python object a number."""
    pyarrow = _import_pyarrow()
    array = pyarrow.array(np.ascontiguousarray(values, np.float32).reshape(-1))
    for axis in range(values.ndim - 1, 0, -1):
        ends = np.arange(0, len(array) + 1, values.shape[axis], dtype=np.int32)
        array = pyarrow.ListArray.from_arrays(ends, array)
    return array


def _import_pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError("embeddings in a file need pyarrow: pip install 'openjepa[parquet]'") from None
    return pyarrow
