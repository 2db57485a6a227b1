"""The judgement on many kinds of images: which sets are found, what is run once and how, and the table's arithmetic."""

import importlib
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import openjepa
from make_images import encode

ROOT = Path(__file__).parents[1]
CORE = min(os.sched_getaffinity(0))
FAKE = """
import json, os, pathlib, sys
command, data, *options = sys.argv[1:]
given = dict(zip(options, options[1:]))
print(f"cores {sorted(os.sched_getaffinity(0))}, options {options}")
if "broken" in data:
    sys.exit("openjepa: the images\\nare broken | torn")
if command == "pretrain":
    memory = b"1" * 80_000_000
    stages = [(pathlib.Path(given["--out"]) / "first-stage", "mae", 100, 30.0),
              (pathlib.Path(given["--out"]), "ijepa", 200, 90.0)]
    for folder, method, steps, seconds in stages:
        folder.mkdir(parents=True, exist_ok=True)
        row = {"step": steps, "images": 8 * steps, "seconds": seconds, "context_patches": 9, "target_patches": 55}
        (folder / "metrics.jsonl").write_text(json.dumps(row) + "\\n")
        (folder / "config.yaml").write_text(
            f"method: {method}\\npreset: made-up\\nmasks: {{name: random, target_fraction: 0.86}}\\n"
            "data: {image_size: [32, 32]}\\nmodel: {patch_size: [4, 4]}\\nruntime: {precision: float32}\\n")
    (folder / "train.log").write_text("")
else:
    def scores(*values):
        names = ("top1", "knn_top1", "majority_class", "balanced_accuracy")
        return {name: dict(zip(names, values)) for name in given["--protocols"].split(",")}
    result = {"num_train": 3, "num_test": 400, "protocols": scores(0.5, 0.25, 0.1, 0.4),
              "baselines": {"random_init": scores(0.36, 0.3), "raw_pixels": scores(0.2, 0.2)},
              "environment": {"torch": "9.9"}}
    pathlib.Path(given["--out"]).write_text(json.dumps(result))
"""


@pytest.fixture
def domains(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("domains")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Pairs of tars: one of a known name, one of another, one torn; and one that lacks its test images."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("signs", "zebras"):
        for split in ("train", "test"):
            write_tar(folder / f"{name}-{split}.tar")
    for name in ("broken-train.tar", "broken-test.tar", "half-train.tar"):
        (folder / name).write_bytes(b"no tar at all")
    return folder


def write_tar(path: Path, *, each: int = 12) -> None:
    """Grey noise of two brightnesses, 24 px."""
    generator = np.random.default_rng(len(path.name))
    with tarfile.open(path, "w") as tar:
        for label, level in (("dark", 60), ("light", 180)):
            for number in range(each):
                pixels = generator.integers(level - 40, level + 40, (24, 28, 3)).astype(np.uint8)
                member = tarfile.TarInfo(f"{label}/{number}.png")
                member.size = len(raw := encode(pixels))
                tar.addfile(member, io.BytesIO(raw))


def run(
    domains: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str | Path, core: int = CORE
) -> None:
    monkeypatch.setattr(sys, "argv", ["domains.py", *map(str, arguments), "--core", str(core)])
    domains.main()


@pytest.fixture
def fake(tmp_path: Path) -> list[str]:
    """Options that let a stand-in take the place of both programs."""
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    command = f"{sys.executable} {script}"
    return ["--openjepa", command, "--evaluate-with", command]


def test_sets_are_found_and_missing_ones_named(
    domains: ModuleType, data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(domains, "FASHION", tmp_path / "nowhere")
    monkeypatch.delenv("OPENJEPA_DATA", raising=False)
    sets, missing = domains.find_sets(data)
    assert [one.name for one in sets] == ["signs", "broken", "zebras", "scenes"]
    assert sets[0].train == str(data / "signs-train.tar")
    assert sets[-1].protocols == ("knn", "linear", "count", "depth")
    assert missing["half"] == f"no half-test.tar in {data}"
    assert missing["cifar10"] == f"no cifar10-train.tar and no cifar10-test.tar in {data}"
    assert "dataset-fashion-mnist" in missing["fashion-mnist"]
    assert len(missing) == len(domains.KNOWN) + 1
    (tmp_path / "fashion-mnist").mkdir()
    monkeypatch.setenv("OPENJEPA_DATA", str(tmp_path))
    assert [one.name for one in domains.find_sets(data)[0]][-1] == "fashion-mnist"
    kept, absent = domains.choose(sets, missing, "zebras,mri")
    assert [one.name for one in kept] == ["zebras"]
    assert list(absent) == ["mri"]
    with pytest.raises(
        SystemExit, match=r"--only zebra: unknown; choose from signs, broken, zebras, scenes, cifar10"
    ):
        domains.choose(sets, missing, "zebra")


def test_a_judgement(
    domains: ModuleType, data: Path, fake: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    arguments = [data, "--out", out, "--minutes", "2", "--only", "signs,broken,mri", "--set", "a=1", *fake]
    run(domains, monkeypatch, *arguments)
    result = json.loads((out / "domains.json").read_text())
    (signs,) = result["sets"]
    assert result["failed"] == {"broken": "the images are broken | torn"}  # and the others went on
    assert list(result["missing"]) == ["mri"]
    assert (signs["side"], signs["classes"], signs["precision"]) == (24, 2, "float32")
    assert [stage["method"] for stage in signs["stages"]] == ["mae", "ijepa"]
    assert signs["images_per_second"] == 8 * 300 / 120
    assert 80e6 < signs["peak_bytes"] < 80e9
    log = (out / "signs.log").read_text()
    assert log.count(f"cores [{CORE}], ") == 2
    assert "'--max-minutes', '2', '--seed', '0', '--set', 'a=1']" in log
    assert "--overwrite" not in log
    text = (out / "domains.md").read_text()
    assert text.strip() in capsys.readouterr().out
    row = next(line for line in text.splitlines() if line.startswith("| signs"))
    assert row.startswith("| signs | 3 / 400 | 24 | 2 | 2.0 | 100 + 200 | 20 | 32 / 4 | ")
    assert row.endswith(
        " | **50.0** ± 2.5 | 36.0 | 20.0 | **50.0** ± 2.5 | 36.0 | 20.0 | 10.0 | 40.0 | "
        "linear wins +14.0 (untrained); k-NN wins +14.0 (untrained) |"
    )
    assert "| broken | **failed**: the images are broken \\| torn | – |" in text
    assert f"core {CORE} of {os.cpu_count()}; torch 9.9, float32; {result['date']}." in text
    assert "`openjepa pretrain SET --max-minutes 2 --seed 0 --set a=1`" in text
    assert f"- mri: no mri-train.tar and no mri-test.tar in {data}" in text


def test_finished_sets_are_not_run_again(
    domains: ModuleType, data: Path, fake: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    arguments = [data, "--out", out, "--only", "signs,zebras", *fake]
    run(domains, monkeypatch, *arguments)
    logs = [out / f"{name}.log" for name in ("signs", "zebras")]
    before = [log.read_text() for log in logs]
    (out / "zebras" / "evaluation.json").unlink()  # as if it was cut off there
    run(domains, monkeypatch, *arguments)
    assert logs[0].read_text() == before[0]
    assert logs[1].read_text().count(" pretrain ") == 1
    assert logs[1].read_text().count(" evaluate ") == 2
    with pytest.raises(SystemExit, match=r"signs was made with minutes 5.0, not 3.0: .*--again"):
        run(domains, monkeypatch, *arguments, "--minutes", "3")
    run(domains, monkeypatch, *arguments, "--minutes", "3", "--again")
    assert "'--max-minutes', '3', '--seed', '0', '--overwrite']" in logs[0].read_text()


def test_a_command_that_is_not_there(
    domains: ModuleType, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run(domains, monkeypatch, data, "--out", out, "--only", "signs", "--openjepa", "no-such-program")
    result = json.loads((out / "domains.json").read_text())
    assert result["failed"]["signs"].startswith("no-such-program: cannot be started")
    with pytest.raises(SystemExit, match="--core 9999: not one of this process's"):
        run(domains, monkeypatch, data, "--out", out, core=9999)


def test_it_is_small_while_it_starts_others() -> None:
    """What a process holds when it starts another counts as the other's peak: half a gigabyte with PyTorch."""
    code = "import sys, domains; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "benchmarks", check=False)
    assert done.returncode == 0


def test_arithmetic(domains: ModuleType) -> None:
    table = importlib.import_module("domains_table")
    assert table.standard_error(0.5, 100) == pytest.approx(0.05)
    scores = {"encoder": 0.50, "random_init": 0.30, "raw_pixels": 0.45, "constant": 0.1}
    assert table.verdict(scores, 400) == "level +5.0 (raw pixels)"  # two errors are 7.1
    assert table.verdict(scores, 1000) == "wins +5.0 (raw pixels)"  # 4.5
    assert table.verdict({**scores, "constant": 0.62}, 400) == "loses −12.0 (constant answer)"
    assert domains.message_of(["one", "openjepa: --set x: bad", "  use y", ""]) == "--set x: bad use y"
    assert domains.message_of(["Traceback", "ValueError: odd", ""]) == "ValueError: odd"


def test_labels_of_their_own_have_lines_of_their_own(domains: ModuleType) -> None:
    table = importlib.import_module("domains_table")
    names = ("knn", "linear", "count")
    protocols: dict[str, Any] = {name: {"top1": 0.5, "majority_class": 0.1} for name in names}
    protocols["count"] = {"top1": 0.7, "knn_top1": 0.6, "majority_class": 0.2}
    baseline = {name: {"top1": 0.4, "knn_top1": 0.3} for name in names}
    evaluation = {"protocols": protocols, "baselines": {"random_init": baseline, "raw_pixels": baseline}}
    found = table._scores(evaluation)
    assert list(found) == ["class", "count"]
    assert found["count"]["knn"] == {
        "encoder": 0.6, "random_init": 0.3, "raw_pixels": 0.3, "constant": 0.2, "balanced": None,
    }  # fmt: skip
    facts = {
        "name": "scenes", "num_train": 1000, "num_test": 100, "side": 64, "classes": 4, "minutes": 5.0,
        "stages": [{"steps": 1200}], "images_per_second": 99.6, "image_size": [64, 32], "patch_size": [8, 4],
        "peak_bytes": 1.5e9, "pflop": 0.1234, "precision": "bfloat16", "environment": {"torch": "2"}, "scores": found,
    }  # fmt: skip
    asked = {"openjepa": "openjepa"}
    result = {
        "sets": [facts],
        "failed": {},
        "missing": {},
        "machine": "M",
        "date": "D",
        "command": "C",
        "asked": asked,
    }
    lines = table.table(result).splitlines()
    assert "balanced" not in lines[0]  # no set has it
    assert len({line.count(" | ") for line in (lines[0], *lines[2:4])}) == 1
    assert lines[2].startswith(
        "| scenes | 1,000 / 100 | 64 | 4 | 5.0 | 1,200 | 100 | 64 × 32 / 8×4 | 1.50 | 0.12 | **50.0** ± 5.0 | "
    )
    assert lines[3].startswith(
        "| scenes, count | – | – | – | – | – | – | – | – | – | **70.0** ± 4.6 | 40.0 | "
    )


@pytest.mark.slow
def test_the_program_itself(
    domains: ModuleType, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sets as they are judged, but for seconds and a small network; the torn one fails by its message."""
    monkeypatch.setenv("PYTHONPATH", str(Path(openjepa.__file__).parents[1]))
    out = tmp_path / "out"
    run(
        domains, monkeypatch, data, "--out", out, "--minutes", "0.05", "--only", "zebras,broken", "--method", "ijepa",
        "--set", "model.name=vit_pico", "--set", "log.every_steps=1",
    )  # fmt: skip
    result = json.loads((out / "domains.json").read_text())
    assert "broken-train.tar" in result["failed"]["broken"]
    (zebras,) = result["sets"]
    assert zebras["minutes"] == pytest.approx(0.05, rel=0.5)
    assert zebras["pflop"] > 0
    assert set(zebras["scores"]["class"]) == {"knn", "linear"}
    assert zebras["environment"]["cores"] == 1
