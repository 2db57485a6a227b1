"""Whether a run may go on with other settings or other data than it began with."""

import logging

from openjepa.checkpoint import Checkpoint
from openjepa.config import Config
from openjepa.data.sources import Source, same_data
from openjepa.errors import CheckpointError, UserError
from openjepa.settings import differences, load_config

_log = logging.getLogger(__name__)

# A resumed run changes the first freely and can't change the second at all; the rest needs --override.
_FREE = ("log.", "checkpoint.", "data.num_workers", "data.cache", "data.max_bad_fraction", "preset", "plan")
_FIXED = (
    "method",
    "model.",
    "ema.generations",
    "data.image_size",
    "data.channels",
    "data.mean",
    "data.std",
    "data.interpolation",
    "data.value_range",
)


def check_changes(old: Config, new: Config, *, override: bool) -> None:
    """Compare the settings of a checkpoint with those asked for now.

    Raises:
        UserError: Something that can't change, or that needs --override, did; the difference is listed.
    """
    changed = differences(old, new)
    lines = {key: f"  {key}: {before} → {after}" for key, (before, after) in changed.items()}
    fixed = [line for key, line in lines.items() if key.startswith(_FIXED)]
    if fixed:
        raise UserError(
            "--resume can't change these settings; start another run for them:\n" + "\n".join(fixed)
        )
    costly = [line for key, line in lines.items() if not key.startswith(_FREE)]
    if costly and not override:
        raise UserError(
            "--resume with other settings would not be the same run; add --override to do so anyway:\n"
            + "\n".join(costly)
        )
    for line in lines.values():
        _log.warning("resumed with a changed setting:%s", line[1:])


def with_measured(config: Config, began: Config) -> Config:
    """Settings as they were asked for, with what a run that began with them measured: statistics and runtime.

    What is asked for by a value of its own, and not left to be measured, stays.
    """
    tree, before = config.model_dump(mode="json"), began.model_dump(mode="json")
    for name, value in tree["runtime"].items():
        if value in (None, "auto"):
            tree["runtime"][name] = before["runtime"][name]
    if config.data.normalize == began.data.normalize == "auto":
        tree["data"] |= {name: before["data"][name] for name in ("mean", "std")}
    if config.data.value_range is None:
        tree["data"]["value_range"] = before["data"]["value_range"]
    return load_config(tree)


def check_data(saved: Checkpoint, source: Source, *, allow: bool) -> None:
    """Compare the data set of a checkpoint with the one given now.

    Raises:
        CheckpointError: It is another, and that was not allowed.
    """
    before, num_images = saved.state, len(source)
    if same_data(source, before["data_fingerprint"]):
        return
    difference = f"it had {before['num_images']:,} images, now {num_images:,}"
    if before["num_images"] == num_images:
        difference = f"as many images ({num_images:,}), but other names, sizes or content"
    if not allow:
        raise CheckpointError(
            f"{saved.path}: the data set changed since this checkpoint: {difference}. "
            "Restore the data, or go on with --allow-data-change"
        )
    _log.warning("resumed on changed data: %s", difference)
