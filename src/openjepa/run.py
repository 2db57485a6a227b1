"""A run: everything that it is made of, how far it has come, and how that is logged, saved and restored."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from openjepa import checkpoint
from openjepa.checks import Checks
from openjepa.config import BudgetConfig, Config
from openjepa.data.dataset import Batch
from openjepa.data.loader import Loader
from openjepa.descriptions import Descriptions
from openjepa.inputs import prepare
from openjepa.masks import MaskSampler
from openjepa.methods import Method, Targets
from openjepa.methods.whole_image import with_whitening
from openjepa.optim import load_optimizer_tensors, make_optimizers, optimizer_tensors
from openjepa.run_folder import RunFolder
from openjepa.settings import dump_config
from openjepa.target_buffer import TargetBuffer

Probe = Callable[[Method], dict[str, float]]
"""A measurement of the model while it trains; it must not touch the run's random numbers."""


@dataclass
class Run:
    """What `openjepa.train.fit` trains.

    Attributes:
        config: Resolved settings.
        fabric: Device and processes.
        method: The model that is trained.
        loader: Batches by step.
        sampler: Masks by step and sample.
        out: The run's folder.
        folder: The same with its lock, where results go; None on all processes but the first.
        probes: Measurements at every health check.
        on_row: Called with every line of metrics (for progress bars).
        on_batch: Called with every batch (for counting bad files).
        descriptions: Whole-image targets, for methods that have them.
        targets: The crops of each step, with their targets where these serve several steps.
        step: Optimiser steps done.
        seconds: Time spent training, over the lives of all processes.
    """

    config: Config
    fabric: Fabric
    method: Method
    loader: Loader
    sampler: MaskSampler
    out: Path
    folder: RunFolder | None
    probes: Sequence[Probe] = ()
    on_row: Callable[[dict[str, Any]], None] = lambda row: None
    on_batch: Callable[[Batch], None] = lambda batch: None
    descriptions: Descriptions | None = None
    targets: TargetBuffer = field(init=False)
    step: int = 0
    seconds: float = 0.0
    optimizers: list[torch.optim.Optimizer] = field(init=False)
    _began: float = field(init=False)
    _step_seconds: float = field(init=False, default=0.0)
    _last_row: tuple[int, float] = field(init=False)

    def __post_init__(self) -> None:
        optim = self.config.optim
        self.optimizers = make_optimizers(
            self.method,
            name=optim.name,
            betas=optim.betas,
            muon_ratio=optim.muon_ratio,
            dtype=torch.bfloat16 if self.low_precision else torch.float32,
        )
        shape = self.method.shape
        pixels = math.prod(shape.image_size) * shape.in_channels
        self.targets = TargetBuffer(
            self.loader,
            self._ask if self.config.objective.target_reuse > 1 or self.descriptions is not None else None,
            reuse=self.config.objective.target_reuse,
            row_bytes=pixels + 2 * math.prod(shape.grid) * shape.embed_dim,
        )
        self.start_clock()

    @property
    def low_precision(self) -> bool:
        """Whether the run computes in bfloat16 autocast."""
        return self.config.runtime.precision == "bfloat16"

    def autocast(self) -> torch.autocast:
        """The run's precision, as a context."""
        return torch.autocast(self.fabric.device.type, dtype=torch.bfloat16, enabled=self.low_precision)

    def start_clock(self) -> None:
        """Count time from here on, on top of what was spent before."""
        self._began = time.perf_counter() - self.seconds
        self._last_row = (self.step, self.seconds)

    @property
    def length(self) -> int | None:
        """Steps of this run, a first stage left out; None when it is given in minutes."""
        return total_steps(
            self.config.own_budget,
            batch_size=self.config.data.batch_size,
            num_images=len(self.loader.dataset),
        )

    def progress(self, ahead: int = 0) -> float:
        """Fraction of the budget used, now or so many steps ahead (by the clock: if they take as long as the last)."""
        length, minutes = self.length, self.config.own_budget.max_minutes
        if length is not None:
            return min(1.0, (self.step + ahead) / length)
        assert minutes is not None, "a budget was checked for when the run was put together"
        return min(1.0, (self.seconds + ahead * self._step_seconds) / (60 * minutes))

    @property
    def finished(self) -> bool:
        """Whether the budget is used up."""
        return self.progress() >= 1.0

    @property
    def generation(self) -> int:
        """Which of its teachers the run is at, from 0; −1 where the moving average teaches."""
        num = self.config.ema.generations
        return min(int(self.progress() * num), num - 1)

    @property
    def checks(self) -> Checks:
        """When the model is measured, where the settings do not say."""
        if self.length is not None:
            return Checks.of_steps(self.length, batch_size=self.config.data.batch_size)
        assert self.config.own_budget.max_minutes is not None
        return Checks.of_minutes(self.config.own_budget.max_minutes)

    @property
    def check_due(self) -> bool:
        """Whether the model is measured after the step just done; at the end it always is."""
        every = self.config.log.health_every_steps
        if every is None:
            return self.finished or self.checks.due(self.progress(ahead=-1), self.progress())
        return self.finished or self.step % every == 0

    def count_step(self) -> None:
        """One more step is done; all processes agree on the time."""
        before, self.step = self.seconds, self.step + 1
        self.seconds = time.perf_counter() - self._began
        if self.fabric.world_size > 1:
            self.seconds = self.fabric.broadcast(self.seconds)
        self._step_seconds = self.seconds - before

    def _ask(self, batch: Batch) -> Targets:
        with self.autocast():
            asked = self.method.ask(prepare(batch.images, self.method))
            if self.descriptions is None or asked.whole is None:
                return asked
            return asked._replace(whole=self.descriptions.of(batch.samples, asked.whole))

    def fit_descriptions(self, *, anew: bool = False) -> None:
        """Fit whole-image targets to the teacher, where that was not done, or ``anew``."""
        if self.descriptions is not None:
            with self.autocast():
                self.descriptions.fit(anew=anew)

    def renew_teacher(self) -> None:
        """Let the target encoder as it is now set the targets from here on."""
        self.method.renew_teacher()
        self.fit_descriptions(anew=True)
        self.targets.forget()

    def log(self, row: dict[str, Any], *, measure: bool) -> None:
        """Write a line of metrics, with the probes' measurements if asked for (first process only)."""
        if self.folder is None:
            return
        steps, seconds = self.step - self._last_row[0], self.seconds - self._last_row[1]
        row["images_per_second"] = round(steps * self.config.data.batch_size / max(seconds, 1e-9), 2)
        if measure:
            self.method.eval()
            with self.autocast():
                for probe in self.probes:
                    row |= probe(self.method)
            self.method.train()
        self.folder.write(row, tensorboard=self.config.log.tensorboard)
        self.on_row(row)
        self._last_row = (self.step, time.perf_counter() - self._began)

    def restore(self, saved: checkpoint.Checkpoint) -> None:
        """Go on from a checkpoint of this run."""
        self.method.load_state_dict(with_whitening(saved.model, like=self.method.state_dict()))
        load_optimizer_tensors(self.method, self.optimizers, saved.optimizer)
        self.step, self.seconds = saved.state["step"], saved.state["seconds"]

    def save(self) -> None:
        """Write a checkpoint (first process only)."""
        if self.folder is None:
            return
        dataset = self.loader.dataset
        checkpoint.save(
            self.folder.checkpoints,
            step=self.step,
            model=self.method.state_dict(),
            optimizer=optimizer_tensors(self.method, self.optimizers),
            state={
                "step": self.step,
                "seconds": self.seconds,
                "num_images": len(dataset),
                "data_fingerprint": dataset.source.fingerprint,
            },
            config=dump_config(self.config),
            keep=self.config.checkpoint.keep,
        )

    def num_bytes(self) -> int:
        """Size of a checkpoint, at most: all weights, and two moments of those that are trained."""
        weights = sum(tensor.nbytes for tensor in self.method.state_dict().values())
        return weights + 2 * sum(p.nbytes for p in self.method.parameters() if p.requires_grad)


def total_steps(budget: BudgetConfig, *, batch_size: int, num_images: int) -> int | None:
    """Length of a run in steps; None when it is given in minutes."""
    if budget.epochs is not None:
        return max(1, int(budget.epochs * num_images / batch_size))
    return budget.steps
