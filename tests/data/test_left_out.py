"""Nothing vanishes from a data set without being counted and named; what a folder holds by chance changes nothing."""

import io
import logging
import tarfile
from pathlib import Path

import pytest

from openjepa.data.sources import Source, open_source
from openjepa.errors import DataError


def make_folder(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def make_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, raw in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            tar.addfile(member, io.BytesIO(raw))
    return path


def images(source: Source) -> dict[str, str | None]:
    """Each image's last name and its class."""
    labels = [-1] * len(source) if source.labels is None else source.labels.tolist()
    return {
        Path(source.path(i)).name: None if label < 0 else source.classes[label]
        for i, label in enumerate(labels)
    }


def test_files_of_other_kinds_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    heic = [f"a/{number}.HEIC" for number in range(3)]
    root = make_folder(
        tmp_path, "a/1.jpg", *heic, "b/2.dcm", "b/nosuffix", "c.jpg.1", "rest.zip", ".hidden.heic"
    )
    make_folder(tmp_path, "README.md", "a/1.txt", "labels.csv", "Thumbs.db")  # these belong beside images
    source = open_source(root)
    assert len(source) == 1
    assert source.unread == "7 files that are not read: .heic 3, .dcm 1, no suffix 1, .1 1, .zip 1"
    assert source.unread in caplog.text
    with pytest.raises(
        DataError, match=r"no images in this folder.*There are 1 files that are not read: \.heic 1"
    ):
        open_source(make_folder(tmp_path / "phone", "x.heic"))


def test_of_plain_images_nothing_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert open_source(make_folder(tmp_path, "a/1.jpg", "a/notes.txt")).unread == ""
    assert not caplog.text


def test_two_links_to_one_folder_are_two_classes(tmp_path: Path) -> None:
    pool = make_folder(tmp_path / "pool", "1.jpg", "2.jpg")
    root = make_folder(tmp_path / "data", "third/3.jpg")
    for name in ("first", "second"):
        (root / name).symlink_to(pool)
    (pool / "back").symlink_to(root)  # a loop through another folder
    source = open_source(root)
    assert source.classes == ("first", "second", "third")
    assert source.labels is not None
    assert source.labels.tolist() == [0, 0, 1, 1, 2]


def test_what_this_program_wrote_among_the_data_is_no_data(tmp_path: Path) -> None:
    root = make_folder(tmp_path, "a/1.jpg", "run/pictures/masks.png", "run/first-stage/pictures/masks.png")
    (root / "run" / ".openjepa.json").write_text("{}")
    assert list(images(open_source(root))) == ["1.jpg"]
    assert list(images(open_source(root / "run" / "pictures"))) == ["masks.png"]  # asked for by name


def test_folders_named_images_and_scenes_are_no_clevr(tmp_path: Path) -> None:
    root = make_folder(tmp_path, "images/1.jpg", "scenes/2.jpg", "scenes/notes.json")
    assert images(open_source(root)) == {"1.jpg": "images", "2.jpg": "scenes"}


def numbered(form: str, count: int = 4) -> dict[str, bytes]:
    return {form.format(number): b"x%d" % number for number in range(count)}


@pytest.mark.parametrize(
    "members",
    [
        numbered("cam1.{:04}.png") | {"cam1.json": b"{}"},
        numbered("2024.05.{:02}.png") | {"2024.readme.txt": b"hi"},
        numbered("{}.left.png", 2) | numbered("{}.right.png", 2) | numbered("{}.txt", 2),
        numbered("clip.{:03}.png") | numbered("clip.{:03}.txt"),
        numbered("v1.2/{}.png") | {"v1.2/notes.txt": b"x"},
    ],
    ids=["frames and their json", "dates", "two views", "captions", "dots in a folder"],
)
def test_names_with_dots_lose_no_image(tmp_path: Path, members: dict[str, bytes]) -> None:
    source = open_source(make_tar(tmp_path / "a.tar", members))
    assert set(images(source)) == {Path(name).name for name in members if name.endswith(".png")}
    assert source.problems == ()


def test_a_label_belongs_to_the_image_of_its_name(tmp_path: Path) -> None:
    members = {"c.0.png": b"a", "c.0.cls": b"7", "c.1.png": b"b", "c.1.cls": b"8", "c.2.png": b"c"}
    assert images(open_source(make_tar(tmp_path / "a.tar", members))) == {
        "c.0.png": "7",
        "c.1.png": "8",
        "c.2.png": None,
    }
    views = {
        "0.left.png": b"a",
        "0.right.png": b"b",
        "0.cls": b"5",
        "1.left.png": b"c",
        "1.left.cls": b"6",
        "1.cls": b"4",
    }
    assert images(open_source(make_tar(tmp_path / "b.tar", views))) == {
        "0.left.png": "5", "0.right.png": "5", "1.left.png": "6",
    }  # fmt: skip


def test_labels_may_lie_apart_and_those_left_over_are_named(tmp_path: Path) -> None:
    members = {"0.png": b"a", "1.png": b"b", "2.png": b"c", "0.cls": b"x", "1.cls": b"y", "9.cls": b"z"}
    source = open_source(make_tar(tmp_path / "a.tar", members))
    assert images(source) == {"0.png": "x", "1.png": "y", "2.png": None}
    assert source.problems == (("9", "in a tar: a label without an image"),)


def test_a_mask_beside_the_image_is_named(tmp_path: Path) -> None:
    source = open_source(
        make_tar(tmp_path / "a.tar", {"0.jpg": b"a", "0.mask.png": b"b", "0.cls": b"1", "0.pt": b"c"})
    )
    assert images(source) == {"0.jpg": "1"}
    assert source.problems == ((f"{tmp_path}/a.tar/0.mask.png", "in a tar: not the sample's image"),)
    assert source.unread == "1 files that are not read: .pt 1"


def test_links_and_sizes_of_twelve_digits(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", {"0.png": b"a" * 700, "1.png": b"b"})
    raw = bytearray(path.read_bytes())
    raw[124:136] = b"%012o" % 700  # with no end, as some programs write it
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw[:512])
    path.write_bytes(bytes(raw))
    with tarfile.open(path, "a") as tar:
        for name, kind in (("hard.png", tarfile.LNKTYPE), ("soft.png", tarfile.SYMTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "0.png"
            tar.addfile(member)
    source = open_source(path)
    assert [len(source.read(index)) for index in range(len(source))] == [700, 1]
    assert [(Path(name).name, reason) for name, reason in source.problems] == [
        ("hard.png", "in a tar: a link to 0.png"), ("soft.png", "in a tar: a link to 0.png"),
    ]  # fmt: skip
