"""Crops that serve several steps: which step sees which, what is asked how often, and a resumed run's crops."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from openjepa.data.dataset import Batch, ImageDataset
from openjepa.data.loader import Loader
from openjepa.data.sources import open_source
from openjepa.methods import Targets
from openjepa.target_buffer import Crops, TargetBuffer


@pytest.fixture
def loader(tmp_path: Path) -> Loader:
    draw = np.random.default_rng(0)
    for number in range(40):
        Image.fromarray(draw.integers(0, 255, (12, 12, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    return Loader(ImageDataset(open_source(tmp_path), image_size=(8, 8)), batch_size=4, seed=0)


class Teacher:
    """Says of a patch its mean, and counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, batch: Batch) -> Targets:
        self.asked += 1
        patches = batch.images.float().mean(dim=1).flatten(1)[:, :, None] / 256  # (B, N, 1)
        return Targets(patches, patches.mean(dim=1))


def crops(loader: Loader, *, start: int = 0, num: int, reuse: int, row_bytes: int = 1) -> list[Crops]:
    return list(TargetBuffer(loader, Teacher(), reuse=reuse, row_bytes=row_bytes).iterate(start, num))


@pytest.mark.parametrize("ask", [False, True])
def test_without_reuse_each_step_has_its_own_batch(loader: Loader, ask: bool) -> None:
    buffer = TargetBuffer(loader, Teacher() if ask else None, reuse=1, row_bytes=1)
    for step, found in enumerate(buffer.iterate(0, 5)):
        assert (found.targets is not None) == ask
        assert found.turn == 0
        assert torch.equal(found.batch.images, loader.batch(step).images)


def test_crops_come_back_with_the_targets_that_were_asked_for_once(loader: Loader) -> None:
    teacher = Teacher()
    buffer = TargetBuffer(loader, teacher, reuse=3, row_bytes=1)
    found = list(buffer.iterate(0, 3 * buffer.size + 2))
    assert teacher.asked == buffer.size + 2
    for step, one in enumerate(found):
        block, index = divmod(step, 3 * buffer.size)
        turn, place = divmod(index, buffer.size)
        batch = loader.batch(block * buffer.size + place)
        assert one.turn == turn
        assert torch.equal(one.batch.images, batch.images)
        expected = Teacher()(batch)
        assert one.targets is not None
        assert one.targets.whole is not None
        torch.testing.assert_close(one.targets.patches, expected.patches, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(one.targets.whole, expected.whole, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("start", [1, 5, 16, 23, 37, 48, 50])
def test_a_resumed_run_sees_the_same(loader: Loader, start: int) -> None:
    whole = crops(loader, num=60, reuse=3)
    for step, one in enumerate(crops(loader, start=start, num=60 - start, reuse=3), start=start):
        assert one.turn == whole[step].turn
        assert np.array_equal(one.batch.samples, whole[step].batch.samples)
        assert one.targets is not None
        assert whole[step].targets is not None
        assert torch.equal(one.targets.patches, whole[step].targets.patches)


def test_what_is_kept_is_bounded(loader: Loader) -> None:
    assert (
        TargetBuffer(loader, Teacher(), reuse=2, row_bytes=2**25).size == 2
    )  # 4 images of 32 MiB in 256 MiB
    assert TargetBuffer(loader, Teacher(), reuse=2, row_bytes=2**40).size == 1
    found = crops(loader, num=6, reuse=2, row_bytes=2**40)
    assert [one.turn for one in found] == [0, 1, 0, 1, 0, 1]


def test_a_renewed_teacher_is_asked_again(loader: Loader) -> None:
    teacher = Teacher()
    buffer = TargetBuffer(loader, teacher, reuse=4, row_bytes=2**40)
    steps = buffer.iterate(0, 4)
    next(steps), next(steps)
    assert teacher.asked == 1
    buffer.forget()
    next(steps)
    assert teacher.asked == 2
