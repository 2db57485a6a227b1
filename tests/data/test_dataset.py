import io
import json
import pickle
import warnings
import weakref
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from openjepa.data import dataset as dataset_module
from openjepa.data.bad_files import BadFile, BadFiles
from openjepa.data.dataset import Batch, ImageDataset
from openjepa.data.sources import open_source
from openjepa.errors import DataError


def png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def make_folder(root: Path, *, num: int, bad: tuple[int, ...] = (), side: int = 16) -> str:
    """Images 00.png, 01.png ... in two classes, each all of one grey, its number; bad ones are cut short."""
    for number in range(num):
        file = root / f"class{number * 2 // num}" / f"{number:02}.png"
        file.parent.mkdir(exist_ok=True)
        whole = png(np.full((side, side, 3), number, dtype=np.uint8))
        file.write_bytes(whole[:-25] if number in bad else whole)
    return str(root)


def dataset(
    folder: str, *, size: int = 16, cache: Literal["auto", "never"] = "auto", flip: bool = True
) -> ImageDataset:
    return ImageDataset(open_source(folder), image_size=(size, size), cache=cache, flip=flip)


def numbers(batch: Batch) -> list[int]:
    """Which images of `make_folder` a batch shows."""
    return [int(number) for number in batch.images[:, 0, 0, 0]]


def assert_equal(one: Batch, other: Batch) -> None:
    assert torch.equal(one.images, other.images)
    assert (one.samples == other.samples).all()
    assert (one.epochs == other.epochs).all()
    assert one.labels is not None
    assert other.labels is not None
    assert (one.labels == other.labels).all()
    assert one.bad == other.bad


def test_a_batch_holds_the_samples_asked_for(tmp_path: Path) -> None:
    batch = dataset(make_folder(tmp_path, num=12)).batch([3, 11, 4], [0, 0, 1], seed=0)
    assert batch.images.shape == (3, 3, 16, 16)
    assert batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous()
    assert numbers(batch) == batch.samples.tolist() == [3, 11, 4]
    assert batch.epochs.tolist() == [0, 0, 1]
    assert batch.labels is not None
    assert batch.labels.tolist() == [0, 1, 0]
    assert batch.bad == ()


@pytest.mark.parametrize("size", [16, 24, 64])  # by matrix products, and by Pillow
def test_cached_or_not_the_batches_are_the_same(tmp_path: Path, size: int) -> None:
    folder = make_folder(tmp_path, num=40, bad=(0, 7, 8, 30))
    generator = np.random.default_rng(0)
    for number in range(20, 28):
        pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        (tmp_path / "class1" / f"{number}.png").write_bytes(png(pixels))
    cached, fresh = dataset(folder, size=size), dataset(folder, size=size, cache="never")
    assert cached.cached
    assert not fresh.cached
    for epoch in range(3):
        batch = cached.batch(np.arange(40), epoch, seed=5)
        assert_equal(batch, fresh.batch(np.arange(40), epoch, seed=5))
        assert len({file.path for file in batch.bad}) == 4
    assert_equal(cached.evaluation_batch(range(40)), fresh.evaluation_batch(range(40)))


def test_a_sample_does_not_depend_on_its_batch(tmp_path: Path) -> None:
    data = dataset(make_folder(tmp_path, num=40, bad=(5,)))
    whole = data.batch(np.arange(40), 2, seed=1)
    part = data.batch([39, 5, 0], 2, seed=1)
    assert torch.equal(part.images, whole.images[[39, 5, 0]])


def test_a_substitute_stands_in_for_a_bad_image(tmp_path: Path) -> None:
    data = dataset(make_folder(tmp_path, num=40, bad=(5, 6)))
    batches = [data.batch([4, 5], epoch, seed=0) for epoch in range(12)]
    shown = [numbers(batch)[1] for batch in batches]
    assert len(set(shown)) > 4  # another in each epoch
    assert not {5, 6} & set(shown)
    for batch, number in zip(batches, shown, strict=True):
        assert batch.samples.tolist() == [4, 5]
        assert batch.labels is not None
        assert batch.labels[1] == number // 20
        path, reason = batch.bad[0]
        assert path.endswith("05.png")
        assert "damaged or truncated" in reason


def test_a_file_that_is_deleted_or_shrinks_on_the_way_is_bad(tmp_path: Path) -> None:
    data = dataset(make_folder(tmp_path, num=10), cache="never")
    (tmp_path / "class0" / "02.png").unlink()
    (tmp_path / "class0" / "03.png").write_bytes(b"")
    batch = data.batch([2, 3, 4], 0, seed=0)
    assert [Path(file.path).name for file in batch.bad[:1]] == ["02.png"]
    assert "03.png" in {Path(file.path).name for file in batch.bad}
    assert not {2, 3} & set(numbers(batch))


@pytest.mark.parametrize("training", [False, True])
def test_few_large_images_are_held_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, training: bool
) -> None:
    held = most = 0

    def let_go() -> None:
        nonlocal held
        held -= 1

    def decode(*_: object, **__: object) -> NDArray[np.uint8]:
        nonlocal held, most
        pixels = np.zeros((1024, 1024, 3), np.uint8)
        weakref.finalize(pixels, let_go)
        held += 1
        most = max(most, held)
        return pixels

    data = dataset(make_folder(tmp_path, num=40), cache="never")
    monkeypatch.setattr("openjepa.data.dataset.decode", decode)
    batch = data.batch(np.arange(40), 0, seed=0) if training else data.evaluation_batch(np.arange(40))
    assert len(batch.images) == 40
    assert most <= 12  # 32 MiB of images of 3 MiB, and the one that is being decoded


def test_warnings_are_hidden_once_for_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset(make_folder(tmp_path, num=10), cache="never")
    set_filter, calls = warnings.filterwarnings, []

    def count(*args: Any, **options: Any) -> None:
        calls.append(args)
        set_filter(*args, **options)

    monkeypatch.setattr("warnings.filterwarnings", count)
    data.evaluation_batch(np.arange(10))
    assert 0 < len(calls) <= 2, "it takes longer than to decode a small image"


def test_nothing_but_bad_images_is_an_error_that_says_why(tmp_path: Path) -> None:
    data = dataset(make_folder(tmp_path, num=6, bad=tuple(range(6))))
    with pytest.raises(DataError, match=r"none can be used: damaged or truncated \(21\)"):
        data.batch([0], 0, seed=0)


def test_evaluation_leaves_bad_images_out(tmp_path: Path) -> None:
    batch = dataset(make_folder(tmp_path, num=6, bad=(0, 4))).evaluation_batch([0, 1, 2, 3, 4, 5])
    assert numbers(batch) == batch.samples.tolist() == [1, 2, 3, 5]
    assert batch.labels is not None
    assert batch.labels.tolist() == [0, 0, 1, 1]
    assert [Path(file.path).name for file in batch.bad] == ["00.png", "04.png"]
    nothing = dataset(str(tmp_path)).evaluation_batch([0, 4])
    assert nothing.images.shape == (0, 3, 16, 16)


def test_images_are_kept_as_long_as_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(make_folder(tmp_path, num=10))
    memory = 10 * 16 * 16 * 3
    assert ImageDataset(source, image_size=(8, 8), cache_bytes=memory).cached
    assert not ImageDataset(source, image_size=(8, 8), cache_bytes=memory - 1).cached
    Image.new("RGB", (17, 33)).save(tmp_path / "class1" / "09.png")  # takes more than two others do
    monkeypatch.setattr(dataset_module, "RECENT_BYTES", 0)
    data = ImageDataset(source, image_size=(8, 8), cache_bytes=memory)
    assert not data.cached
    data.evaluation_batch(range(9))
    in_a_worker = pickle.loads(pickle.dumps(data))
    decoded: list[int] = []
    read = type(source).read
    monkeypatch.setattr(
        type(source), "read", lambda self, index: (decoded.append(index), read(self, index))[1]
    )
    for dataset, expected in ((data, [9]), (in_a_worker, [0, 9])):
        decoded.clear()
        for _ in range(2):
            assert len(dataset.evaluation_batch([0, 9]).samples) == 2
        assert decoded == expected * 2


@pytest.mark.parametrize("flip", [False, True])
def test_views_are_mirrored_by_choice_only(tmp_path: Path, flip: bool) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    (tmp_path / "image.png").write_bytes(png(pixels))
    whole = ImageDataset(
        open_source(str(tmp_path)), image_size=(16, 16), crop_scale=(1, 1), crop_aspect=(1, 1), flip=flip
    )
    images = whole.batch([0] * 50, np.arange(50), seed=0).images.permute(0, 2, 3, 1).numpy()
    same = (images == pixels).all(axis=(1, 2, 3))
    assert (same | (images == pixels[:, ::-1]).all(axis=(1, 2, 3))).all()
    assert (10 < same.sum() < 40) if flip else same.all()


@pytest.mark.parametrize("channels", [1, 5])
def test_any_number_of_channels(tmp_path: Path, channels: int) -> None:
    generator = np.random.default_rng(0)
    for number in range(4):
        np.save(tmp_path / f"{number}.npy", generator.integers(0, 256, (20, 24, channels), dtype=np.uint8))
    data = ImageDataset(open_source(str(tmp_path)), image_size=(8, 12), channels=channels)
    assert data.batch([0, 1], 0, seed=0).images.shape == (2, channels, 8, 12)
    assert data.evaluation_batch([3]).images.shape == (1, channels, 8, 12)
    assert data.batch([0], 0, seed=0).labels is None


def test_bad_files_are_listed_once_and_counted(tmp_path: Path) -> None:
    log = tmp_path / "bad_files.jsonl"
    odd = BadFile("a\n\udcff\u4e2d.png", "empty file")
    tracker = BadFiles(log)
    tracker.add(num_good=9, bad=[odd, odd])
    tracker.add(num_good=9, bad=[odd, BadFile("b.png", "too small: 1 x 1 pixels")])
    assert tracker.kinds == {"empty file": 3, "too small": 1}
    lines = log.read_text(encoding="ascii").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"path": odd.path, "reason": "empty file"},
        {"path": "b.png", "reason": "too small: 1 x 1 pixels"},
    ]


def test_what_could_not_be_looked_into_is_listed_but_not_counted(tmp_path: Path) -> None:
    bad_files = BadFiles(tmp_path / "bad_files.jsonl", after=1)
    bad_files.note([BadFile("photos/locked", "cannot be read: Permission denied")] * 2)
    bad_files.add(num_good=10, bad=[])
    (line,) = (tmp_path / "bad_files.jsonl").read_text().splitlines()
    assert json.loads(line) == {"path": "photos/locked", "reason": "cannot be read: Permission denied"}
    assert not bad_files.kinds


def test_a_resumed_run_adds_to_its_list(tmp_path: Path) -> None:
    log = tmp_path / "bad_files.jsonl"
    first, second = BadFile("a.png", "empty file"), BadFile("b.png", "empty file")
    BadFiles(log).add(num_good=9, bad=[first])
    with log.open("a") as file:
        file.write('{"path": "b.p')  # killed while writing
    BadFiles(log).add(num_good=9, bad=[first, second])
    paths = [json.loads(line)["path"] for line in log.read_text().splitlines()]
    assert paths == ["a.png", "b.png"]


def test_too_many_bad_files_end_the_run(tmp_path: Path) -> None:
    bad = [BadFile(f"{number}.png", "empty file") for number in range(3)]
    tracker = BadFiles(tmp_path / "bad_files.jsonl", max_fraction=0.02, num_images=99)
    tracker.add(num_good=40, bad=bad)  # many, but of few
    with pytest.raises(DataError, match=r"3 of the 100 images read are bad: empty file \(3\).* 3\.0%.*2\.0%"):
        tracker.add(num_good=57, bad=[])
    of_more = BadFiles(max_fraction=0.02, num_images=100)
    with pytest.raises(
        DataError, match="3 of the 43 images read are bad"
    ):  # 3 % of all of them, whatever comes
        of_more.add(num_good=40, bad=bad)
    tolerant = BadFiles(max_fraction=0.03, num_images=100)
    tolerant.add(num_good=97, bad=bad)
    with pytest.raises(DataError, match=r"data\.max_bad_fraction"):
        tolerant.add(num_good=0, bad=[BadFile("x.png", "not an image")])
