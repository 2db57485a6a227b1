"""Data sets are told apart by their content; very large ones by a sample of it, without being read whole."""

import hashlib
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from make_images import encode
from openjepa.data import builtin, fingerprint
from openjepa.data.bad_files import BadImage
from openjepa.data.folders import FileSource
from openjepa.data.sources import Source, open_source, same_data


def images(seed: int, number: int = 12) -> dict[str, bytes]:
    """Bitmaps of one size in bytes, under the same names whatever the seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (number, 4, 4, 3), np.uint8)
    return {f"a/{place:02d}.bmp": encode(image, "BMP") for place, image in enumerate(pixels)}


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, raw in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(raw)
    return root


def sources(top: Path, files: dict[str, bytes]) -> dict[str, Source]:
    """The same images as a folder, a list and a tar."""
    folder = write(top / "images", files)
    (top / "list.txt").write_text("".join(f"images/{name}\n" for name in files))
    with tarfile.open(top / "images.tar", "w") as tar:
        for name in files:
            tar.add(folder / name, name)
    return {
        "folder": open_source(folder),
        "list": open_source(top / "list.txt"),
        "tar": open_source(top / "images.tar"),
    }


def test_names_and_sizes_alike_are_not_the_same_data(tmp_path: Path) -> None:
    one, same, other = (
        sources(tmp_path / name, images(seed)) for name, seed in (("1", 0), ("2", 0), ("3", 1))
    )
    for kind, source in one.items():
        assert len(bytes.fromhex(source.fingerprint)) == hashlib.sha256().digest_size
        assert source.names_and_sizes == other[kind].names_and_sizes
        assert source.fingerprint == same[kind].fingerprint == source.cache_key
        assert source.fingerprint != other[kind].fingerprint
        assert pickle.loads(pickle.dumps(source)).fingerprint == source.fingerprint


def test_a_name_a_byte_and_an_absence_make_another_set(tmp_path: Path) -> None:
    files = images(0)
    name, *_ = files
    flipped = bytearray(files[name])
    flipped[-1] ^= 1
    renamed = {f"a/{number}.bmp": raw for number, raw in enumerate(files.values())}
    seen = {
        open_source(write(tmp_path / place, content)).fingerprint
        for place, content in (("1", files), ("2", files | {name: bytes(flipped)}), ("3", renamed))
    }
    assert len(seen) == 3
    gone = open_source(tmp_path / "1")
    (tmp_path / "1" / name).unlink()  # after it was listed
    assert gone.fingerprint not in seen


def test_a_huge_set_is_known_by_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one is told by it; a copy at another place is the same data, but not the same for the cache."""
    monkeypatch.setattr(fingerprint, "MOST_FILES", 50)
    monkeypatch.setattr(fingerprint, "SAMPLE_FILES", 8)
    read: list[int] = []
    whole_read = FileSource.read

    def count(source: FileSource, index: int) -> bytes:
        read.append(index)
        return whole_read(source, index)

    monkeypatch.setattr(FileSource, "read", count)
    one = open_source(write(tmp_path / "1", images(0, 100)))
    assert read == []
    copy, other = (
        open_source(write(tmp_path / place, images(seed, 100))) for place, seed in (("2", 0), ("3", 1))
    )
    assert one.fingerprint == copy.fingerprint != other.fingerprint
    assert sorted(set(read)) == [0, 14, 28, 42, 56, 70, 84, 99]
    assert len(read) == 24
    assert one.cache_key != copy.cache_key
    os.utime(tmp_path / "1" / "a" / "05.bmp", (1, 1))
    later = open_source(tmp_path / "1")
    assert later.fingerprint == one.fingerprint
    assert later.cache_key != one.cache_key


def test_a_set_of_huge_files_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(next(iter(images(0).values())))
    monkeypatch.setattr(fingerprint, "MOST_BYTES", 11 * size)
    monkeypatch.setattr(fingerprint, "SAMPLE_BYTES", 4 * size)
    source = open_source(write(tmp_path, images(0)))
    assert isinstance(source, FileSource)
    assert source.listing.sample is not None
    assert source.listing.sample.tolist() == [0, 4, 8]


def test_built_ins_are_known_by_their_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENJEPA_DATA", str(tmp_path))
    found = []
    for seed in (0, 1):
        records = np.random.default_rng(seed).integers(0, 10, (4, 3073), np.uint8)
        write(tmp_path, {"cifar-10-batches-bin/test_batch.bin": records.tobytes()})
        found.append(builtin.open_builtin("cifar10", split="test"))
    assert found[0].names_and_sizes == found[1].names_and_sizes
    assert found[0].fingerprint != found[1].fingerprint


def test_what_an_earlier_version_recorded_is_compared_as_it_did(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, other = (open_source(write(tmp_path / str(seed), images(seed))) for seed in (0, 1))
    assert same_data(source, source.fingerprint)
    assert not same_data(source, other.fingerprint)
    assert caplog.text == ""
    assert same_data(source, other.names_and_sizes)
    assert "compared by names and sizes, not by content" in caplog.text


def test_an_unreadable_file_does_not_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(write(tmp_path, images(0)))
    before = open_source(tmp_path).fingerprint

    def refuse(source: FileSource, index: int) -> bytes:
        raise BadImage("cannot be read: Input/output error")

    monkeypatch.setattr(FileSource, "read", refuse)
    assert source.fingerprint != before
