"""The data benchmark runs, and tells a folder that is no clone."""

from pathlib import Path

import pytest

from make_images import jpeg
from openjepa.bench.data import bench_data
from openjepa.errors import UserError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(40, 60 + number))
    return tmp_path


def test_it_says_how_fast(photos: Path) -> None:
    said: list[str] = []
    bench_data(photos, image_size=16, num_images=8, repeats=1, say=said.append)
    assert f"{photos}: 3 images, views of 16 px" in said[0]
    assert float(said[-1].split("|")[2].split()[0]) > 0


def test_no_clone(photos: Path) -> None:
    with pytest.raises(UserError, match=r"--reference .*: No module named 'src"):
        bench_data(photos, reference=photos, num_images=2, repeats=1, say=print)
