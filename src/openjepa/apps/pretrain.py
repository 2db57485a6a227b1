"""Pretraining as a whole: settings, data, model and folder put together, then `openjepa.train.fit`.

One stage, or two: `openjepa.apps.stage` puts each together. On a folder of images:

    openjepa.pretrain(data="photos", out="runs/photos", max_minutes=20)
"""

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from lightning_fabric import Fabric
from rich.console import Console

from openjepa import checkpoint
from openjepa.allocator import keep_freed_memory
from openjepa.apps.plan import at_pace, forecast, in_words, plan
from openjepa.apps.stage import Stage, train
from openjepa.config import Config
from openjepa.data.sources import Source, open_source
from openjepa.data.statistics import look
from openjepa.errors import FirstProcessFailed, NonFiniteError, Preempted, UserError
from openjepa.hub import load
from openjepa.overwrite import check_run, refuse_sources
from openjepa.presets import Images, Settings, preset, with_method
from openjepa.processes import by_first
from openjepa.progress import TrainingProgress
from openjepa.reference_config import from_reference_config, is_reference_config
from openjepa.resume import check_changes, check_data, with_measured
from openjepa.run_folder import RunFolder
from openjepa.runtime import resolve_device
from openjepa.settings import asked_for, dump_config, load_config, read_yaml, set_key
from openjepa.transfer import model_settings

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Request:
    """What was asked for, beyond settings."""

    data: str | Path
    out: Path
    preset: str
    config: str | Path | None
    set: Sequence[str]
    options: dict[str, Any]
    eval_train: str | Path | None
    eval_test: str | Path | None
    resume: bool
    override: bool
    allow_data_change: bool
    overwrite: bool
    stop_on_collapse: bool
    dry_run: bool


def pretrain(
    *,
    data: str | Path,
    out: str | Path | None = None,
    method: str | None = None,
    preset: str = "auto",
    config: str | Path | None = None,
    set: Sequence[str] = (),
    epochs: float | None = None,
    steps: int | None = None,
    max_minutes: float | None = None,
    seed: int | None = None,
    devices: int | None = None,
    channels: int | None = None,
    init_from: str | Path | None = None,
    eval_train: str | Path | None = None,
    eval_test: str | Path | None = None,
    resume: bool = False,
    override: bool = False,
    allow_data_change: bool = False,
    overwrite: bool = False,
    stop_on_collapse: bool = False,
    dry_run: bool = False,
) -> Path:
    """Pretrain an encoder on unlabelled images; returns the run's folder.

    Args:
        data: Folder, list file, manifest, tar pattern or built-in name.
        out: Folder for everything that the run writes; only ``dry_run`` needs none.
        method: Pretraining method: `ijepa`, `mae` or `maskfeat`.
        preset: Settings to start from; `auto` chooses by the size of the images.
        config: YAML file of settings on top of the preset.
        set: `KEY=VALUE` texts on top of that, as `--set` takes them.
        epochs: Passes over the data; give one of epochs, steps and max_minutes.
        steps: Optimiser steps.
        max_minutes: Minutes of training.
        seed: Seed of weights, order, crops and masks.
        devices: Processes, one a device.
        channels: Channels of the images.
        init_from: Checkpoint to take the encoder from, its shape and its weights, for images of any size.
        eval_train: Labelled images for the k-NN that watches the run.
        eval_test: Labelled images that it classifies.
        resume: Go on from the newest checkpoint in ``out`` (from step 0 where there is none).
        override: Let a resumed run change settings that affect its result.
        allow_data_change: Let a resumed run go on with other data.
        overwrite: Remove what an earlier run wrote in ``out``; any other folder is refused.
        stop_on_collapse: End the run with an error when its features have become constant, or at its end only
            tell the position.
        dry_run: Only say what would be done, why, and what to expect; nothing is written.

    Raises:
        UserError: A mistake in settings, data or checkpoints; the message says what to do.
        CollapseError: With ``stop_on_collapse``: there is nothing to evaluate. The metrics are kept.
        Preempted: Asked to stop by a signal; the run was saved.
    """
    options: dict[str, Any] = {
        "method": method,
        "seed": seed,
        "runtime.devices": devices,
        "data.channels": channels,
        "init_from": None if init_from is None else str(init_from),
    }
    given = {key: value for key, value in options.items() if value is not None}
    length = {"budget.epochs": epochs, "budget.steps": steps, "budget.max_minutes": max_minutes}
    if any(value is not None for value in length.values()):
        given |= length  # whole, for it replaces a length of another kind that a preset or a file has
    if (eval_train is None) != (eval_test is None):
        raise UserError("--eval-train and --eval-test go together: give both, or neither")
    if out is None and not dry_run:
        raise UserError("where to? Give --out DIR, the folder for everything that the run writes")
    out = Path(out or "")
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other: give one")
    if overwrite:
        sources = {
            "DATA": data, "--config": config, "--init-from": init_from, "--eval-train": eval_train,
            "--eval-test": eval_test,
        }  # fmt: skip
        check_run(out, sources=sources)
    request = _Request(
        data=data, out=out, preset=preset, config=config, set=set, options=given, eval_train=eval_train,
        eval_test=eval_test, resume=resume, override=override, allow_data_change=allow_data_change,
        overwrite=overwrite, stop_on_collapse=stop_on_collapse, dry_run=dry_run,
    )  # fmt: skip
    _prepare(request)
    return out


def planned_config(data: str | Path, *, max_minutes: float) -> Config:
    """What `--preset auto` makes of these images within so many minutes."""
    request = _Request(
        data=data, out=Path(), preset="auto", config=None, set=(), options={"budget.max_minutes": max_minutes},
        eval_train=None, eval_test=None, resume=False, override=False, allow_data_change=False, overwrite=False,
        stop_on_collapse=False, dry_run=True,
    )  # fmt: skip
    return _settings(request, open_source(data, split="train"), None)


def _prepare(request: _Request) -> None:
    """Settings, processes and the folder's lock; then the run, or its two stages."""
    keep_freed_memory()
    source = open_source(request.data, split="train")
    saved = checkpoint.load_latest(request.out / "checkpoints") if request.resume else None
    config = _settings(request, source, saved)
    if request.overwrite:
        refuse_sources(request.out, {"init_from": config.init_from})  # a file or --set may name it too
    if request.dry_run:
        _say_plan(config, source)
        return
    if saved is not None:
        check_data(saved, source, allow=request.allow_data_change)
    device, devices = resolve_device(config.runtime.device), config.runtime.devices
    fabric = Fabric(accelerator=device, devices=devices, strategy="ddp" if devices > 1 else "auto")
    fabric.launch()
    config = fabric.broadcast(config)  # each process has planned, and clocks differ
    stage = Stage(
        source=source, fabric=fabric, out=request.out, folder=None, saved=saved, eval_train=request.eval_train,
        eval_test=request.eval_test, stop_on_collapse=request.stop_on_collapse,
    )  # fmt: skip
    if fabric.global_rank:  # the first process says how it ended
        with suppress(FirstProcessFailed, NonFiniteError, Preempted):
            by_first(fabric, lambda: None)
            _train_stages(config, stage, request)
        return
    made: list[RunFolder] = []
    by_first(
        fabric,
        lambda: made.append(RunFolder(request.out, resume=request.resume, overwrite=request.overwrite)),
    )
    [folder] = made
    with folder, TrainingProgress() as shown:
        if request.resume and saved is None and not (request.out / "first-stage").exists():
            shown.say(f"{request.out}: no checkpoint to resume, starting at step 0")
        stage = replace(stage, folder=folder, say=shown.say, on_row=shown.update)
        _train_stages(config, stage, request)


def _train_stages(config: Config, stage: Stage, request: _Request) -> None:
    """The run itself; where it asks for a first stage and has not begun, that one before it, in a folder of its own."""
    if config.first_stage.method != "none" and stage.saved is None:
        first = request.out / "first-stage"
        if stage.folder is not None:  # what was chosen, for a run that goes on after a stop in this stage
            stage.folder.describe(config)
        stage.say(
            f"stage 1  {config.first_stage.method}, {config.first_stage.share:.0%} of the budget, in {first}"
        )
        _train_first(_first_stage(config), stage, first, request)
        stage.fabric.barrier()
        stage.say(f"stage 2  {config.method}")
        stage = replace(stage, begins_with=first)
    train(config, stage)


def _train_first(config: Config, stage: Stage, out: Path, request: _Request) -> None:
    """A first stage, from where it stands; on the same data and with the same settings, as any run that goes on."""
    saved = checkpoint.load_latest(out / "checkpoints") if request.resume else None
    if saved is not None:
        check_data(saved, stage.source, allow=request.allow_data_change)
        began = load_config(yaml.safe_load(saved.config))
        config = with_measured(config, began)
        check_changes(began, config, override=request.override)
        stage.say(f"{out}: going on at step {saved.state['step']:,}")
    if stage.folder is None:
        train(config, replace(stage, saved=saved, out=out))
        return
    with RunFolder(out, resume=True) as folder:
        train(config, replace(stage, saved=saved, out=out, folder=folder))


def _first_stage(config: Config) -> Config:
    """The settings of the first stage: the run's, with what its method is trained with, and its share of the budget."""
    first = config.first_stage
    settings = with_method(config.model_dump(mode="json"), first.method)
    budget = config.budget.part(first.share).model_dump()
    lr = {} if first.lr is None else {"optim.lr": first.lr}
    return load_config({**settings, "budget": budget, "first_stage": {}}, changes=lr)


def _reference_settings(request: _Request) -> dict[str, Any] | None:
    """What a configuration file of the authors asks for, on the preset that is theirs; None of another file."""
    if request.config is None or not is_reference_config(tree := read_yaml(request.config)):
        return None
    if request.preset not in ("auto", "reference"):
        raise UserError(
            f"--config {request.config}: a file of the authors' code brings its own preset, reference; leave out "
            f"--preset {request.preset}"
        )
    base = preset("reference")
    for key, value in from_reference_config(tree, where=str(request.config)).items():
        set_key(base, key, value)
    return base


def _settings(request: _Request, source: Source, saved: checkpoint.Checkpoint | None) -> Config:
    """The run's settings: those saved, or a preset's; then file, --set and options on top."""
    theirs = _reference_settings(request)
    layers: dict[str, Any] = {
        "file": request.config if theirs is None else None, "overrides": request.set, "changes": request.options,
    }  # fmt: skip
    if begun := saved.config if saved is not None else _begun(request):
        old = load_config(yaml.safe_load(begun))
        new = load_config(yaml.safe_load(begun), **layers)
        check_changes(old, new, override=request.override)
        return new
    if theirs is not None:
        base = theirs
    elif request.preset == "auto":
        base = _planned(source, layers)
    else:
        base = _paced(preset(request.preset), source, layers)
    config = _resolved(base, layers)
    if config.budget.model_dump(exclude_none=True) == {}:
        raise UserError("how long to train? Give --max-minutes M, --epochs E or --steps N")
    return config


def _begun(request: _Request) -> str | None:
    """The configuration of a run that was stopped in its first stage: a plan measured anew could be another one."""
    chosen = request.out / "config.yaml"
    if not request.resume or not (request.out / "first-stage").exists() or not chosen.exists():
        return None
    return chosen.read_text(encoding="utf-8")


def _resolved(base: Settings, layers: dict[str, Any]) -> Config:
    """A preset's settings with file, --set and options on top, and the shape of weights that the run starts from."""
    config = load_config(base, **layers)
    if config.init_from is not None:
        base = {**base, "model": model_settings(load(config.init_from).shape)}
        config = load_config(base, **layers)
    if config.method != "ijepa":
        config = load_config(with_method(base, config.method), **layers)
    return config


def _planned(source: Source, layers: dict[str, Any]) -> Settings:
    """What `--preset auto` chooses, with the reason and what to expect under the key `plan`."""
    asked = asked_for(**layers)  # by an option, --set or a file
    found = look(source, channels=asked.get("data.channels"))
    earlier = asked.get("init_from")
    choice, ahead = plan(
        source,
        Images(side=found.side, number=len(source), channels=found.channels),
        lambda settings: _resolved(settings, layers),
        method=asked.get("method", "ijepa"),
        accelerated=resolve_device(asked.get("runtime.device", "auto")) != "cpu",
        patch=None if earlier is None else load(earlier).shape.patch_size[0],
    )
    words = in_words(choice, _resolved(choice.settings, layers))
    if ahead is not None:
        words += f"; expects {ahead.words(len(source))}"
    _log.info("preset auto: %s", words)
    return {**choice.settings, "plan": words}


def _paced(base: Settings, source: Source, layers: dict[str, Any]) -> Settings:
    """A preset's settings, those that follow the length of the run set for this one."""
    config = _resolved(base, layers)
    if config.method != "ijepa" or base["preset"] != "salt" or (ahead := forecast(config, source)) is None:
        return base
    settings, _ = at_pace(base, source, lambda settings: _resolved(settings, layers), ahead)
    return settings


def _say_plan(config: Config, source: Source) -> None:
    """What a run of these settings would do, for --dry-run; `auto` has told already."""
    ahead = forecast(config, source)
    if not config.plan and ahead is not None:
        _log.info("expects %s", ahead.words(len(source)))
    Console().print(dump_config(config), highlight=False, markup=False, soft_wrap=True, end="")
