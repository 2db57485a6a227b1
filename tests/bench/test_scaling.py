"""The scaling benchmark: its ladders, its arithmetic, what it writes, and mistakes."""

import json
from pathlib import Path

import pytest

from openjepa.bench.many_files import DataSet, Reading, make_files, make_reader, memory
from openjepa.bench.scaling import (
    RUNGS,
    Rung,
    bench_scaling,
    cases_of,
    draw,
    file_counts,
    files_chart,
    files_table,
    steps_chart,
    steps_table,
)
from openjepa.errors import UserError


def rung(size: int, seconds: list[float], *, peak_bytes: int = 10**9) -> Rung:
    return Rung(size, batch=size, num_tokens=64, flops=1e9 * size, seconds=seconds, peak_bytes=peak_bytes)


def data_set(num_files: int, batch_seconds: list[float]) -> DataSet:
    return DataSet(
        num_files, 10, [Reading(0.5, 40 * num_files, 0.01, 0.02, one, 10**9) for one in batch_seconds]
    )


def test_ladders_change_one_thing() -> None:
    batches, tokens, depths = (cases_of(what, RUNGS[what]) for what in ("batch", "tokens", "depth"))
    assert {case.batch for case in batches.values()} == set(batches)
    assert {case.architecture.depth for case in depths.values()} == set(depths)
    assert {case._replace(batch=1) for case in batches.values()} == {batches[8]._replace(batch=1)}
    assert {num: (case.image, case.batch) for num, case in tokens.items()} == {
        64: (32, 64), 144: (48, 28), 256: (64, 16), 576: (96, 7), 1024: (128, 4)
    }  # fmt: skip
    shares = [case._replace(batch=1).masks(0).context.shape[2] / num for num, case in tokens.items()]
    assert shares == pytest.approx([20 / 64] * 5)


def test_files() -> None:
    assert file_counts(1000) == [1000]
    assert file_counts(99_999) == [1000, 10_000]
    assert file_counts(1_000_000) == [1000, 10_000, 100_000, 1_000_000]


def test_the_largest_beside_the_smallest() -> None:
    """Turn by turn: images/s of twice the batch in the same time, and in half of it, are two and four times as many."""
    ladder = [rung(2, [1.0, 1.0]), rung(4, [1.0, 0.5], peak_bytes=10**9 + 3 * 10**6)]
    *rows, last = steps_table("batch", ladder, threads=1).splitlines()
    assert "| 2 | 2 | 2.0 | 128 | 4.0 | 1000.0 (1000.0–1000.0) | 1.00 |" in rows
    assert last == "images/s, 4 / 2 images a batch: 3.00× (2.00–4.00); 1.50 MB of peak memory for one more"
    # Four times the arithmetic in the same time, and in half of it.
    *_, last = steps_table("tokens", ladder, threads=1).splitlines()
    assert last == "GFLOP/s, 4 / 2 tokens an image: 6.00× (4.00–8.00)"
    *rows, last = files_table([data_set(1000, [0.1, 0.2]), data_set(10_000, [0.2, 0.2])]).splitlines()
    assert rows[-2] == "| 10,000 | 0.500 | 40 | 10.0 | 20.0 | 50 (50–50) | 1.00 |"
    assert last == "images/s, 10,000 / 1,000 files: 0.75× (0.50–1.00)"


def test_the_figure(tmp_path: Path) -> None:
    ladder = steps_chart("depth", [rung(2, [1.0]), rung(4, [1.0], peak_bytes=0)])
    assert ladder.speeds == [4.0, 16.0]
    draw([ladder, files_chart([data_set(1000, [0.1])])], tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").read_bytes()[:4] == b"\x89PNG"


def test_readings(tmp_path: Path) -> None:
    make_files(str(tmp_path), [8, 1001])
    assert len(list((tmp_path / "1001").glob("*/*.jpg"))) == 1001
    assert (tmp_path / "1001" / "class0001" / "0001000.jpg").stat().st_nlink > 1
    answers = make_reader(str(tmp_path), 8, batch=8, num_batches=2, threads=1)
    reading = Reading(*answers["read"]())
    assert min(reading.index_seconds, reading.first_seconds, reading.late_seconds, reading.batch_seconds) > 0
    now, peak = memory()
    assert 0 <= now <= peak
    assert 0 <= reading.peak_bytes <= peak
    with pytest.raises(UserError, match=r"8 files cannot be made here: .*exists.*lower --max-images"):
        make_files(str(tmp_path), [8])


@pytest.mark.slow
def test_all_of_it(tmp_path: Path) -> None:
    said: list[str] = []
    bench_scaling(
        what=("images", "batch"), out=tmp_path / "out", repeats=1, threads=1,
        rungs={"batch": (2, 4), "images": (8, 16)}, say=said.append,
    )  # fmt: skip
    assert [text.split(":")[0] for text in said] == ["batch", "images"]
    numbers = json.loads((tmp_path / "out" / "scaling.json").read_text())
    assert [row["size"] for row in numbers["batch"]] == [2, 4]
    assert all(len(row["seconds"]) == 1 and row["images_per_second"] > 0 for row in numbers["batch"])
    assert [(row["num_files"], row["batch"], len(row["readings"])) for row in numbers["images"]] == [
        (8, 8, 1), (16, 8, 1)
    ]  # fmt: skip
    assert (tmp_path / "out" / "scaling.png").stat().st_size > 1000


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--what width: unknown; choose from batch, tokens, depth, images"):
        bench_scaling(what=["batch", "width"], say=print)
    with pytest.raises(UserError, match="--max-images 10: at least 1000"):
        bench_scaling(what=["images"], max_images=10, say=print)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--out .*file: no folder can be made here: File exists"):
        bench_scaling(out=tmp_path / "file", say=print)
