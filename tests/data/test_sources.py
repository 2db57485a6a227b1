"""Folders, manifests, tars and built-ins: what is listed, in which order, with which labels, and what is refused."""

import bz2
import gzip
import io
import json
import lzma
import multiprocessing
import os
import pickle
import tarfile
from array import array
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from make_images import jpeg
from openjepa.data import builtin
from openjepa.data.bad_files import BadImage
from openjepa.data.decode import decode
from openjepa.data.listing import Names, index_labels, label_text, printable
from openjepa.data.sources import Source, open_source
from openjepa.data.tars import expand_shards
from openjepa.errors import DataError

IMAGE = jpeg(8, 8)


def make_folder(root: Path, *names: str) -> Path:
    """Files with their own names as contents."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode("utf-8", "surrogateescape"))
    return root


def make_tar(path: Path, members: dict[str, bytes], **options: Any) -> Path:
    with tarfile.open(path, "w", **options) as tar:
        for name, raw in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            tar.addfile(member, io.BytesIO(raw))
    return path


def listed(source: Source, root: Path) -> list[str]:
    return [os.path.relpath(source.path(index), root) for index in range(len(source))]


def labels_of(source: Source) -> list[int]:
    assert source.labels is not None
    assert source.labels.dtype == np.int64
    return [int(label) for label in source.labels]


def read_all(source: Source) -> list[Any]:
    return [source.read(index) for index in range(len(source))]


# ------------------------------------------------------------------------------------------- folders


def test_a_folder_is_listed_sorted_at_any_depth(tmp_path: Path) -> None:
    deep = "cat/" + "d/" * 60 + "deep.PNG"
    names = [
        "root.jpg",
        "dog/a.jpeg",
        "cat/b.jpg",
        "cat-b/c.jpg",
        "cat.d/d.jpg",
        deep,
        "dog/x/same.jpg",
        "cat/same.jpg",
    ]
    make_folder(
        tmp_path,
        *names,
        "dog/notes.txt",
        "jpg",
        "dog/.hidden.jpg",
        "._dog/a.jpg",
        ".git/a.jpg",
        "dog/._a.jpg",
    )
    source = open_source(tmp_path)
    expected = sorted(names, key=os.fsencode)
    assert listed(source, tmp_path) == expected
    assert read_all(source) == [name.encode() for name in expected]
    assert source.classes == ("cat", "cat-b", "cat.d", "dog")
    assert labels_of(source) == [source.classes.index(n.split("/")[0]) if "/" in n else -1 for n in expected]


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    source = open_source(str(make_folder(tmp_path, "b.jpg", "a.jpg")))
    assert source.labels is None
    assert source.classes == ()
    assert source.name == str(tmp_path)


def test_links_are_followed_once_a_class_and_loops_end(tmp_path: Path) -> None:
    outside = make_folder(tmp_path / "outside", "far.jpg")
    root = make_folder(tmp_path / "root", "a/1.jpg")
    links = [
        ("a/loop", root),
        ("b", outside),
        ("z", outside),
        ("self.jpg", Path("self.jpg")),
        ("me", Path("me")),
    ]
    for link, target in links:
        (root / link).symlink_to(target)
    (root / "c.jpg").symlink_to(outside / "far.jpg")
    (root / "gone.jpg").symlink_to(root / "nothing.jpg")
    source = open_source(root)
    assert listed(source, root) == ["a/1.jpg", "b/far.jpg", "c.jpg", "gone.jpg", "self.jpg", "z/far.jpg"]
    assert source.read(2) == b"far.jpg"
    for index in (3, 4):
        with pytest.raises(BadImage, match="cannot be read: "):
            source.read(index)


def test_odd_names_work_and_are_escaped(tmp_path: Path) -> None:
    names = [
        "ü/日本 \U0001f600.jpg",
        "two\nlines.jpg",
        "x" * 246 + ".jpg",
        "tab\t.jpg",
        os.fsdecode(b"\xff\xfe.jpg"),
    ]
    try:
        make_folder(tmp_path, *names)
    except OSError:
        pytest.skip("this file system refuses such names")
    source = open_source(tmp_path)
    assert sorted(read_all(source)) == sorted(name.encode("utf-8", "surrogateescape") for name in names)
    paths = [source.path(index) for index in range(len(source))]
    assert all(len(path.splitlines()) == 1 and path.encode("utf-8") for path in paths)
    assert str(tmp_path / names[0]) in paths
    assert str(tmp_path / "two\\nlines.jpg") in paths
    assert str(tmp_path / "\\udcff\\udcfe.jpg") in paths


def test_a_subfolder_that_cannot_be_read_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make_folder(tmp_path, "a/1.jpg", "secret/2.jpg", "z/3.jpg")
    scandir = os.scandir

    def guarded(path: bytes) -> Any:  # the tests may run as root, who may read everything
        if b"secret" in path:
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    source = open_source(tmp_path)
    assert listed(source, tmp_path) == ["a/1.jpg", "z/3.jpg"]
    assert "secret" in caplog.text
    assert "Permission denied" in caplog.text

    with pytest.raises(DataError, match="secret: the folder cannot be read: Permission denied"):
        open_source(tmp_path / "secret")


def test_a_file_that_vanishes_is_a_bad_image(tmp_path: Path) -> None:
    source = open_source(make_folder(tmp_path, "a.jpg", "b.jpg"))
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(BadImage, match="cannot be read: No such file"):
        source.read(0)


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"/nowhere: does not exist") as caught:
        open_source(tmp_path / "nowhere")
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(DataError, match=r"no images in this folder; files ending in \.avif .* \.webp"):
        open_source(make_folder(tmp_path / "text", "a/readme.txt"))
    with pytest.raises(DataError, match=r"only archives \(sub/a\.zip, 2 in all\): unpack them.*\.tar"):
        open_source(make_folder(tmp_path / "archives", "x.tar", "sub/a.zip"))
    with pytest.raises(DataError, match="For one image, give its folder"):
        open_source(make_folder(tmp_path, "one.jpg") / "one.jpg")
    with pytest.raises(DataError, match="Unpack the archive"):
        open_source(make_folder(tmp_path, "all.zip") / "all.zip")


# ----------------------------------------------------------------------------------------- manifests


def test_a_list_file(tmp_path: Path) -> None:
    make_folder(tmp_path, "in/b.jpg", "in/ a#1.jpg", "ü.jpg")
    far = make_folder(tmp_path / "far", "z.jpg") / "z.jpg"
    (tmp_path / "in/list.txt").write_bytes(
        f"\ufeffb.jpg\r\n a#1.jpg\n\n../ü.jpg\n{far}\nmissing.jpg".encode()
    )
    source = open_source(tmp_path / "in/list.txt")
    assert read_all_but_last(source) == [b"in/b.jpg", b"in/ a#1.jpg", "ü.jpg".encode(), b"z.jpg"]
    assert source.labels is None
    with pytest.raises(BadImage):
        source.read(4)


def read_all_but_last(source: Source) -> list[Any]:
    return [source.read(index) for index in range(len(source) - 1)]


def test_a_csv_manifest(tmp_path: Path) -> None:
    make_folder(tmp_path, "b.jpg", "a,1.jpg", "c.jpg")
    table = tmp_path / "table.csv"
    table.write_text('path,label,size\nb.jpg,wolf,10\n"a,1.jpg",,9\nc.jpg,ape,9\n')
    source = open_source(table)
    assert read_all(source) == [b"b.jpg", b"a,1.jpg", b"c.jpg"]
    assert source.classes == ("ape", "wolf")
    assert labels_of(source) == [1, -1, 0]
    sizes = open_source(table, target="size")
    assert sizes.classes == ("9", "10")
    assert labels_of(sizes) == [1, 0, 0]
    with pytest.raises(DataError, match="has no column 'species'; its columns are path, label, size"):
        open_source(table, target="species")
    (tmp_path / "table.tsv").write_text("path\tclass\nb.jpg\tx\n")
    assert open_source(tmp_path / "table.tsv").classes == ("x",)


def test_a_parquet_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    make_folder(tmp_path, "b.jpg", "a.jpg", "c.jpg", "d.jpg")
    columns = {
        "path": ["b.jpg", "a.jpg", "c.jpg", "d.jpg"],
        "kind": pyarrow.array(["y", "x", None, "x"]).dictionary_encode(),
        "grade": [3.0, float("nan"), 10.0, None],
    }
    table = tmp_path / "table.parquet"
    parquet.write_table(pyarrow.table(columns), table)
    assert open_source(table).labels is None
    assert labels_of(open_source(table, target="kind")) == [1, 0, -1, 0]
    grades = open_source(table, target="grade")
    assert grades.classes == ("3", "10")
    assert labels_of(grades) == [0, -1, 1, -1]
    with pytest.raises(DataError, match="its columns are path, kind, grade"):
        open_source(table, target="species")

    table.write_bytes(table.read_bytes()[:-20])
    with pytest.raises(DataError, match="cannot be read as parquet"):
        open_source(table)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install 'openjepa\[parquet\]'"):
        open_source(table)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("empty.txt", "\n\n", "names no images"),
        ("empty.csv", "", "has no column 'path'; its columns are none"),
        ("no-path.csv", "file,label\na.jpg,1\n", "has no column 'path'; its columns are file, label"),
        ("no-rows.csv", "path,label\n", "names no images"),
        ("blank.csv", "label,path\n1\n", "row 1 has no path"),
        (
            "gone.txt",
            "x/1.jpg\nx/2.jpg\n",
            "none of the 2 files it names exists, the first is x/1.jpg; paths are relative to /",
        ),
    ],
)
def test_manifests_that_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        open_source(tmp_path / name)


def test_a_target_without_labels_is_refused(tmp_path: Path) -> None:
    make_folder(tmp_path, "a.jpg")
    (tmp_path / "t.csv").write_text("path,label\na.jpg,\n")
    assert open_source(tmp_path / "t.csv").labels is None
    with pytest.raises(DataError, match="the column 'label' is empty"):
        open_source(tmp_path / "t.csv", target="label")
    with pytest.raises(DataError, match="--target is for manifests and tars"):
        open_source(tmp_path, target="species")


# ---------------------------------------------------------------------------------------------- tars

PLAIN = {
    "train/dog/2.jpg": b"dog two",
    ".././train/cat/1.jpg": b"cat one",
    "train/cat/._1.jpg": b"no",
    "train/readme.md": b"no",
    "train/cat/photo.of.cat.png": b"cat dots",
    "train/3.jpg": b"root",
    "train/cat/" + "long" * 50 + ".jpg": b"long",
    "train/dog/ü.jpg": b"umlaut",
}


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_plain_tar(tmp_path: Path, layout: int) -> None:
    members = PLAIN | ({"train/dog/ü.jpg": b"umlaut"} if layout != tarfile.USTAR_FORMAT else {})
    if layout == tarfile.USTAR_FORMAT:  # it has no room for a part of a name above 100 bytes
        members = {name: raw for name, raw in members.items() if "long" not in name}
    source = open_source(make_tar(tmp_path / "a.tar", members, format=layout))
    images = {name.removeprefix(".././"): raw for name, raw in members.items() if raw != b"no"}
    assert listed(source, tmp_path / "a.tar") == list(images)
    assert read_all(source) == list(images.values())
    assert source.classes == ("cat", "dog")
    names = list(images)
    assert labels_of(source) == [{"cat": 0, "dog": 1}.get(name.split("/")[1], -1) for name in names]


def test_a_tar_of_webdataset_samples(tmp_path: Path) -> None:
    members = {
        "a/0001.jpg": b"one", "a/0001.cls": b"7\n", "a/0001.json": b'{"species": "wolf", "age": 3}',
        "a/0002.mask.png": b"mask", "a/0002.jpg": b"two", "a/0002.cls": b"10", "a/0002.json": b'{"species": "ape"}',
        "a/0003.txt": b"a caption", "a/0003.jpg": b"three",
        "b/0003.jpg": b"four", "b/0003.json": b'{"species": null, "age": 5}',
    }  # fmt: skip
    source = open_source(make_tar(tmp_path / "w.tar", members))
    assert read_all(source) == [b"one", b"two", b"three", b"four"]
    assert source.classes == ("7", "10")
    assert labels_of(source) == [0, 1, -1, -1]
    species = open_source(tmp_path / "w.tar", target="species")
    assert species.classes == ("ape", "wolf")
    assert labels_of(species) == [1, 0, -1, -1]
    with pytest.raises(
        DataError, match="no sample has a label 'colour'; those present are: age, cls, species"
    ):
        open_source(tmp_path / "w.tar", target="colour")
    with pytest.raises(DataError, match=r"/0\.json: not json"):
        open_source(make_tar(tmp_path / "bad.tar", {"0.jpg": b"x", "0.json": b"{"}))


def test_patterns_of_tars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(8, 11):
        make_tar(tmp_path / f"s-{number:03}.tar", {f"{'ab'[number % 2]}/{number}.jpg": str(number).encode()})
    source = open_source(str(tmp_path / "s-{008..010}.tar"))
    assert read_all(source) == [b"8", b"9", b"10"]
    assert labels_of(source) == [0, 1, 0]
    assert read_all(open_source(str(tmp_path / "s-*.tar"))) == [b"8", b"9", b"10"]
    assert read_all(open_source(str(tmp_path / "s-{010,008}.tar"))) == [b"10", b"8"]
    monkeypatch.chdir(tmp_path)
    assert expand_shards("s-{008..009}.tar") == [str(tmp_path / "s-008.tar"), str(tmp_path / "s-009.tar")]
    with pytest.raises(DataError, match=r"s-007\.tar: does not exist \(2 of the 5 tars of "):
        open_source(str(tmp_path / "s-{007..011}.tar"))
    with pytest.raises(DataError, match=r"t-\*\.tar: no tar fits"):
        open_source(str(tmp_path / "t-*.tar"))
    with pytest.raises(DataError, match=r"t\.tar: does not exist\.$"):
        open_source(tmp_path / "t.tar")


def test_a_tar_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    raw = make_tar(tmp_path / "a.tar", {f"{number}.jpg": bytes(700) for number in range(3)}).read_bytes()
    end = 3 * (512 + 1024)
    assert len(open_source(tmp_path / "a.tar")) == 3
    for cut in (0, 100, 512, 1000, end - 1, end - 700, end - 1024 - 512, end - 1024 - 100, end, end + 100):
        (tmp_path / "a.tar").write_bytes(raw[:cut])
        with pytest.raises(DataError, match=r"a\.tar: truncated, damaged or no tar .* members could be read"):
            open_source(tmp_path / "a.tar")
    for place in (1536, 1536 + 124, 1536 + 150):  # the second member's header
        damaged = bytearray(raw)
        damaged[place] ^= 0x15
        (tmp_path / "a.tar").write_bytes(damaged)
        with pytest.raises(DataError, match="1 members could be read"):
            open_source(tmp_path / "a.tar")
    (tmp_path / "a.tar").write_bytes(raw + raw)
    with pytest.raises(DataError, match="3 members could be read"):
        open_source(tmp_path / "a.tar")


def test_tars_that_cannot_be_used(tmp_path: Path) -> None:
    raw = make_tar(tmp_path / "whole.tar", {"BZh9.jpg": IMAGE}).read_bytes()
    assert len(open_source(tmp_path / "whole.tar")) == 1
    for name, compress in (("a.tar.gz", gzip), ("b.tgz", gzip), ("c.tar", bz2), ("d.tar.xz", lzma)):
        (tmp_path / name).write_bytes(compress.compress(raw))
        with pytest.raises(DataError, match=r"compressed; .* unpack it"):
            open_source(tmp_path / name)
    with pytest.raises(DataError, match="no images in it"):
        open_source(make_tar(tmp_path / "text.tar", {"a.txt": b"x"}))


def test_links_in_tars_are_left_out_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))
        link = tarfile.TarInfo("b.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "a.jpg"
        tar.addfile(link)
    assert len(open_source(tmp_path / "a.tar")) == 1
    assert "a.tar/b.jpg" in caplog.text


def test_a_tar_written_anew_or_gone(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", {"a.jpg": b"old"})
    old = open_source(path)
    assert old.read(0) == b"old"
    path.unlink()
    source = open_source(make_tar(path, {"a.jpg": b"new"}))
    os.utime(path, ns=(0, 0))
    source = open_source(path)
    assert source.read(0) == b"new"
    path.write_bytes(b"short")
    os.utime(path, ns=(0, 0))
    with pytest.raises(BadImage, match="shorter"):
        source.read(0)


def test_sources_cross_process_borders_and_threads(tmp_path: Path) -> None:
    members = {f"{'ab'[number % 2]}/{number}.jpg": str(number).encode() * 50 for number in range(40)}
    tar = open_source(make_tar(tmp_path / "a.tar", members))
    contents = read_all(tar)  # the parent's handle is open, and must not be shared
    for source in (tar, open_source(make_folder(tmp_path / "f", *members))):
        expected = contents if source is tar else read_all(source)
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(source.read, list(range(40)) * 5)) == expected * 5
        assert read_all(pickle.loads(pickle.dumps(source))) == expected
    with multiprocessing.get_context("spawn").Pool(1) as workers:
        # A bound method, since a child cannot import this module.
        assert workers.map_async(tar.read, [3, 0]).get(timeout=60) == [contents[3], contents[0]]


# ----------------------------------------------------------------------------------------- built-ins


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OPENJEPA_DATA", str(tmp_path))
    monkeypatch.setattr(builtin, "_DEBIAN", tmp_path / "no-debian")
    return tmp_path


def idx(values: np.ndarray) -> bytes:
    shape = np.array(values.shape, ">u4").tobytes()
    return bytes([0, 0, 8, values.ndim]) + shape + values.tobytes()


@pytest.mark.parametrize("packed", [True, False])
def test_fashion_mnist(home: Path, packed: bool) -> None:
    generator = np.random.default_rng(0)
    (home / "fashion-mnist").mkdir()
    expected = {}
    for split, stem in (("train", "train"), ("test", "t10k")):
        images, labels = (
            generator.integers(0, 256, (12, 28, 28), np.uint8),
            generator.integers(0, 10, 12, np.uint8),
        )
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            file = home / "fashion-mnist" / f"{stem}-{kind}-ubyte{'.gz' if packed else ''}"
            file.write_bytes(gzip.compress(idx(values)) if packed else idx(values))
        expected[split] = images, labels
    for data, split in (
        ("fashion-mnist", "train"),
        ("fashion-mnist", "test"),
        ("fashion-mnist:test", "train"),
    ):
        source = open_source(data, split=split)
        images, labels = expected[data.partition(":")[2] or split]
        np.testing.assert_array_equal([source.read(index) for index in range(12)], images[..., None])
        assert labels_of(source) == labels.tolist()
        assert source.classes[9] == "Ankle boot"
        assert source.path(3) == f"fashion-mnist:{data.partition(':')[2] or split}/00003"
        grey = decode(source.read(0), channels=1)
        np.testing.assert_array_equal(grey[..., 0], images[0])
        assert decode(source.read(0)).shape == (28, 28, 3)


def test_broken_copies_of_fashion_mnist(home: Path) -> None:
    folder = home / "fashion-mnist"
    with pytest.raises(DataError, match=r"found no train-images-idx3-ubyte\.gz .* dataset-fashion-mnist"):
        open_source("fashion-mnist")
    folder.mkdir()
    images, labels = idx(np.zeros((4, 28, 28), np.uint8)), idx(np.zeros(4, np.uint8))
    for bad_images, bad_labels, message in [
        (images[:-1], labels, "damaged: 3135 bytes of data"),
        (images[:9], labels, "not an IDX file"),
        (b"text", labels, "not an IDX file"),
        (b"", labels, "not an IDX file"),
        (images, idx(np.zeros(5, np.uint8)), "do not fit"),
        (images, idx(np.full(4, 10, np.uint8)), "do not fit"),
    ]:
        (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(bad_images))
        (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bad_labels))
        with pytest.raises(DataError, match=message):
            open_source("fashion-mnist")
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(images)[:-20])
    with pytest.raises(DataError, match="cannot be read"):
        open_source("fashion-mnist")


def test_cifar10_in_all_its_forms(home: Path) -> None:
    with pytest.raises(
        DataError, match=r"looked in \$OPENJEPA_DATA for .*cifar10-test\.tar.*cifar-10-batches-bin"
    ):
        open_source("cifar10:test")
    (home / "cifar-10-batches-py").mkdir()
    with pytest.raises(DataError, match="holds pickles, which are not read"):
        open_source("cifar10")

    images = np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), np.uint8)
    labels = np.arange(7, dtype=np.uint8)
    records = np.concatenate([labels[:, None], images.transpose(0, 3, 1, 2).reshape(7, -1)], axis=1)
    (home / "cifar-10-batches-bin").mkdir()
    (home / "cifar-10-batches-bin/test_batch.bin").write_bytes(records.tobytes())
    source = open_source("cifar10", split="test")
    np.testing.assert_array_equal([source.read(index) for index in range(7)], images)
    assert labels_of(source) == labels.tolist()
    assert source.classes[6] == "frog"
    (home / "cifar-10-batches-bin/test_batch.bin").write_bytes(records.tobytes()[:-1])
    with pytest.raises(DataError, match="no whole number of 3073-byte records"):
        open_source("cifar10", split="test")

    make_folder(home / "cifar10/test", "cat/1.jpg", "dog/2.jpg")
    assert open_source("cifar10:test").classes == ("cat", "dog")
    make_tar(home / "cifar10-test.tar", {"test/frog/0.jpg": IMAGE, "test/ship/1.jpg": IMAGE})
    assert open_source("cifar10:test").classes == ("frog", "ship")
    assert open_source("cifar10:test").name == "cifar10:test"


def test_without_the_variable_the_message_says_so(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENJEPA_DATA")
    with pytest.raises(DataError, match="set OPENJEPA_DATA to the folder that holds cifar10-train"):
        open_source("cifar10")
    with pytest.raises(DataError, match=r"no-debian\. .*\$OPENJEPA_DATA \(which is not set\)"):
        open_source("fashion-mnist")


def test_names_that_are_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for data in ("hf://org/name:train", "s3://bucket"):
        with pytest.raises(DataError, match="not available in this version"):
            open_source(data)
    with pytest.raises(DataError, match=r"cifar-10: does not exist\. Did you mean cifar10\?"):
        open_source("cifar-10")
    with pytest.raises(DataError, match="has no split 'val'"):
        open_source("cifar10:val")
    with pytest.raises(DataError, match="not a kind of data"):
        open_source(make_folder(tmp_path, "x.yaml") / "x.yaml")
    monkeypatch.chdir(make_folder(tmp_path, "cifar10/a.jpg"))
    assert len(open_source(Path("cifar10"))) == len(open_source("./cifar10")) == 1


# -------------------------------------------------------------------------------------------- tables


def test_a_table_of_names_is_compact() -> None:
    names = [f"n{number % 1000:08d}/n{number:08d}.JPEG".encode() for number in range(20_000)]
    table = Names(names)
    assert list(table) == names
    assert len(pickle.dumps(table)) < 40 * len(names)
    for index in (-1, 20_000):
        with pytest.raises(IndexError):
            table[index]


def test_labels_are_numbered_in_order() -> None:
    labels, classes = index_labels(["10", "9", None, "10"])
    assert classes == ("9", "10")
    assert labels is not None
    assert labels.tolist() == [1, 0, -1, 1]
    assert index_labels(["10", "9", "a"])[1] == ("10", "9", "a")
    assert index_labels([None, None]) == (None, ())
    values: list[object] = [None, "", " ", float("nan"), [1], {}, 2.0, "2.0", "2.", 2.5, " x ", True, -1]
    assert [label_text(value) for value in values] == [None] * 6 + ["2", "2", "2", "2.5", "x", "True", "-1"]


def test_minus_one_is_no_label_but_beside_one_alone(caplog: pytest.LogCaptureFixture) -> None:
    labels, classes = index_labels(["1", "-1", "1"])
    assert classes == ("-1", "1")
    assert labels is not None
    assert labels.tolist() == [1, 0, 1]
    assert not caplog.text
    labels, classes = index_labels(["1", "-1", "0"])
    assert classes == ("0", "1")
    assert labels is not None
    assert labels.tolist() == [1, -1, 0]
    assert "-1 is taken for no label (1 images)" in caplog.text
    assert index_labels(["-1", "-1"]) == (None, ())


def test_names_in_two_unicode_forms_are_one_class() -> None:
    labels, classes = index_labels(["caf\u00e9", "cafe\u0301", "1.0", "tea"])
    assert classes == ("1.0", "caf\u00e9", "tea")
    assert labels is not None
    assert labels.tolist() == [1, 1, 0, 2]


@pytest.mark.parametrize(
    "text",
    [
        '\ufeffpath,label\r\na/1.png,x\r\n"b, c/2.png",y\r\n',
        'path, label\na/1.png, x\n"b, c/2.png", y\n',
        'Path,Label\na/1.png,x\n"b, c/2.png",y\n',
        "path;label\na/1.png;x\nb, c/2.png;y\n",
        'path,label\na\\1.png,x\n"b, c\\2.png",y\n',
        'file_name,label\na/1.png,x\n"b, c/2.png",y\n',
        "path\tlabel\na/1.png\tx\nb, c/2.png\ty\n",
    ],
    ids=["byte-order mark", "blanks", "capitals", "semicolons", "back slashes", "Hugging Face", "tabs"],
)
def test_tables_as_people_have_them(tmp_path: Path, text: str) -> None:
    make_folder(tmp_path, "a/1.png", "b, c/2.png")
    (tmp_path / "table.csv").write_text(text, encoding="utf-8", newline="")
    source = open_source(tmp_path / "table.csv")
    assert source.classes == ("x", "y")
    assert read_all(source) == [b"a/1.png", b"b, c/2.png"]


def test_images_inside_of_parquet_are_refused_in_words(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"bytes": b"x", "path": "1.png"}]
    parquet.write_table(pyarrow.table({"image": rows, "label": [0]}), tmp_path / "hf.parquet")
    with pytest.raises(DataError, match=r"column 'image' holds images' bytes.*not read from parquet"):
        open_source(tmp_path / "hf.parquet")


def test_printable_leaves_ordinary_names_alone() -> None:
    for name in ("a b.jpg", "ü日本\u202f\xa0.jpg", "C:\\x.jpg"):
        assert printable(name) == name
    assert printable(b"a\x00\n\x7f\xff\x85") == "a\\x00\\n\\x7f\\udcff\\udc85"
    assert printable("a\u2028b\x1b[31m") == "a\\u2028b\\x1b[31m"


@pytest.mark.skipif(
    not Path("/usr/share/datasets/fashion-mnist").is_dir(), reason="Debian's package is not installed"
)
def test_the_packaged_fashion_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENJEPA_DATA", raising=False)
    source = open_source("fashion-mnist:test")
    assert len(source) == 10_000
    assert np.bincount(labels_of(source)).tolist() == [1000] * 10


def test_labels_of_json_survive(tmp_path: Path) -> None:
    raw = json.dumps({"label": True, "class": 4}).encode()
    assert open_source(make_tar(tmp_path / "a.tar", {"1.jpg": b"x", "1.json": raw})).classes == ("True",)


def test_a_table_of_names_is_sent_to_workers_as_a_handle() -> None:
    """What goes through the pipe does not grow with the table; both ends read the same memory."""
    table = Names(f"folder/{number:06}.jpg".encode() for number in range(20_000))
    sent = ForkingPickler.dumps(table)
    assert len(sent) < 2_000
    received = pickle.loads(sent)
    assert len(received) == 20_000
    assert received[19_999] == table[19_999] == b"folder/019999.jpg"
    assert all(part.is_shared() for part in received.__getstate__())
    sizes = array("q", [1] * 20_000)
    assert received.digest(sizes) == table.digest(sizes)
    assert len(pickle.loads(ForkingPickler.dumps(Names()))) == 0
