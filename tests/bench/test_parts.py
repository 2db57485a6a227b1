"""The training step on a user's data, part by part: both stages, shares that add up, nothing left patched."""

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import openjepa.train
from make_images import encode
from openjepa.bench.parts import PARTS, Record, Stopwatch, bench_parts, table
from openjepa.cli import app
from openjepa.data.loader import Loader
from openjepa.muon import Muon


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for number in range(16):
        (folder / f"{number}.png").write_bytes(
            encode(generator.integers(0, 255, (28, 28, 3)).astype(np.uint8))
        )
    return folder


@pytest.mark.slow
def test_both_stages_of_the_default(images: Path) -> None:
    for optimizer in (torch.optim.AdamW, Muon):
        optimizer([torch.zeros(2, 2, requires_grad=True)])  # the first of each wraps its class's `step`
    before = openjepa.train.train_step, Loader.batch, Muon.step, torch.optim.AdamW.step
    said: list[str] = []
    bench_parts(images, repeats=1, threads=1, say=said.append)
    assert before == (openjepa.train.train_step, Loader.batch, Muon.step, torch.optim.AdamW.step)
    text = "\n".join(said)
    rows = {
        cells[1]: cells[2:-1]
        for line in text.splitlines()
        if (cells := [c.strip() for c in line.split("|")])[2:]
    }
    assert rows["part"] == ["mae, ms", "%", "ijepa, ms", "%"]
    for column in (0, 2):
        shares = [float(rows[part][column + 1]) for part in PARTS]
        assert sum(shares) == pytest.approx(100, abs=1)
        times = {part: float(rows[part][column]) for part in PARTS}
        assert (
            min(times[part] for part in ("data", "context", "predictor, loss", "backward", "Muon", "AdamW"))
            > 0
        )
        assert sum(times.values()) == pytest.approx(float(rows["**a step**"][column].strip("*")), rel=0.02)
    # The first stage only cuts patches; what the teacher says serves four steps, over which its time is spread.
    assert 4 * float(rows["kept targets"][2]) > 10 * float(rows["target pass"][0])
    assert float(rows["target pass"][2]) == 0
    assert "batch 16" in text
    assert "vit_mini" in text


def test_medians_shares_and_speed() -> None:
    """The first steps are left out; a line of metrics is spread over the steps between two."""
    watch = Stopwatch(warmup=1)
    for seconds in (9.0, 0.1, 0.3, 0.2):
        watch.records.append(Record("mae", {"data": seconds, "backward": 2 * seconds}))
    watch.logging["mae"] = [30.0, 2.0, 1.0]
    lines = table(watch, batch_size=30, log_every=20).splitlines()
    assert lines[0] == "| part | mae, ms | % |"
    assert "| data | 200.0 | 28.6 |" in lines
    assert "| backward | 400.0 | 57.1 |" in lines
    assert "| logging | 100.0 | 14.3 |" in lines
    assert "| **a step** | **700.0** | |" in lines
    assert "| **images/s** | **43** | |" in lines


def test_the_command_line(images: Path) -> None:
    done = CliRunner().invoke(app, ["bench", "step", str(images), "--case", "tiny"])
    assert done.exit_code != 0
    assert "DATA" in str(done.exception)
