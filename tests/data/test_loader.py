import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from openjepa.data.bad_files import BadFiles
from openjepa.data.dataset import Batch, ImageDataset
from openjepa.data.loader import Loader, evaluate_batches
from openjepa.data.sources import open_source
from openjepa.errors import DataError, UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty small images of two classes; number 7 is empty."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for number in range(30):
        file = root / f"class{number % 2}" / f"{number:02}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(file)
    (root / "class1" / "07.png").write_bytes(b"")
    return root


@pytest.fixture(scope="module")
def cached(folder: Path) -> ImageDataset:
    return ImageDataset(open_source(folder), image_size=(16, 16), flip=True)


@pytest.fixture(scope="module")
def fresh(folder: Path) -> ImageDataset:
    return ImageDataset(open_source(folder), image_size=(16, 16), flip=True, cache="never")


def assert_equal(some: list[Batch], others: list[Batch]) -> None:
    for one, other in zip(some, others, strict=True):
        assert torch.equal(one.images, other.images)
        assert (one.samples == other.samples).all()
        assert (one.epochs == other.epochs).all()
        assert one.labels is not None
        assert other.labels is not None
        assert (one.labels == other.labels).all()
        assert one.bad == other.bad


def test_every_epoch_shows_every_sample_once_in_another_order(cached: ImageDataset) -> None:
    batches = list(Loader(cached, batch_size=8, seed=1).iterate(0, 15))  # 120 samples: four epochs
    samples = np.concatenate([batch.samples for batch in batches]).reshape(4, 30)
    epochs = np.concatenate([batch.epochs for batch in batches]).reshape(4, 30)
    assert (np.sort(samples, axis=1) == np.arange(30)).all()
    assert (epochs == [[0], [1], [2], [3]]).all()
    assert len({tuple(row) for row in samples.tolist()}) == 4
    other_seed = Loader(cached, batch_size=30, seed=2).batch(0)
    assert (other_seed.samples != samples[0]).any()


def test_a_run_goes_on_where_it_stopped(cached: ImageDataset) -> None:
    loader = Loader(cached, batch_size=8, seed=1)
    whole = list(loader.iterate(0, 9))
    assert_equal([*loader.iterate(0, 3), *loader.iterate(3, 6)], whole)
    assert_equal([loader.batch(7)], whole[7:8])
    assert list(loader.iterate(3, 0)) == []


def test_ranks_share_out_every_batch(cached: ImageDataset) -> None:
    whole = Loader(cached, batch_size=12, seed=1).batch(4)
    parts = [Loader(cached, batch_size=12, seed=1, rank=rank, world_size=3).batch(4) for rank in range(3)]
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
    assert (np.concatenate([part.samples for part in parts]) == whole.samples).all()
    assert (np.concatenate([part.epochs for part in parts]) == whole.epochs).all()


def test_the_stream_does_not_depend_on_the_number_of_workers(
    cached: ImageDataset, fresh: ImageDataset
) -> None:
    expected = list(Loader(cached, batch_size=8, seed=1).iterate(2, 8))
    assert any(batch.bad for batch in expected)
    state = torch.get_rng_state()
    for num_workers in (0, 1, 2):
        loader = Loader(fresh, batch_size=8, seed=1, num_workers=num_workers)
        assert_equal(list(loader.iterate(2, 8)), expected)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_cached_data_set_needs_no_workers(cached: ImageDataset) -> None:
    before = multiprocessing.active_children()
    batches = Loader(cached, batch_size=8, seed=1, num_workers=2).iterate(0, 3)
    next(batches)
    assert multiprocessing.active_children() == before


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_goes_through_all_good_images_in_order(fresh: ImageDataset, num_workers: int) -> None:
    bad_files = BadFiles(max_fraction=0.5)
    batches = list(evaluate_batches(fresh, batch_size=8, num_workers=num_workers, bad_files=bad_files))
    bad = next(index for index in range(30) if fresh.source.path(index).endswith("07.png"))
    assert [len(batch.images) for batch in batches] == [8, 8, 7, 6]  # class1/07.png is in the third
    samples = np.concatenate([batch.samples for batch in batches])
    assert samples.tolist() == [index for index in range(30) if index != bad]
    assert bad_files.kinds == {"empty file": 1}


def test_evaluation_leaves_out_batches_without_a_good_image(cached: ImageDataset) -> None:
    assert sum(1 for _ in evaluate_batches(cached, batch_size=1)) == 29


def test_a_batch_larger_than_the_data_is_refused(cached: ImageDataset) -> None:
    with pytest.raises(UserError, match=r"data\.batch_size: 31 .* only 30\. Set data\.batch_size=16 or less"):
        Loader(cached, batch_size=31, seed=0)
    assert len(Loader(cached, batch_size=30, seed=0).batch(5).images) == 30


def test_a_batch_must_be_shared_out_evenly(cached: ImageDataset) -> None:
    with pytest.raises(UserError, match=r"3 devices\. Set data\.batch_size=9"):
        Loader(cached, batch_size=10, seed=0, world_size=3)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_in_a_worker_is_the_same_as_without(tmp_path: Path, num_workers: int) -> None:
    for number in range(4):
        (tmp_path / f"{number}.jpg").write_bytes(b"")
    data = ImageDataset(open_source(tmp_path), image_size=(16, 16))
    batches = Loader(data, batch_size=2, seed=0, num_workers=num_workers).iterate(0, 3)
    with pytest.raises(DataError, match=r"none can be used: empty file \(21\)") as caught:
        next(batches)
    assert "Traceback" not in str(caught.value)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_killed_worker_is_an_error_that_says_so(fresh: ImageDataset) -> None:
    before = multiprocessing.active_children()
    batches = Loader(fresh, batch_size=8, seed=1, num_workers=1).iterate(0, 10_000)
    next(batches)
    (worker,) = [process for process in multiprocessing.active_children() if process not in before]
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(DataError, match=r"process that loads data died: .*data\.num_workers"):
        for _ in batches:
            pass


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_workers_end_with_a_killed_run(folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(f"""
import multiprocessing, os, signal
from openjepa.data.dataset import ImageDataset
from openjepa.data.loader import Loader
from openjepa.data.sources import open_source

if __name__ == "__main__":
    data = ImageDataset(open_source({str(folder)!r}), image_size=(16, 16), cache="never")
    next(batches := Loader(data, batch_size=8, seed=1, num_workers=2).iterate(0, 10_000))
    print(*(process.pid for process in multiprocessing.active_children()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
""")
    # stdout goes to a file: a pipe would stay open, and `run` would wait, as long as the workers live
    with (tmp_path / "pids").open("w") as pids:
        path = os.pathsep.join(entry for entry in sys.path if entry)
        subprocess.run(
            [sys.executable, script], stdout=pids, env={**os.environ, "PYTHONPATH": path}, check=False
        )
    workers = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(workers) == 2
    deadline = time.monotonic() + 30
    while any(_is_running(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
