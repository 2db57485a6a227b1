"""`--overwrite` removes what this program wrote, and nothing else: not the data, not a home, not another's files."""

import json
import shutil
import sys
from pathlib import Path

import pytest

import openjepa
from make_images import jpeg
from openjepa.apps.export import export
from openjepa.apps.predict import predict
from openjepa.cli import main
from openjepa.errors import UserError

SETTINGS = ["data.batch_size=4", "log.tensorboard=false", "model.name=vit_pico"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with eight small photos in two classes, and a run on them."""
    top = tmp_path_factory.mktemp("made")
    for number in range(8):
        path = top / "photos" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(32, 40 + number))
    pretrain(top / "photos", top / "run")
    return top


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may spoil."""
    shutil.copytree(made, tmp_path / "place")
    return tmp_path / "place"


def pretrain(data: Path | str, out: Path, **options: object) -> Path:
    return openjepa.pretrain(data=data, out=out, preset="small", steps=2, set=SETTINGS, **options)  # type: ignore[arg-type]


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a folder with its content, but for locks."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_data_folder_is_not_overwritten_and_the_command_says_what_to_do(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(place / "photos")
    arguments = [
        "pretrain",
        str(place / "photos"),
        "--out",
        str(place / "photos"),
        "--overwrite",
        "--steps",
        "2",
    ]
    monkeypatch.setattr(sys, "argv", ["openjepa", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    message = capsys.readouterr().err
    assert stopped.value.code == 2
    assert f"--out {place / 'photos'}: is DATA" in message
    assert "name another --out" in message
    assert tree(place / "photos") == before


def test_no_source_and_no_parent_of_one_is_overwritten(place: Path) -> None:
    """Not through a link, not through a pattern of tars, not as an option's value."""
    (place / "link").symlink_to(place / "run")
    inside = place / "run" / "photos"
    shutil.copytree(place / "photos", inside)
    (inside / "a.tar").write_bytes(b"")
    before = tree(place)
    sources: list[tuple[str, dict[str, object]]] = [
        ("DATA", {"data": inside}),
        ("DATA", {"data": place / "link" / "photos"}),
        ("DATA", {"data": f"{inside}/{{a}}.tar"}),
        ("--init-from", {"init_from": place / "run"}),
        ("--init-from", {"init_from": next((place / "run" / "checkpoints").iterdir())}),
        ("--eval-test", {"eval_train": place / "photos", "eval_test": inside}),
        ("--config", {"config": place / "run" / "config.yaml"}),
        ("init_from", {"set": [f"init_from={place / 'run'}"]}),
    ]
    for option, given in sources:
        with pytest.raises(UserError, match=rf"--out .*run: (is|holds) {option} .*another --out"):
            openjepa.pretrain(
                **{"data": place / "photos", "out": place / "run", "preset": "small", "steps": 2, **given},  # type: ignore[arg-type]
                overwrite=True,
            )
    assert tree(place) == before


def test_a_folder_that_no_run_made_is_not_overwritten(place: Path, tmp_path: Path) -> None:
    """Neither a home nor another program's folder, though it has checkpoints and settings too."""
    home = tmp_path / "home"
    (home / "checkpoints" / "step-000000001").mkdir(parents=True)
    (home / "checkpoints" / "step-000000001" / "weights.bin").write_bytes(b"dear")
    (home / "config.yaml").write_text("model: {name: other}\nlr: 1\n")
    (home / "metrics.jsonl").write_text('{"step": 1, "loss": 2}\n')
    (home / "letters.txt").write_text("dear")
    before = tree(home)
    with pytest.raises(
        UserError, match="home: not a folder that openjepa pretrain wrote, so it is not replaced"
    ):
        pretrain(place / "photos", home, overwrite=True)
    assert tree(home) == before


def test_a_run_is_overwritten_and_what_others_put_there_stays(place: Path) -> None:
    run = place / "run"
    (run / "notes.txt").write_text("dear")
    (run / "checkpoints" / "mine.txt").write_text("dear")
    (run / "evaluation.json").write_text(json.dumps({"protocols": {}, "baselines": {}, "num_test": 1}))
    (run / "mine.json").write_text("{}")
    old = (run / "metrics.jsonl").read_text()
    pretrain(place / "photos", run, overwrite=True, seed=1)
    assert not (run / "evaluation.json").exists()
    assert (run / "metrics.jsonl").read_text() != old
    for name in ("notes.txt", "checkpoints/mine.txt"):
        assert (run / name).read_text() == "dear"
    assert (run / "mine.json").read_text() == "{}"
    with pytest.raises(UserError, match="not empty"):
        pretrain(place / "photos", run)


@pytest.mark.parametrize("left", ["metrics", "checkpoints", "first stage"])
def test_a_run_of_before_there_were_markers_is_known(place: Path, left: str) -> None:
    run = place / "run"
    (run / ".openjepa.json").unlink(missing_ok=True)
    if left == "first stage":
        first = place / "whole"
        run.rename(first)
        run.mkdir()
        first.rename(run / "first-stage")
        (run / "train.log").touch()
    elif left == "metrics":
        shutil.rmtree(run / "checkpoints")
    else:
        (run / "metrics.jsonl").unlink()
    pretrain(place / "photos", run, overwrite=True)
    assert len(list((run / "checkpoints").iterdir())) == 1
    assert not (run / "first-stage").exists()


def test_an_export_replaces_an_export_only(place: Path) -> None:
    run, out = place / "run", place / "out"
    before = tree(place)
    for folder in (run, run / "checkpoints", place / "photos", place):
        with pytest.raises(UserError, match=r"--out .*another --out"):
            export(run, to="reference", out=folder, overwrite=True)
    (place / "out.partial").mkdir()
    (place / "out.partial" / "dear.txt").write_text("dear")
    with pytest.raises(UserError, match=r"out\.partial: in the way"):
        export(run, to="reference", out=out)
    shutil.rmtree(place / "out.partial")
    assert tree(place) == before
    export(run, to="reference", out=out)
    (out / "jepa-latest.pth.tar").write_bytes(b"old")
    export(run, to="reference", out=out, overwrite=True)
    assert (out / "jepa-latest.pth.tar").read_bytes() != b"old"
    (out / "notes.txt").write_text("dear")
    with pytest.raises(UserError, match=r"out: holds notes\.txt, which openjepa export did not write"):
        export(run, to="reference", out=out, overwrite=True)
    assert (out / "notes.txt").read_text() == "dear"


def test_a_file_of_features_replaces_one_only(place: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    run, out = place / "run", place / "features.parquet"
    table = place / "labels.parquet"
    names = [str(path.relative_to(place)) for path in sorted((place / "photos").rglob("*.jpg"))]
    parquet.write_table(pyarrow.table({"path": names}), table)
    (place / "features.parquet.parts").mkdir()
    (place / "features.parquet.parts" / "letters.txt").write_text("dear")
    before = tree(place)
    with pytest.raises(UserError, match=r"labels\.parquet: is DATA"):
        openjepa.embed(run, table, table, overwrite=True)
    with pytest.raises(UserError, match=r"labels\.parquet: not a file that openjepa embed wrote"):
        openjepa.embed(run, place / "photos", table, overwrite=True)
    (place / "features.bad_files.jsonl").write_text("dear\n")
    with pytest.raises(UserError, match=r"features\.bad_files\.jsonl: not a list"):
        openjepa.embed(run, place / "photos", out)
    (place / "features.bad_files.jsonl").unlink()
    for _ in range(2):
        openjepa.embed(run, place / "photos", out, overwrite=True)
        assert tree(place).keys() - before.keys() == {"features.parquet"}
    assert {name: content for name, content in tree(place).items() if name in before} == before


def test_predictions_and_results_replace_their_like_only(place: Path) -> None:
    run, labels = place / "run", place / "labels.csv"
    data = {"train": place / "photos", "test": place / "photos"}
    labels.write_text("path,label\nphotos/a/0.jpg,1\n")
    with pytest.raises(UserError, match=r"labels\.csv: not a result of openjepa evaluate"):
        openjepa.evaluate(run, **data, protocols=["knn"], out=labels)
    head = place / "head"
    result, out = place / "result.json", place / "classes.csv"
    for _ in range(2):
        openjepa.evaluate(run, **data, protocols=["knn"], out=result)
    openjepa.evaluate(run, **data, protocols=["logistic"], save_head=head)
    with pytest.raises(UserError, match=r"labels\.csv: not a file that openjepa predict wrote"):
        predict(run, place / "photos", head=head, out=labels, overwrite=True)
    with pytest.raises(UserError, match=r"labels\.csv: is DATA"):
        predict(run, labels, head=head, out=labels, overwrite=True)
    for _ in range(2):
        predict(run, place / "photos", head=head, out=out, overwrite=True)
    assert len(out.read_text().splitlines()) == 9
    assert labels.read_text().startswith("path,label")
