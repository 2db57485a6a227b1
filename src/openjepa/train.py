"""The training step and the loop around it.

    target pass → context pass → predictor → loss → backward → AdamW → moving average of the target

Everything that a step depends on follows from its number: the samples, their crops and masks, and
(for runs given by steps or epochs) the schedules. So a run resumed at step k needs only k, the
weights and the optimiser's moments.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule
from safetensors.torch import save_file
from torch import Tensor, nn

from openjepa import schedules
from openjepa.config import Config
from openjepa.errors import CollapseError, NonFiniteError, Preempted
from openjepa.failpoint import failpoint
from openjepa.inputs import prepare
from openjepa.masks import Masks
from openjepa.methods import Method, Targets
from openjepa.optim import moments_to_parameters
from openjepa.processes import by_first
from openjepa.run import Run
from openjepa.stop import StopRequest
from openjepa.target_buffer import Crops

_log = logging.getLogger(__name__)

_ENDLESS = 2**40  # steps, for runs that end by the clock


@dataclass(frozen=True)
class Hyperparameters:
    """What the schedules give for one step."""

    lr: float
    weight_decay: float
    ema_momentum: float


def hyperparameters(config: Config, *, progress: float, next_progress: float) -> Hyperparameters:
    """Learning rate and weight decay at the end of the step, EMA momentum at its start (the authors' way).

    Args:
        config: The run.
        progress: Fraction of the run done before the step.
        next_progress: Fraction done after it.
    """
    optim, ema = config.optim, config.ema
    return Hyperparameters(
        lr=schedules.warmup_cosine(
            next_progress,
            total=1.0,
            warmup=optim.warmup,
            start=optim.start_lr,
            peak=optim.lr,
            final=optim.final_lr,
        ),
        weight_decay=schedules.cosine(
            next_progress, total=1.0, start=optim.weight_decay, final=optim.final_weight_decay
        ),
        ema_momentum=schedules.linear(progress, total=1.0, start=ema.start, final=ema.end),
    )


class Part(NamedTuple):
    """The slice of a global batch that goes through one forward pass."""

    images: Tensor
    """(B, c, H, W), normalised."""
    masks: Masks
    """Of these images."""
    targets: Targets | None = None
    """What is to be predicted, where it is known; else the method asks its teacher."""


class Objective(nn.Module):
    """A method as Fabric wraps it (DDP): tensors in, the loss out, in the precision asked for."""

    def __init__(self, method: Method, *, bfloat16: bool = False) -> None:
        super().__init__()
        self.method = method
        self.low_precision = bfloat16

    def forward(
        self, images: Tensor, context: Tensor, target: Tensor, targets: Targets | None = None
    ) -> Tensor:
        """(B, c, H, W), (B, C, Nc), (B, M, Nt) and what is to be predicted -> scalar."""
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=self.low_precision):
            return self.method(images, Masks(context, target), targets).loss


def train_step(
    fabric: Fabric,
    objective: _FabricModule,
    optimizers: Sequence[torch.optim.Optimizer],
    parts: Sequence[Part],
    *,
    hyper: Hyperparameters,
    clip_norm: float | None = None,
) -> float:
    """One optimiser step over a global batch cut into parts, then the target's moving average.

    Args:
        fabric: Precision and processes.
        objective: `Objective`, as Fabric set it up.
        optimizers: Of its parameters, each of one of them; groups say whether they are decayed.
        parts: Of equal numbers of images.
        hyper: What the schedules say.
        clip_norm: Largest norm of the gradient.

    Returns:
        The loss, mean over parts and processes.

    Raises:
        NonFiniteError: The loss or its gradient is NaN or infinite; nothing was updated.
    """
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    for group in groups:
        group["lr"] = hyper.lr
        if group["decay"]:
            group["weight_decay"] = hyper.weight_decay
    total = torch.zeros((), device=fabric.device)
    for number, (images, masks, targets) in enumerate(parts, start=1):
        with fabric.no_backward_sync(objective, enabled=number < len(parts)):
            loss = objective(images, masks.context, masks.target, targets) / len(parts)
            fabric.backward(loss)
        total += loss.detach()
    value = float(cast(Tensor, fabric.all_reduce(total, reduce_op="mean")))
    if not math.isfinite(value):
        raise NonFiniteError(f"the loss is {value}")
    gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if not norm.isfinite():
        for optimizer in optimizers:
            optimizer.zero_grad()
        raise NonFiniteError(f"the loss is {value:.4g}, but its gradient {float(norm)}")
    if clip_norm is not None:
        nn.utils.clip_grads_with_norm_([p for group in groups for p in group["params"]], clip_norm, norm)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    cast(Method, objective.method).update_target(hyper.ema_momentum)
    return value


def fit(run: Run) -> None:
    """Train to the end of the budget, logging, probing and saving on the way.

    Raises:
        NonFiniteError: The loss or its gradient became NaN or infinite; the batch lies in the run's folder.
        CollapseError: Who watches the metrics ends the run: saved first.
        Preempted: Asked to stop (SIGTERM, SIGUSR1, Ctrl-C), in the last step too: saved first.
    """
    if run.progress() >= 1.0:
        return
    config, fabric = run.config, run.fabric
    module = Objective(run.method, bfloat16=run.low_precision)
    if config.runtime.compile:
        module.compile(dynamic=False)  # in place; lengths are fixed within a step
    objective, *optimizers = fabric.setup(module, *run.optimizers)
    moments_to_parameters(run.optimizers)
    run.method.train()
    run.start_clock()
    run.fit_descriptions()
    last_save = run.seconds
    with StopRequest() as stop:
        for crops in run.targets.iterate(run.step, (run.length or _ENDLESS) - run.step):
            if not crops.turn:
                run.on_batch(crops.batch)
            hyper = hyperparameters(config, progress=run.progress(), next_progress=run.progress(ahead=1))
            parts = _parts(run, crops)
            try:
                loss = train_step(
                    fabric, objective, optimizers, parts, hyper=hyper, clip_norm=config.optim.clip_norm
                )
            except NonFiniteError as error:
                raise _dump(run, parts, error) from None
            generation = run.generation
            run.count_step()
            if run.generation > generation:
                run.renew_teacher()
            failpoint(f"step-{run.step}")
            if run.step % config.log.every_steps == 0 or run.check_due:
                row = _row(run, loss, hyper, parts[0][1])
                by_first(fabric, partial(_log_row, run, row))
            due = run.seconds - last_save > config.checkpoint.every_minutes * 60
            stopping = stop.agreed(fabric)
            if run.step % config.checkpoint.every_steps == 0 or due or run.finished or stopping:
                by_first(fabric, run.save)
                last_save = run.seconds
            # At the end once more: what was asked while the last step was saved, no later step would answer.
            if stopping or (run.finished and stop.agreed(fabric)):
                raise Preempted(f"stopped at step {run.step:,}, saved; go on with --resume")
            if run.finished:
                return


def _log_row(run: Run, row: dict[str, Any]) -> None:
    """Write a line of metrics; a run that is ended by what it says is saved first."""
    try:
        run.log(row, measure=run.check_due)
    except CollapseError:
        run.save()
        raise


def _parts(run: Run, crops: Crops) -> list[Part]:
    """Normalised images with their masks and targets, on the device, cut for accumulation."""
    batch, config = crops.batch, run.config
    epochs = batch.epochs * config.objective.target_reuse + crops.turn  # each turn has masks of its own
    masks = run.sampler(seed=config.seed, step=run.step, epochs=epochs, samples=batch.samples).to(
        run.fabric.device
    )
    images = prepare(batch.images, run.method)
    size = len(images) // config.optim.accumulate
    targets = [None] * config.optim.accumulate if crops.targets is None else crops.targets.split(size)
    cut = zip(images.split(size), masks.context.split(size), masks.target.split(size), targets, strict=True)
    return [Part(part, Masks(context, target), asked) for part, context, target, asked in cut]


def _row(run: Run, loss: float, hyper: Hyperparameters, masks: Masks) -> dict[str, Any]:
    return {
        "step": run.step,
        "progress": run.progress(),
        "images": run.step * run.config.data.batch_size,
        "seconds": round(run.seconds, 3),
        "loss": loss,
        "lr": hyper.lr,
        "weight_decay": hyper.weight_decay,
        "ema_momentum": hyper.ema_momentum,
        "context_patches": masks.context.shape[2],
        "target_patches": masks.target.shape[2],
    }


def _dump(run: Run, parts: Sequence[Part], error: NonFiniteError) -> NonFiniteError:
    """Keep the batch that broke, for replay."""
    path = run.out / f"nonfinite-step-{run.step + 1}-rank-{run.fabric.global_rank}.safetensors"
    tensors: dict[str, Tensor] = {}
    for number, (images, masks, asked) in enumerate(parts):
        known = {} if asked is None else asked._asdict()
        held = {"images": images, "context": masks.context, "target": masks.target, **known}
        tensors |= {
            f"{name}.{number}": tensor.cpu().contiguous()
            for name, tensor in held.items()
            if tensor is not None
        }
    save_file(tensors, path)
    run.fabric.barrier()
    return NonFiniteError(
        f"{error} at step {run.step + 1}; nothing was updated. The batch is in {path}. "
        "Lower optim.lr, set optim.clip_norm=1, or try runtime.precision=float32; the last checkpoint is good"
    )
