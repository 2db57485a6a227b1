"""The page about a run: what it holds, that it needs nothing else, and how a browser lays it out."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import openjepa
from openjepa.viz.curves import CURVES, draw_curve
from openjepa.viz.report import PICTURES, write_report

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on images named so that a careless page would break, evaluated with baselines."""
    folder = tmp_path_factory.mktemp("pages")
    data = folder / "<b>&photos"
    generator = np.random.default_rng(0)
    for number in range(32):
        path = data / ("red" if number % 2 else "blue") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = generator.integers(0, 80, (32, 32, 3), dtype=np.uint8)
        image[..., 0 if number % 2 else 2] += 120
        Image.fromarray(image).save(path)
    out = folder / "run"
    openjepa.pretrain(
        data=data, out=out, preset="small", steps=6,
        set=["data.batch_size=8", "model.embed_dim=32", "model.depth=1", "model.predictor_dim=16", "log.every_steps=1",
             "log.health_every_steps=2", "log.tensorboard=false", "runtime.threads=1"],
    )  # fmt: skip
    openjepa.evaluate(
        out, train=data, test=data, protocols=["knn"], baselines=True, out=out / "evaluation.json"
    )
    return out


def test_the_page_says_what_the_issue_asks(run: Path) -> None:
    page = (run / "report.html").read_text(encoding="utf-8")
    result = json.loads((run / "evaluation.json").read_text())
    for text in (
        "&lt;b&gt;&amp;photos", "32 images", "32 × 32 px", "6 steps of 8 images", "batch_size: 8",
        f"{result['protocols']['knn']['top1']:.1%}", f"{result['baselines']['raw_pixels']['knn']['top1']:.1%}",
        *(title for title, _ in PICTURES.values()),
    ):  # fmt: skip
        assert text in page, text
    assert "<b>&photos" not in page
    assert page.count("<svg") == len(CURVES) - 1  # all but the k-NN that was not asked for
    assert page.count("data:image/png;base64,") == len(PICTURES)


def test_the_page_tells_what_was_found_of_each_class_and_balanced_accuracy(run: Path, tmp_path: Path) -> None:
    page = (run / "report.html").read_text(encoding="utf-8")
    recall = json.loads((run / "evaluation.json").read_text())["protocols"]["knn"]["recall"]
    assert list(recall) == ["blue", "red"]
    for name, value in recall.items():
        assert f"<td>{name}</td><td>{value:.1%}</td>" in page
    assert "knn, balanced" not in page  # the classes are of one size
    other = tmp_path / "unbalanced"
    shutil.copytree(run, other)
    result = json.loads((run / "evaluation.json").read_text())
    result["protocols"]["knn"] |= {"majority_class": 0.9, "balanced_accuracy": 0.123}
    (other / "evaluation.json").write_text(json.dumps(result))
    page = write_report(other).read_text(encoding="utf-8")
    assert "<td>knn, balanced</td>" in page
    assert "12.3%" in page


def test_the_page_needs_no_other_file(run: Path) -> None:
    page = (run / "report.html").read_text(encoding="utf-8")
    loaded = re.findall(r"""(?:\bsrc|\bhref|url\()\s*=?\s*["']?([^"'\s>)]+)""", page)
    assert [link for link in loaded if not link.startswith(("data:", "#"))] == []
    assert "<script" not in page


def test_a_run_without_health_or_evaluation_has_a_page(run: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(run, bare)
    (bare / "evaluation.json").unlink()
    shutil.rmtree(bare / "pictures")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [{key: row[key] for key in row if key not in ("rankme", "position_gap")} for row in rows]
    (bare / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    page = write_report(bare).read_text(encoding="utf-8")
    assert "Evaluation:" not in page
    assert "data:image" not in page


def test_pictures_are_not_blank(run: Path) -> None:
    for name in PICTURES:
        pixels = np.asarray(Image.open(run / "pictures" / f"{name}.png"))
        assert pixels.shape[2] == 3
        assert pixels.std() > 5, name


def test_a_curve_has_the_points_of_its_metric() -> None:
    rows = [{"step": step, "loss": step / 10} for step in range(5)] + [{"step": 5, "loss": None}]
    svg = draw_curve(rows, "loss")
    assert svg is not None
    line = max(re.findall(r' d="([^"]*)"', svg), key=len)
    assert len(re.findall(r"[ML] ", line)) == 5
    assert draw_curve(rows[:1], "loss") is None
    assert draw_curve(rows, "rankme") is None


@pytest.mark.skipif(CHROMIUM is None and "CI" not in os.environ, reason="needs Chromium")
@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
def test_a_browser_shows_all_of_it(run: Path, tmp_path: Path, width: int) -> None:
    """Every picture is decoded, and nothing but tables and code is wider than the window."""
    page = (run / "report.html").read_text(encoding="utf-8")
    probe = """<script>addEventListener("load", () => { document.title = JSON.stringify({
        window: document.documentElement.clientWidth, content: document.documentElement.scrollWidth,
        broken: [...document.images].filter(image => !image.naturalWidth).length,
        charts: [...document.querySelectorAll("svg")].filter(svg => svg.getBoundingClientRect().width > 200).length,
    }) })</script>"""
    probed = tmp_path / "page.html"
    frame = tmp_path / "frame.html"
    probed.write_text(page.replace("</head>", probe + "</head>"), encoding="utf-8")
    # Headless Chromium makes no window narrower than 500 pixels; a frame can be.
    style = f"border:0;width:{width}px;height:3000px"
    copy_title = (
        'document.querySelector("iframe").onload = e => { document.title = e.target.contentDocument.title }'
    )
    frame.write_text(
        f'<body style="margin:0"><iframe src="page.html" style="{style}"></iframe><script>{copy_title}</script>'
    )
    assert CHROMIUM is not None, "CI needs Chromium: .ci/run installs it"
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom",
         "--virtual-time-budget=5000", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,3000",
         frame.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = re.search(r"<title>(\{.*?\})</title>", done.stdout)
    assert found is not None, done.stdout[:2000]
    laid_out = json.loads(found[1].replace("&quot;", '"'))
    assert width - 20 <= laid_out["window"] <= width  # less a scroll bar
    assert laid_out["content"] == laid_out["window"]
    assert laid_out["broken"] == 0
    assert laid_out["charts"] == page.count("<svg")
