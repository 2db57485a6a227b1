"""What `--overwrite` may remove: what this program wrote, and nothing that the command reads.

A folder is known by the marker that its writer put in it, `.openjepa.json`; a single file by what it is. Whatever else
lies at `--out` is refused with exit code 2, before any work is done and before anything is removed:

    check_run(out, sources={"DATA": data, "--init-from": init_from})      # the first thing that `pretrain` does
    remove_run(out)                                                       # later, under the folder's lock
"""

import contextlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import yaml

from openjepa.config import Config
from openjepa.data.tars import expand_shards
from openjepa.errors import DataError, UserError

_log = logging.getLogger(__name__)
MARKER = ".openjepa.json"
Kind = Literal["run", "export", "draft"]
Sources = Mapping[str, object]
"""What a command reads, by the option that names it: a path, a name, or what is in memory already."""

# What a run writes, below its folder and below its first stage's; anything else in there is somebody else's.
_RUN_ENTRIES = (
    "config.yaml",
    "environment.json",
    "metrics.jsonl",
    "train.log",
    "bad_files.jsonl",
    "report.html",
    *(f"{name}.*.tmp" for name in ("config.yaml", "environment.json", "metrics.jsonl", "report.html")),
    "nonfinite-step-*.safetensors",
    "checkpoints/step-*",
    "checkpoints/.step-*.tmp",
    "pictures/*.png",
    "tensorboard/events.out.tfevents.*",
    MARKER,
)
_RUN_FOLDERS = ("checkpoints", "pictures", "tensorboard")
_FIRST_STAGE, _LOCK = "first-stage", ".lock"
_RESULT = {"protocols", "baselines", "num_test"}
_BAD_FILE = {"path", "reason"}


def refuse_sources(out: Path, sources: Sources) -> None:
    """Refuse an output that is, or that holds, what the command reads.

    Args:
        out: The file or folder that would be replaced.
        sources: What the command reads: paths, tar patterns, or names that are no paths and are passed over.

    Raises:
        UserError: One of them is there; the message names it.
    """
    places = _places(out)
    for option, source in sources.items():
        for path in _paths(source):
            if any(place == mine or place in mine.parents for place in places for mine in _places(path)):
                same = "is" if _places(path) & places else "holds"
                raise UserError(
                    f"--out {out}: {same} {option} ({source}), which this command reads and would replace: name "
                    "another --out"
                )


def check_run(out: Path, *, sources: Sources) -> None:
    """Refuse to overwrite a folder that `pretrain` did not write, or that holds what the command reads.

    Raises:
        UserError: As said; the message names the folder and the fix.
    """
    refuse_sources(out, sources)
    if out.is_dir() and any(entry.name != _LOCK for entry in out.iterdir()) and not is_run(out):
        raise _foreign(out, "a folder that openjepa pretrain wrote")


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's: by its marker, or, of older versions, by settings and results that are ours."""
    if _marker(folder).get("kind") == "run":
        return True
    try:
        tree = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except FileNotFoundError:  # an older version's run that was killed in its first stage has no settings yet
        return (folder / _FIRST_STAGE).is_dir() and is_run(folder / _FIRST_STAGE)
    except (OSError, ValueError, yaml.YAMLError):
        return False
    ours = isinstance(tree, dict) and {"model", "masks", "ema"} <= tree.keys() <= Config.model_fields.keys()
    manifests = (_object(path) for path in folder.glob("checkpoints/step-*/manifest.json"))
    logged = _first_object(folder / "metrics.jsonl")
    return ours and (
        {"step", "loss", "ema_momentum"} <= logged.keys()
        or any({"schema", "step", "sha256"} <= manifest.keys() for manifest in manifests)
    )


def remove_run(folder: Path) -> None:
    """Remove what a run wrote into its folder, and evaluations of it; what others put there stays and is named.

    Raises:
        UserError: The folder is not a run's.
    """
    check_run(folder, sources={})
    mark(folder, "run")  # so that a kill in the middle leaves what can be overwritten
    _remove_run_entries(folder)
    for path in folder.glob("*.json"):  # the report would show them as results of the next run
        if is_result(path):
            path.unlink()
    if left := sorted(entry.name for entry in folder.iterdir() if entry.name != _LOCK):
        _log.warning("%s: left as it is, for openjepa pretrain did not write it: %s", folder, ", ".join(left))


def _remove_run_entries(folder: Path) -> None:
    first = folder / _FIRST_STAGE
    if first.is_dir() and is_run(first):
        _remove_run_entries(first)
        (first / _LOCK).unlink(missing_ok=True)
        _remove_if_empty(first)
    for pattern in _RUN_ENTRIES:
        for entry in folder.glob(pattern):
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    for name in _RUN_FOLDERS:
        _remove_if_empty(folder / name)


def check_export(out: Path, *, sources: Sources) -> None:
    """Refuse to overwrite a folder that is not an export as it was written, or that holds what the command reads.

    Raises:
        UserError: As said; the message names the folder and the fix.
    """
    refuse_sources(out, sources)
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    marker = _marker(out)
    if marker.get("kind") != "export":
        raise _foreign(out, "a folder that openjepa export wrote")
    own = {MARKER, *marker.get("files", ())}
    if others := sorted(entry.name for entry in out.iterdir() if entry.name not in own):
        raise UserError(
            f"--out {out}: holds {others[0]}, which openjepa export did not write, so it is not replaced: "
            "move it elsewhere, or name another --out"
        )


def check_draft(draft: Path) -> None:
    """Refuse a folder in the place of a draft that is not one that a killed process left.

    Raises:
        UserError: As said.
    """
    if draft.is_dir() and any(draft.iterdir()) and _marker(draft).get("kind") != "draft":
        raise UserError(f"{draft}: in the way of what is written here: move it, or name another --out")


def check_file(out: Path, *, sources: Sources, ours: Callable[[Path], bool], what: str) -> None:
    """Refuse to overwrite a file that is not of this program's making, or that the command reads.

    Args:
        out: The file.
        sources: As for `refuse_sources`.
        ours: Tells by a file's content whether this program wrote it.
        what: What such a file is called in the message.

    Raises:
        UserError: As said; the message names the file and the fix.
    """
    refuse_sources(out, sources)
    if out.is_dir():
        raise UserError(f"--out {out}: a folder; expected {what}")
    if out.exists() and out.stat().st_size and not ours(out):
        raise _foreign(out, what)


def is_result(path: Path) -> bool:
    """Whether a file is what `openjepa evaluate --out` writes."""
    return _object(path).keys() >= _RESULT


def is_bad_files(path: Path) -> bool:
    """Whether a file is a list of unreadable images, as `openjepa.data.bad_files` writes it."""
    return _first_object(path).keys() == _BAD_FILE


def mark(folder: Path, kind: Kind, *, files: Iterator[str] | None = None) -> None:
    """Say that this program makes a folder.

    Args:
        folder: The folder.
        kind: What it is.
        files: The names in it, where it is written once and for all.
    """
    facts: dict[str, Any] = {"openjepa": version("openjepa"), "kind": kind}
    if files is not None:
        facts["files"] = sorted(files)
    (folder / MARKER).write_text(json.dumps(facts) + "\n", encoding="utf-8")


def _marker(folder: Path) -> dict[str, Any]:
    return _object(folder / MARKER)


def _object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _first_object(path: Path) -> dict[str, Any]:
    """The object in the first line of a file; an empty one where there is none."""
    try:
        with path.open(encoding="utf-8") as stream:
            content = json.loads(stream.readline())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _foreign(out: Path, what: str) -> UserError:
    return UserError(
        f"--out {out}: not {what}, so it is not replaced: remove it yourself, or name another --out"
    )


def _paths(source: object) -> list[Path]:
    """The files and folders that a source names; none for a built-in, a hub's or a shipped name."""
    if not isinstance(source, (str, Path)) or "://" in str(source):
        return []
    path = Path(source).expanduser()
    if path.exists():
        return [path]
    with contextlib.suppress(DataError):
        return [Path(shard) for shard in expand_shards(str(path))]
    return []


def _places(path: Path) -> set[Path]:
    """Where a path is, as it is written and with links followed."""
    return {path.absolute(), path.resolve()}


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not there, not empty, or a link
        folder.rmdir()
