"""One stage of pretraining, from resolved settings to a finished folder: data, masks, model, probes and report."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from openjepa import checkpoint
from openjepa.config import Config
from openjepa.data.bad_files import BadFile, BadFiles, count_kinds
from openjepa.data.dataset import ImageDataset
from openjepa.data.loader import Loader
from openjepa.data.sources import Source, open_source
from openjepa.data.statistics import channel_statistics, shared_value_range
from openjepa.descriptions import Descriptions
from openjepa.errors import UserError
from openjepa.health import judge_row
from openjepa.hub import load, model_of
from openjepa.masks import MaskSampler, make_masks
from openjepa.methods import IJEPA
from openjepa.models.architecture import Architecture, architecture_of
from openjepa.models.transformer import set_attention_path
from openjepa.probes import HealthProbe, KnnProbe, OnlineProbe, StopOnCollapse
from openjepa.processes import by_first
from openjepa.run import Probe, Run
from openjepa.run_folder import RunFolder
from openjepa.runtime import resolve_runtime, resolved_attention
from openjepa.train import fit
from openjepa.transfer import start_from


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What a stage is made with, beside its settings.

    Attributes:
        source: The images.
        fabric: Device and processes.
        out: The stage's folder.
        folder: The same with its lock, where results go; None on all processes but the first.
        saved: The checkpoint to go on from.
        begins_with: Folder of the first stage, whose encoder the run begins with; it comes before `init_from`.
        eval_train: Labelled images for the k-NN that watches.
        eval_test: Labelled images that it classifies.
        stop_on_collapse: End with an error when features become constant.
        say: Called with lines for people.
        on_row: Called with every line of metrics.
    """

    source: Source
    fabric: Fabric
    out: Path
    folder: RunFolder | None
    saved: checkpoint.Checkpoint | None
    begins_with: Path | None = None
    eval_train: str | Path | None = None
    eval_test: str | Path | None = None
    stop_on_collapse: bool = False
    say: Callable[[str], None] = lambda text: None
    on_row: Callable[[dict[str, Any]], None] = lambda row: None


def train(config: Config, stage: Stage) -> None:
    """Train to the end of the budget, then write the report.

    Args:
        config: Resolved settings, but for what is measured here and written into them: statistics and runtime.
        stage: All else.
    """
    source, fabric, folder, saved, say = stage.source, stage.fabric, stage.folder, stage.saved, stage.say
    data, architecture = config.data, architecture_of(config)
    sampler = make_masks(config.masks.name, grid=architecture.grid, **config.masks.settings())
    if saved is None and data.value_range is None:
        data.value_range = shared_value_range(source, channels=data.channels)
        if data.value_range is not None:
            say("values   {:g} is black, {:g} is white (data.value_range)".format(*data.value_range))
    dataset = open_dataset(config, source)
    bad_files = BadFiles(
        folder.bad_files if folder else None, max_fraction=data.max_bad_fraction, num_images=len(source)
    )
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
    if saved is None and (earlier := stage.begins_with or config.init_from):
        say(f"start    {start_from(method, load(earlier), name=str(earlier))}")
    set_attention_path(method, resolved_attention(config.runtime))

    facts: dict[str, Any] = {
        "num_features": architecture.embed_dim, "method": config.method, "generations": config.ema.generations,
    }  # fmt: skip
    stop = StopOnCollapse(**facts)

    def watch(row: dict[str, Any]) -> None:
        stage.on_row(row)
        verdict = judge_row(row, **facts)
        if verdict is not None:
            say(f"health   {verdict.words}")
        if stage.stop_on_collapse:
            stop(row)

    descriptions = None
    if config.objective.whole_weight:
        assert isinstance(method, IJEPA), "the configuration was checked for it"
        descriptions = Descriptions(method, loader)
    run = Run(
        config=config, fabric=fabric, method=method, loader=loader, sampler=sampler, out=stage.out, folder=folder,
        on_row=watch,
        on_batch=lambda batch: bad_files.add(num_good=len(batch.samples), bad=batch.bad),
        descriptions=descriptions,
    )  # fmt: skip
    run.probes = _probes(stage, run, dataset, sampler)
    if saved is not None:
        run.restore(saved)
    by_first(fabric, partial(_begin, run, source, say))
    before = run.step
    fit(run)
    by_first(fabric, partial(_end, run, before, say))
    if bad_files.kinds:
        say(f"images skipped: {count_kinds(bad_files.kinds)}; listed in bad_files.jsonl")


def _begin(run: Run, source: Source, say: Callable[[str], None]) -> None:
    """Make sure that there is room, write what the run is made with, and say what is about to happen."""
    assert run.folder is not None, "the first process has it"
    checkpoint.require_space(run.out, run.num_bytes())
    run.folder.cut_metrics(run.step)
    run.folder.describe(
        run.config,
        data={"name": source.name, "num_images": len(source), "fingerprint": source.fingerprint},
        model=architecture_of(run.config).as_dict(),
    )
    for line in _summary(run, source):
        say(line)


def _end(run: Run, before: int, say: Callable[[str], None]) -> None:
    """Write the report, where steps were made since ``before`` or there is none."""
    if run.step > before or not (run.out / "report.html").exists():
        say(f"report   {_report(run, run.out)}")


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
        value_range=data.value_range,
        cache=data.cache,
        cache_bytes=data.cache_bytes,
        max_bad_fraction=data.max_bad_fraction,
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


def _probes(stage: Stage, run: Run, dataset: ImageDataset, sampler: MaskSampler) -> list[Probe]:
    """What is measured at health checks."""
    config = run.config
    checks = run.checks if config.log.health_every_steps is None else None
    encoder, _ = architecture_of(config).build(seed=config.seed)
    untrained = encoder.to(stage.fabric.device).eval()
    probes: list[Probe] = [HealthProbe(dataset, sampler, untrained=untrained, checks=checks)]
    if stage.eval_train is not None and stage.eval_test is not None:
        labelled = [
            open_dataset(config, open_source(data, split=split))
            for data, split in ((stage.eval_train, "train"), (stage.eval_test, "test"))
        ]
        probes.append(KnnProbe(labelled[0], labelled[1], untrained=untrained, say=stage.say, checks=checks))
        if protocols := config.log.protocols:
            every = config.log.protocols_every_minutes
            probes.append(OnlineProbe(*labelled, protocols=protocols, every_minutes=every, say=stage.say))
    elif config.log.protocols:
        raise UserError(
            f"log.protocols: {', '.join(config.log.protocols)} need labels: give --eval-train and --eval-test"
        )
    return probes


def _summary(run: Run, source: Source) -> list[str]:
    """What is about to happen, in a few lines."""
    config, shape = run.config, architecture_of(run.config)
    runtime, budget = config.runtime, config.own_budget
    count = sum(parameter.numel() for parameter in run.method.context_encoder.parameters())
    length = run.length
    kept = "kept in memory" if run.loader.dataset.cached else "decoded as needed"
    against = f"{length:,} steps" if length else f"{budget.max_minutes:g} minutes"
    lines = [
        f"data     {source.name}: {len(source):,} images, {kept}",
        f"model    {config.model.name}: {shape.embed_dim} wide, {shape.depth} deep, {count:,} parameters; "
        f"{shape.image_size[0]}×{shape.image_size[1]} px in {shape.grid[0]}×{shape.grid[1]} patches; "
        f"predictor {shape.predictor_dim} wide, {shape.predictor_depth} deep",
        f"run      preset {config.preset}, {against}, batch {config.data.batch_size}, lr {config.optim.lr:g}, "
        f"from step {run.step:,}",
        f"machine  {runtime.device}, {runtime.threads} threads, {runtime.precision}, {runtime.attention} attention",
    ]
    if isinstance(run.method, IJEPA):
        horizon = [f"{1 / (1 - m):,.0f}" if m < 1 else "∞" for m in (config.ema.start, config.ema.end)]
        copies = config.ema.generations
        teacher = f"; copies of it that set the targets: {copies}" if copies else ""
        if weight := config.objective.whole_weight:
            teacher += f", of the whole image with weight {weight:g}"
        lines.insert(3, f"target   moving average over {horizon[0]} → {horizon[1]} steps (EMA momentum "
                        f"{config.ema.start:g} → {config.ema.end:g}) against {against}{teacher}")  # fmt: skip
    return lines
