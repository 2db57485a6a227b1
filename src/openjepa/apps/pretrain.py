"""Pretraining as a whole: settings, data, model and folder put together, then `openjepa.train.fit`.

On a folder of images:

    openjepa.pretrain(data="photos", out="runs/photos", max_minutes=20)
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from lightning_fabric import Fabric

from openjepa import checkpoint
from openjepa.allocator import keep_freed_memory
from openjepa.config import Config
from openjepa.data.bad_files import BadFile, BadFiles, count_kinds
from openjepa.data.dataset import ImageDataset
from openjepa.data.loader import Loader
from openjepa.data.sources import Source, open_source
from openjepa.data.statistics import channel_statistics, typical_side
from openjepa.errors import UserError
from openjepa.hub import load, model_of
from openjepa.masks import MaskSampler, make_masks
from openjepa.models.architecture import Architecture, architecture_of
from openjepa.models.transformer import set_attention_path
from openjepa.presets import choose_preset, preset, with_method
from openjepa.probes import HealthProbe, KnnProbe, stop_on_collapse
from openjepa.progress import TrainingProgress
from openjepa.resume import check_changes, check_data
from openjepa.run import Probe, Run
from openjepa.run_folder import RunFolder
from openjepa.runtime import resolve_runtime, resolved_attention
from openjepa.settings import load_config
from openjepa.train import fit
from openjepa.transfer import model_settings, start_from

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


def pretrain(
    *,
    data: str | Path,
    out: str | Path,
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
) -> Path:
    """Pretrain an encoder on unlabelled images; returns the run's folder.

    Args:
        data: Folder, list file, manifest, tar pattern or built-in name.
        out: Folder for everything that the run writes.
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
        overwrite: Remove what is in ``out``.
        stop_on_collapse: End the run with an error when its features have become constant, or at its end only
            tell the position.

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
    options |= {"budget.epochs": epochs, "budget.steps": steps, "budget.max_minutes": max_minutes}
    given = {key: value for key, value in options.items() if value is not None}
    if (eval_train is None) != (eval_test is None):
        raise UserError("--eval-train and --eval-test go together: give both, or neither")
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other: give one")
    request = _Request(
        data=data, out=Path(out), preset=preset, config=config, set=set, options=given, eval_train=eval_train,
        eval_test=eval_test, resume=resume, override=override, allow_data_change=allow_data_change,
        overwrite=overwrite, stop_on_collapse=stop_on_collapse,
    )  # fmt: skip
    _prepare(request)
    return Path(out)


def _prepare(request: _Request) -> None:
    """Settings, processes and the folder's lock; then the run."""
    keep_freed_memory()
    source = open_source(request.data, split="train")
    saved = checkpoint.load_latest(request.out / "checkpoints") if request.resume else None
    config = _settings(request, source, saved)
    if saved is not None:
        check_data(saved, source.fingerprint, len(source), allow=request.allow_data_change)
    device, devices = config.runtime.device, config.runtime.devices
    fabric = Fabric(accelerator=device, devices=devices, strategy="ddp" if devices > 1 else "auto")
    fabric.launch()
    if fabric.global_rank:
        _train(request, config, saved, source, fabric, None, lambda text: None)
        return
    folder = RunFolder(request.out, resume=request.resume, overwrite=request.overwrite)
    with folder, TrainingProgress() as shown:
        if request.resume and saved is None:
            shown.say(f"{request.out}: no checkpoint to resume, starting at step 0")
        _train(request, config, saved, source, fabric, folder, shown.say, shown.update)


def _settings(request: _Request, source: Source, saved: checkpoint.Checkpoint | None) -> Config:
    """The run's settings: those saved, or a preset's; then file, --set and options on top."""
    layers: dict[str, Any] = {"file": request.config, "overrides": request.set, "changes": request.options}
    if saved is not None:
        old = load_config(yaml.safe_load(saved.config))
        new = load_config(yaml.safe_load(saved.config), **layers)
        check_changes(old, new, override=request.override)
        return new
    if request.preset == "auto":
        side = typical_side(source, channels=request.options.get("data.channels", 3))
        base, reason = choose_preset(side, len(source))
        _log.info("preset auto: %s", reason)
    else:
        base = preset(request.preset)
    if source_of_weights := request.options.get("init_from"):
        base = {**base, "model": model_settings(load(source_of_weights).shape)}
    config = load_config(base, **layers)
    if config.method != "ijepa":
        config = load_config(with_method(base, config.method), **layers)
    if config.budget.model_dump(exclude_none=True) == {}:
        raise UserError("how long to train? Give --max-minutes M, --epochs E or --steps N")
    return config


def _train(
    request: _Request,
    config: Config,
    saved: checkpoint.Checkpoint | None,
    source: Source,
    fabric: Fabric,
    folder: RunFolder | None,
    say: Callable[[str], None],
    on_row: Callable[[dict[str, Any]], None] = lambda row: None,
) -> None:
    data, architecture = config.data, architecture_of(config)
    sampler = make_masks(config.masks.name, grid=architecture.grid, **config.masks.settings())
    dataset = open_dataset(config, source)
    bad_files = BadFiles(folder.bad_files if folder else None, max_fraction=data.max_bad_fraction)
    bad_files.note(BadFile(*problem) for problem in source.problems)
    loader = Loader(
        dataset,
        batch_size=data.batch_size,
        seed=config.seed,
        num_workers=data.num_workers,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
    )
    if saved is None:
        if data.normalize == "auto":
            data.mean, data.std = channel_statistics(dataset)
        shapes = _attention_shapes(config, architecture, sampler)
        config.runtime = fabric.broadcast(resolve_runtime(config.runtime, shapes=shapes))
    torch.set_num_threads(config.runtime.threads or 1)
    method = model_of(config)
    if saved is None and config.init_from is not None:
        say(f"start    {start_from(method, load(config.init_from), name=config.init_from)}")
    set_attention_path(method, resolved_attention(config.runtime))

    def watch(row: dict[str, Any]) -> None:
        on_row(row)
        if request.stop_on_collapse:
            stop_on_collapse(row, num_features=architecture.embed_dim)

    run = Run(
        config=config, fabric=fabric, method=method, loader=loader, sampler=sampler, folder=folder,
        probes=_probes(request, config, dataset, sampler, say), on_row=watch,
        on_batch=lambda batch: bad_files.add(num_good=len(batch.samples), bad=batch.bad),
    )  # fmt: skip
    if saved is not None:
        run.restore(saved)
    if folder is not None:
        checkpoint.require_space(folder.path, run.num_bytes())
        folder.cut_metrics(run.step)
        folder.describe(
            config,
            data={"name": source.name, "num_images": len(source), "fingerprint": source.fingerprint},
            model=architecture.as_dict(),
        )
        for line in _summary(run, source):
            say(line)
    before = run.step
    fit(run)
    if folder is not None and (run.step > before or not (folder.path / "report.html").exists()):
        say(f"report   {_report(run, folder.path)}")
    if bad_files.kinds:
        say(f"images skipped: {count_kinds(bad_files.kinds)}; listed in bad_files.jsonl")


def _report(run: Run, folder: Path) -> Path:
    """Draw what the model learned, and write the page about the run."""
    from openjepa.viz import pictures, report  # after training: matplotlib takes half a second

    model, dataset, seed = run.method.eval(), run.loader.dataset, run.config.seed
    grid = architecture_of(run.config).grid
    report.save_picture(folder, "masks", pictures.masks_picture(dataset, run.sampler, grid=grid, seed=seed))
    report.save_picture(folder, "features", pictures.features_picture(model, dataset))
    report.save_picture(folder, "neighbours", pictures.neighbours_picture(model, dataset))
    return report.write_report(folder)


def open_dataset(config: Config, source: Source) -> ImageDataset:
    """The images of a source as this run sees them."""
    data = config.data
    return ImageDataset(
        source,
        image_size=data.image_size,
        channels=data.channels,
        crop_scale=data.crop_scale,
        crop_aspect=data.crop_aspect,
        flip=data.flip,
        interpolation=data.interpolation,
        min_side=data.min_side,
        cache=data.cache,
        cache_bytes=data.cache_bytes,
    )


def _attention_shapes(
    config: Config, architecture: Architecture, sampler: MaskSampler
) -> list[tuple[int, int, int, int]]:
    """(batch, tokens, width, heads) of the attention in the context encoder and in the predictor."""
    masks = sampler(seed=config.seed, step=0, epochs=np.zeros(1, np.int64), samples=np.zeros(1, np.int64))
    (_, contexts, visible), (_, targets, hidden) = masks.context.shape, masks.target.shape
    shape, batch = architecture, config.data.batch_size * contexts
    return [
        (batch, visible, shape.embed_dim, shape.num_heads),
        (batch * targets, visible + hidden, shape.predictor_dim, shape.predictor_heads),
    ]


def _probes(
    request: _Request, config: Config, dataset: ImageDataset, sampler: MaskSampler, say: Callable[[str], None]
) -> list[Probe]:
    """What is measured at health checks."""
    probes: list[Probe] = [HealthProbe(dataset, sampler, say=say)]
    if request.eval_train is not None and request.eval_test is not None:
        train = open_dataset(config, open_source(request.eval_train, split="train"))
        test = open_dataset(config, open_source(request.eval_test, split="test"))
        probes.append(KnnProbe(train, test, say=say))
    return probes


def _summary(run: Run, source: Source) -> list[str]:
    """What is about to happen, in a few lines."""
    config, shape = run.config, architecture_of(run.config)
    runtime, budget = config.runtime, config.budget
    count = sum(parameter.numel() for parameter in run.method.context_encoder.parameters())
    length = run.length
    kept = "cached in memory" if run.loader.dataset.images is not None else "decoded as needed"
    horizon = [f"{1 / (1 - m):,.0f}" if m < 1 else "∞" for m in (config.ema.start, config.ema.end)]
    against = f"{length:,} steps" if length else f"{budget.max_minutes:g} minutes"
    return [
        f"data     {source.name}: {len(source):,} images, {kept}",
        f"model    {config.model.name}: {shape.embed_dim} wide, {shape.depth} deep, {count:,} parameters; "
        f"{shape.image_size[0]}×{shape.image_size[1]} px in {shape.grid[0]}×{shape.grid[1]} patches; "
        f"predictor {shape.predictor_dim} wide, {shape.predictor_depth} deep",
        f"run      preset {config.preset}, {against}, batch {config.data.batch_size}, lr {config.optim.lr:g}, "
        f"from step {run.step:,}",
        f"target   moving average over {horizon[0]} → {horizon[1]} steps (EMA momentum {config.ema.start:g} → "
        f"{config.ema.end:g}) against {against}",
        f"machine  {runtime.device}, {runtime.threads} threads, {runtime.precision}, {runtime.attention} attention",
    ]
