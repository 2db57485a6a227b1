"""Embedding files: whatever is left out and wherever the writer is stopped, the same rows in the same order."""

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openjepa.errors import UserError
from openjepa.formats import embeddings
from openjepa.formats.embeddings import EmbeddingFile, part_size, read_metadata, unfinished

parquet = pytest.importorskip("pyarrow.parquet")

ASKED: dict[str, Any] = {"checkpoint": "runs/a", "weights_sha256": "ab", "size": (32, 32), "patches": None}
NUM_SAMPLES, BATCH, WIDTH = 23, 2, 3
BAD = {
    0,
    7,
    8,
    9,
    10,
    11,
    12,
    13,
    14,
    15,
    21,
    22,
}  # parts of four: some end bad, one is all bad


def open_file(out: Path, **options: Any) -> EmbeddingFile:
    asked = ASKED | options.pop("asked", {})
    return EmbeddingFile(out, asked, num_samples=NUM_SAMPLES, part_size=4, **options)


def write(out: Path, *, patches: bool = False, **options: Any) -> None:
    """Every good sample's row is its number."""
    file = open_file(out, **options)
    for start in range(file.next_sample, NUM_SAMPLES, BATCH):
        samples = np.array([s for s in range(start, min(start + BATCH, NUM_SAMPLES)) if s not in BAD])
        if len(samples):
            rows = samples[:, None].repeat(WIDTH, 1).astype(np.float32)
            tokens = np.stack([rows, rows + 0.5], axis=1) if patches else None
            file.add(samples, [f"{sample}.jpg" for sample in samples], rows, tokens)
    file.finish()


def read(out: Path) -> dict[str, list[Any]]:
    return parquet.read_table(out).to_pydict()


def test_rows_in_order_without_the_bad_ones(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "a.parquet"
    write(out)
    good = [sample for sample in range(NUM_SAMPLES) if sample not in BAD]
    assert read(out) == {
        "path": [f"{sample}.jpg" for sample in good],
        "embedding": [[float(sample)] * WIDTH for sample in good],
    }
    assert read_metadata(out) == ASKED | {"size": [32, 32]}
    assert [path.name for path in out.parent.iterdir()] == ["a.parquet"]
    assert parquet.read_schema(out).field("embedding").type.value_type == "float"


def test_patches_are_lists_of_lists(tmp_path: Path) -> None:
    asked = {"patches": {"grid": [1, 2], "size": WIDTH}}
    write(tmp_path / "a.parquet", patches=True, asked=asked)
    rows = read(tmp_path / "a.parquet")
    assert rows["patches"][3] == [[4.0] * 3, [4.5] * 3]
    assert rows["embedding"][3] == [4.0] * 3


PLACES = [
    "embed-part-4", "embed-part-16", "embed-part-20", "embed-part-23", "embed-merged", "embed-replaced",
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_stopped_anywhere_and_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    write(tmp_path / "whole.parquet")

    def stop(name: str) -> None:
        if name == place:
            raise KeyboardInterrupt

    out = tmp_path / "a.parquet"
    with monkeypatch.context() as patched:
        patched.setattr(embeddings, "failpoint", stop)
        with pytest.raises(KeyboardInterrupt):
            write(out)
    assert unfinished(out) == ASKED | {"size": [32, 32]}
    going_on = open_file(out).next_sample
    assert going_on == (NUM_SAMPLES if place in PLACES[-2:] else int(place.split("-")[-1]))
    write(out, asked={"checkpoint": "the same by another name"})
    assert read(out) == read(tmp_path / "whole.parquet")
    assert (
        parquet.ParquetFile(out).num_row_groups
        == parquet.ParquetFile(tmp_path / "whole.parquet").num_row_groups
    )
    assert not unfinished(out)
    assert len(list(tmp_path.iterdir())) == 2


def test_half_written_files_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "a.parquet"
    open_file(out)
    for name in ("part.tmp", "merged.tmp", "manifest.json.tmp"):
        (tmp_path / "a.parquet.parts" / name).write_bytes(b"half")
    write(out)
    assert len(read(out)["path"]) == NUM_SAMPLES - len(BAD)


def test_others_work_is_not_mixed_in(tmp_path: Path) -> None:
    out = tmp_path / "a.parquet"
    open_file(out)
    with pytest.raises(
        UserError, match=r"(?s)a\.parquet\.parts.*weights_sha256: 'ab' then, 'cd' now.*--overwrite"
    ):
        open_file(out, asked={"weights_sha256": "cd"})
    write(out, asked={"weights_sha256": "cd"}, overwrite=True)
    with pytest.raises(UserError, match=r"a\.parquet: exists; use --overwrite"):
        write(out)
    write(out, overwrite=True)
    assert read_metadata(out)["weights_sha256"] == "ab"
    (tmp_path / "a.parquet.parts").mkdir()
    (tmp_path / "a.parquet.parts" / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json: can't be read"):
        unfinished(out)


def test_a_full_disk_keeps_the_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "a.parquet"

    def full(descriptor: int) -> None:
        if len(list((tmp_path / "a.parquet.parts").glob("*-*.parquet"))) == 2:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(embeddings.os, "fsync", full)
        with pytest.raises(UserError, match="No space left on device"):
            write(out)
    assert open_file(out).next_sample == 16
    shutil.rmtree(tmp_path / "a.parquet.parts")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        open_file(tmp_path / "file" / "a.parquet")
    with pytest.raises(UserError, match="a folder; --out is a file"):
        open_file(tmp_path)


def test_parts_are_whole_batches_and_fit_into_memory() -> None:
    assert part_size(16, row_bytes=1536) == 2048
    assert part_size(100, row_bytes=1536) == 2100
    with_patches = part_size(16, row_bytes=4 * 768 * 197)
    assert with_patches == 224
    assert part_size(16, row_bytes=2**40) == 16


def test_other_files_and_no_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "no.parquet").write_bytes(b"something else")
    with pytest.raises(UserError, match="can't be read as parquet"):
        read_metadata(tmp_path / "no.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    parquet.write_table(pyarrow.table({"path": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(UserError, match="not written by `openjepa embed`"):
        read_metadata(tmp_path / "other.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'openjepa\[parquet\]'"):
        open_file(tmp_path / "a.parquet")
