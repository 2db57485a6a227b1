"""The figure of accuracy over minutes."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "accuracy_time.py"


def finished(folder: Path, minutes: float, linear: float, first_stage: float = 0) -> Path:
    """A folder as a finished and evaluated run leaves it, with a first stage of some minutes or none."""
    folder.mkdir()
    if first_stage:
        (folder / "first-stage").mkdir()
        row = json.dumps({"step": 3, "seconds": 60 * first_stage}) + "\n"
        (folder / "first-stage" / "metrics.jsonl").write_text(row)
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 9, "seconds": 60 * minutes}) + "\n")
    result = {"protocols": {"linear": {"top1": linear}, "knn": {"top1": 0.25}}}
    (folder / "evaluation.json").write_text(json.dumps(result))
    return folder


def draw(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False
    )


def test_a_line_for_each_method(tmp_path: Path) -> None:
    runs = [finished(tmp_path / f"r{minutes}", minutes, minutes / 100) for minutes in (10, 60)]
    runs.insert(1, finished(tmp_path / "r20", 15, 0.2, first_stage=5))
    out = tmp_path / "figure.svg"
    done = draw(f"I-JEPA={runs[1]},{runs[0]}", f"MAE={runs[2]}", "--out", str(out))
    assert done.returncode == 0, done.stderr
    picture = out.read_text()
    assert (
        picture.count("<!-- I-JEPA -->") == picture.count("<!-- MAE -->") == 1
    )  # one legend for both charts
    assert all(f"<!-- {minutes} -->" in picture for minutes in (10, 20, 60))


def test_a_run_that_was_not_evaluated_is_named(tmp_path: Path) -> None:
    folder = finished(tmp_path / "run", 10, 0.5)
    (folder / "evaluation.json").unlink()
    done = draw(f"I-JEPA={folder}", "--out", str(tmp_path / "figure.png"))
    assert done.returncode != 0
    assert str(folder / "evaluation.json") in done.stderr
