"""What `--preset auto` does with data, machine and budget: image size, settings that follow the length, what to expect.

For a budget in minutes the steps of both stages are timed, in seconds, once a machine (`openjepa.measured`); from that
follows how many steps there will be. A run given by steps or epochs is planned from data and budget alone, so that it
is the same on every machine.
"""

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import torch

from openjepa.apps.stage import open_dataset
from openjepa.config import Config
from openjepa.data.bad_files import BadImage
from openjepa.data.dataset import spread
from openjepa.data.sources import Source
from openjepa.hub import model_of
from openjepa.masks import make_masks
from openjepa.measured import remembered
from openjepa.models.architecture import architecture_of
from openjepa.models.transformer import set_attention_path
from openjepa.optim import make_optimizers
from openjepa.presets import (
    ENOUGH_STEPS,
    Choice,
    Images,
    Settings,
    candidates,
    choose_preset,
    derive,
    first_share,
    paced,
    with_method,
)
from openjepa.run import total_steps
from openjepa.runtime import resolve_runtime, resolved_attention
from openjepa.settings import load_config

_TIMED = 2  # steps, of which the fastest counts: whatever else a machine does only adds
_LOOKED_AT = 32  # images that are decoded and cropped to learn what that costs

Resolve = Callable[[Settings], Config]
"""Settings of a preset -> the configuration with file, `--set` and options on top."""


@dataclass(frozen=True)
class Forecast:
    """How far a run will come."""

    first_steps: int
    """Optimiser steps of the first stage; 0 where there is none."""
    steps: int
    """Optimiser steps of the run itself."""
    images: int
    """Images that all of them see."""
    seconds: float | None
    """Of training; None where the budget is not time."""

    @property
    def total(self) -> int:
        """Optimiser steps of both stages."""
        return self.first_steps + self.steps

    def words(self, num_images: int) -> str:
        """What to expect, in one line."""
        first = f"{self.first_steps:,} + " if self.first_steps else ""
        rate = f", {self.images / self.seconds:,.0f} images/s" if self.seconds else ""
        return (
            f"about {first}{self.steps:,} steps, {self.images:,} images (each {self.images / num_images:,.1f} times)"
            f"{rate}"
        )


def plan(
    source: Source,
    images: Images,
    resolve: Resolve,
    *,
    method: str,
    accelerated: bool,
    patch: int | None = None,
) -> tuple[Choice, Forecast | None]:
    """Settings for these images within the budget, and what to expect of them.

    Without a GPU the largest image size is taken at which the run still has enough steps (`ENOUGH_STEPS`).

    Args:
        source: The images.
        images: What they are like.
        resolve: Adds what the user asked for to a preset's settings.
        method: What is to be trained.
        accelerated: Whether there is a GPU.
        patch: Patch size of the encoder that the run starts from; None where it starts from none.

    Returns:
        The choice, and the forecast; None where no budget is given.
    """
    found = None
    for size in [None] if accelerated else candidates(images.side, patch or 4):
        tried = choose_preset(
            images,
            size=size,
            patch=patch or 4,
            method=method,
            accelerated=accelerated,
            from_weights=bool(patch),
        )
        config = resolve(tried.settings if method == "ijepa" else with_method(tried.settings, method))
        ahead = forecast(config, source)
        across = max(architecture_of(config).grid)
        if found is not None and (ahead is None or ahead.total < ENOUGH_STEPS.get(across, math.inf)):
            break
        choice, found = tried, ahead
    if found is not None and method == "ijepa":
        settings, found = at_pace(choice.settings, source, resolve, found)
        choice = replace(choice, settings=settings)
    return choice, found


def in_words(choice: Choice, config: Config) -> str:
    """What a run will be like, and why.

    Args:
        choice: What was chosen.
        config: The settings that came of it, with what the user asked for.
    """
    rows, columns = architecture_of(config).grid
    return (
        f"{config.preset}, {rows} × {columns} patches of {config.model.patch_size[0]} px, "
        f"batch {config.data.batch_size}: {choice.reason}"
    )


def at_pace(
    settings: Settings, source: Source, resolve: Resolve, found: Forecast
) -> tuple[Settings, Forecast]:
    """A preset's settings, those that follow the length of the run set for this one.

    Args:
        settings: Of a preset.
        source: The images.
        resolve: As for `plan`.
        found: How far the run would come with the preset as it is.

    Returns:
        The settings, and how far the run comes with them.
    """
    if settings["preset"] != "salt":
        return settings, found
    if found.first_steps:
        settings = derive(settings, {"first_stage": {"share": first_share(found.total)}})
        found = forecast(resolve(settings), source) or found
    return derive(settings, paced(found.steps)), found


def forecast(config: Config, source: Source) -> Forecast | None:
    """How far a run of these settings comes within its budget; None where it has none.

    Args:
        config: Settings as the run will have them, but for what is measured.
        source: The images.
    """
    first, budget, batch = config.first_stage, config.budget, config.data.batch_size
    share = first.share if first.method != "none" else 0.0
    if budget.max_minutes is None:
        length = total_steps(budget, batch_size=batch, num_images=len(source))
        if length is None:
            return None
        first_steps = round(length * share)
        steps = max(1, length - first_steps)
        return Forecast(first_steps, steps, (first_steps + steps) * batch, None)
    seconds = 60 * budget.max_minutes
    runtime = resolve_runtime(config.runtime, shapes=[])
    config = config.model_copy(update={"runtime": runtime})
    decoding, cropping = _loading_seconds(config, source, seconds)
    loading = (decoding + cropping) * batch / runtime.devices / (runtime.threads or 1)
    first_steps = 0
    if share:
        stage = load_config({**with_method(config.model_dump(mode="json"), first.method), "first_stage": {}})
        first_steps = int(share * seconds / (sum(_step_seconds(stage)) + loading))
    asking, stepping = _step_seconds(config)
    reuse, seconds_left = config.objective.target_reuse, (1 - share) * seconds
    asked = asking + loading
    if config.objective.whole_weight:  # each image is described as a whole, once
        crops = seconds_left / ((asked + asking) / reuse + stepping) * batch / reuse
        if crops > len(source):
            seconds_left -= asking * len(source) / batch
        else:
            asked += asking
    steps = max(1, int(seconds_left / (asked / reuse + stepping)))
    return Forecast(first_steps, steps, (first_steps + steps) * batch, seconds)


def _loading_seconds(config: Config, source: Source, seconds: float) -> tuple[float, float]:
    """One thread's time for an image before the model sees it: for decoding and for cropping.

    Images that are kept in memory are decoded once: within ``seconds`` there is no time for more of them than that.
    """
    uncached = config.model_copy(update={"data": config.data.model_copy(update={"cache": "never"})})
    dataset, samples = open_dataset(uncached, source), spread(len(source), _LOOKED_AT)
    start = time.process_time()
    for index in samples.tolist():
        with suppress(BadImage):
            dataset.pixels(index)
    decoding = (time.process_time() - start) / len(samples)
    start = time.process_time()
    dataset.evaluation_batch(samples)
    cropping = max(0.0, (time.process_time() - start) / len(samples) - decoding)
    if config.data.cache == "auto" and dataset.fits(config.data.cache_bytes):
        decoding *= min(1.0, len(source) * decoding / seconds)
    return decoding, cropping


def _step_seconds(config: Config) -> list[float]:
    """What it takes to ask the teacher about a batch, and the rest of a step: measured once a machine."""
    shape, runtime = architecture_of(config), config.runtime
    facts = {
        "method": config.method, "shape": shape.as_dict(), "batch": config.data.batch_size // runtime.devices,
        "masks": config.masks.model_dump(mode="json"), "optimizer": config.optim.name,
        "threads": runtime.threads, "precision": runtime.precision, "device": runtime.device,
    }  # fmt: skip
    return remembered("seconds to ask and to step", facts, lambda: _timed_step(config))


def _timed_step(config: Config) -> list[float]:
    """The measurement, on images of noise."""
    torch.set_num_threads(config.runtime.threads or 1)
    shape, runtime = architecture_of(config), config.runtime
    batch = config.data.batch_size // runtime.devices
    device, low = runtime.device, runtime.precision == "bfloat16"
    method = model_of(config).to(device)
    set_attention_path(method, resolved_attention(runtime))
    optim = config.optim
    optimizers = make_optimizers(
        method, name=optim.name, betas=optim.betas, muon_ratio=optim.muon_ratio,
        dtype=torch.bfloat16 if low else torch.float32,
    )  # fmt: skip
    sampler = make_masks(config.masks.name, grid=shape.grid, **config.masks.settings())
    masks = sampler(seed=0, step=0, epochs=np.zeros(batch, np.int64), samples=np.arange(batch)).to(
        torch.device(device)
    )
    images = torch.rand(
        batch, shape.in_channels, *shape.image_size, generator=torch.Generator().manual_seed(0)
    ).to(device)

    def clock() -> float:
        """Seconds; on CPUs of the process's own time, so that what else a machine does now is not kept for good."""
        if device == "cuda":
            torch.cuda.synchronize()
        return time.process_time() / torch.get_num_threads() if device == "cpu" else time.perf_counter()

    asking, stepping = [], []
    for _ in range(_TIMED + 1):
        start = clock()
        with torch.autocast(device, dtype=torch.bfloat16, enabled=low):
            asked = method.ask(images)
        middle = clock()
        with torch.autocast(device, dtype=torch.bfloat16, enabled=low):
            loss = method(images, masks, asked).loss
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        asking.append(middle - start)
        stepping.append(clock() - middle)
    return [min(asking[1:]), min(stepping[1:])]
