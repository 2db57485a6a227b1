"""The embedding benchmark: all sides compute the same from the same weights, with files too."""

from pathlib import Path

import numpy as np
import pytest

from make_images import jpeg
from openjepa.bench import embed
from openjepa.bench.embed import CASES, Case, bench_embed, make_side, play, relative_difference
from openjepa.errors import UserError

TINY = Case(image=32, patch=8, width=64, depth=2, heads=4, batch=2)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(40, 60 + number))
    return tmp_path


@pytest.mark.filterwarnings("ignore")  # of other libraries
@pytest.mark.parametrize(("side", "library"), [("transformers", "transformers"), ("timm", "timm")])
def test_other_libraries_give_our_features(side: str, library: str, photos: Path) -> None:
    pytest.importorskip(library)
    pytest.importorskip("pyarrow")
    paths = [str(path) for path in photos.iterdir()]
    for bfloat16, near in ((False, 1e-5), (True, 5e-2)):
        ours, theirs = (make_side(name, TINY, bfloat16, paths) for name in ("ours", side))
        features = [np.asarray(answers["features"]()) for answers in (ours, theirs)]
        assert features[0].shape == (2, 64)
        assert relative_difference(features[0], features[1]) < near
        for answers in (ours, theirs):
            assert answers["forward"]() > 0
            assert answers["files"]() > 0


def test_what_is_said(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(embed.importlib.util, "find_spec", lambda name: None)
    said: list[str] = []
    paths = [str(path) for path in photos.iterdir()]
    play("tiny", TINY, repeats=1, bfloat16=False, paths=paths, say=said.append)
    text = "\n".join(said)
    assert "timm: not installed, left out (pip install 'openjepa[timm]')" in text
    assert "transformers: not installed, left out (pip install 'openjepa[hf]')" in text
    assert "| forward, ours |" in text
    assert "| files to features, ours |" in text


def test_the_cases_are_the_papers_sizes() -> None:
    assert CASES["small"][:5] == (224, 16, 384, 12, 6)
    assert CASES["base"][:5] == (224, 16, 768, 12, 12)


def test_mistakes(photos: Path) -> None:
    with pytest.raises(UserError, match="--case giant: unknown; choose from small, base"):
        bench_embed(cases=["giant"], say=print)
    with pytest.raises(UserError, match="not a folder"):
        bench_embed(data=photos / "0.jpg", say=print)
