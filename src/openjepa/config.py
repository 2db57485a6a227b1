"""What a run is: every setting typed, documented and validated (`openjepa.settings` puts one together).

A field's docstring gives its unit, range and source. `None` in a default means "resolved once from
data, model or machine, then written down".
"""

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Size = tuple[int, int]
Range = tuple[float, float]


class Section(BaseModel):
    """Base of every section: unknown keys are errors, assignments are checked."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, use_attribute_docstrings=True)


class DataConfig(Section):
    """Images: their size, crops and loading."""

    image_size: Size = (32, 32)
    """(height, width) in pixels that the encoder sees; one number means a square."""
    channels: int = Field(3, ge=1)
    """Channels of the images: 1 grey, 3 RGB, more for TIFF and .npy stacks."""
    batch_size: int = Field(64, ge=1)
    """Images a step, over all devices and accumulated parts."""
    num_workers: int = Field(0, ge=0)
    """Processes that decode; unused where all images are kept in memory."""
    cache: Literal["auto", "never"] = "auto"
    """auto: decoded images are kept in memory, as many as fit in `cache_bytes`."""
    cache_bytes: int = Field(2 * 2**30, ge=0)
    """Most memory, in bytes, that kept images may take."""
    crop_scale: Range = (0.3, 1.0)
    """Area of the random crop as a fraction of the image (authors' code: 0.3 to 1)."""
    crop_aspect: Range = (3 / 4, 4 / 3)
    """Aspect ratio, width over height, of the random crop."""
    flip: bool = True
    """Mirror half of the images. The paper does not."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Filter of every resize, antialiased when shrinking."""
    normalize: Literal["imagenet", "auto"] = "imagenet"
    """Mean and std of the channels: ImageNet's, or measured on a sample of the data."""
    mean: tuple[float, ...] | None = None
    """Channel means in [0, 1]; resolved from `normalize`."""
    std: tuple[float, ...] | None = None
    """Channel standard deviations in [0, 1]; resolved from `normalize`."""
    min_side: int = Field(2, ge=1)
    """Images with a shorter side, in pixels, are skipped and counted."""
    value_range: Range | None = None
    """The numbers that are black and white in images wider than 8 bits. By default files and types say it, 16 bits are
    0 to 65,535; for floats and other integers it is decided once, by a look at the data (docs/data.md)."""
    max_bad_fraction: float = Field(0.01, ge=0, le=1)
    """The run stops once it is certain that more than this fraction of the images is unreadable (and not before 100
    images were read)."""

    @field_validator("value_range")
    @classmethod
    def _ascending(cls, value: Range | None) -> Range | None:
        if value is not None and not -math.inf < value[0] < value[1] < math.inf:
            raise ValueError("black must be less than white, both finite")
        return value

    @field_validator("image_size", mode="before")
    @classmethod
    def _square(cls, value: object) -> object:
        return (value, value) if isinstance(value, (int, str)) else value


class ModelConfig(Section):
    """The encoder and the predictor."""

    name: str = "vit_nano"
    """A size of `openjepa.models.vit.SIZES`; the fields below override parts of it."""
    patch_size: Size = (4, 4)
    """(height, width) of a patch in pixels; one number means a square. Must divide the image size."""
    embed_dim: int | None = Field(None, ge=4)
    """Width of the encoder."""
    depth: int | None = Field(None, ge=1)
    """Blocks of the encoder."""
    num_heads: int | None = Field(None, ge=1)
    """Attention heads of the encoder; must divide its width."""
    mlp_ratio: float | None = Field(None, gt=0)
    """Hidden width of the MLPs over the width."""
    predictor_dim: int | None = Field(None, ge=4)
    """Width of the predictor."""
    predictor_depth: int | None = Field(None, ge=1)
    """Blocks of the predictor."""
    predictor_heads: int | None = Field(None, ge=1)
    """Attention heads of the predictor; by default the encoder's."""
    shared_context: bool = False
    """Whether the predictor computes context tokens once for all target blocks (they then do not see mask tokens)
    instead of once for each, as the paper: less work, see docs/log.md."""

    @field_validator("patch_size", mode="before")
    @classmethod
    def _square(cls, value: object) -> object:
        return (value, value) if isinstance(value, (int, str)) else value


class MasksConfig(Section):
    """Which patches are context and which are targets; settings are those of the sampler named."""

    model_config = ConfigDict(extra="allow")

    name: str = "multiblock"
    """A sampler of `openjepa.masks`: multiblock, reference, rasterized, block or random."""

    def settings(self) -> dict[str, Any]:
        """The settings for the sampler, without its name."""
        return dict(self.__pydantic_extra__ or {})


class ObjectiveConfig(Section):
    """What is compared, and how."""

    loss: Literal["mse", "smooth_l1", "contrastive"] = "smooth_l1"
    """Mean over all elements of the squared error (paper) or of smooth L1 with β = 1 (authors' code); or contrastive:
    is a prediction nearer to its own target than to other images' at that position (of a process and part of a
    batch)?"""
    temperature: float = Field(0.2, gt=0)
    """Of the contrastive loss: differences of cosine that count."""
    pixel_share: float = Field(0.0, ge=0, lt=1)
    """Of the loss, that of the hidden patches' pixels, made zero-mean and unit-variance a patch (method ijepa)."""
    whole_weight: float = Field(0.0, ge=0)
    """Of the whole image as one more target, whitened, beside the hidden patches, which have 1 (method ijepa). For
    teachers that are held still: `ema.generations`."""
    target_reuse: int = Field(1, ge=1)
    """Steps that each crop and its targets serve, with other masks each time (method ijepa, with a frozen teacher:
    `ema.generations`). Asking the teacher once for several steps makes a step about twice as fast (docs/log.md)."""
    target_norm: Literal["none", "layer", "centred", "double_centred"] = "layer"
    """none (paper); layer: one more LayerNorm, without parameters (authors' code); centred: before that
    LayerNorm, what all images (of a process and part of a batch) share at a position is taken away; double_centred:
    and what all patches of an image share."""


class EmaConfig(Section):
    """The target encoder's moving average: momentum goes linearly from start to end."""

    start: float = Field(0.996, ge=0, le=1)
    """Momentum at the start of the run (paper: 0.996)."""
    end: float = Field(0.9999, ge=0, le=1)
    """Momentum at its end (paper: 1.0; on short runs features decay when the target stops)."""
    generations: int = Field(0, ge=0)
    """0 (paper): the moving average sets the targets, so they move at every step; n: a copy of it does, taken at the
    start and then n − 1 times at equal intervals, and held in between. The first copy should know something: of use
    after a first stage (n = 1: SALT) or with `--init-from`."""


class OptimConfig(Section):
    """The optimiser and its schedules. Biases and 1-D parameters are not decayed."""

    name: Literal["adamw", "muon"] = "adamw"
    """adamw (paper); muon: updates of the blocks' weight matrices are made orthogonal, the rest is AdamW's."""
    muon_ratio: float = Field(1.0, gt=0)
    """How long Muon's updates are, over AdamW's at the same learning rate."""
    lr: float = Field(2e-3, gt=0)
    """Peak learning rate."""
    start_lr: float = Field(2e-4, ge=0)
    """Learning rate at the start of the warm-up."""
    final_lr: float = Field(1e-6, ge=0)
    """Learning rate at the end of the cosine."""
    warmup: float = Field(0.05, ge=0, lt=1)
    """Warm-up as a fraction of the run."""
    weight_decay: float = Field(0.05, ge=0)
    """Weight decay at the start."""
    final_weight_decay: float = Field(0.05, ge=0)
    """Weight decay at the end, along a half cosine (paper: 0.04 to 0.4)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates."""
    clip_norm: float | None = Field(1.0, gt=0)
    """Largest norm of the gradient of all parameters; null for no clipping (paper)."""
    accumulate: int = Field(1, ge=1)
    """Parts a global batch is cut into, one after the other, to save memory."""


class BudgetConfig(Section):
    """How long to train; exactly one of the three."""

    steps: int | None = Field(None, ge=1)
    """Optimiser steps."""
    epochs: float | None = Field(None, gt=0)
    """Passes over the data."""
    max_minutes: float | None = Field(None, gt=0)
    """Minutes of training; the schedules follow the time used."""

    @model_validator(mode="after")
    def _one(self) -> "BudgetConfig":
        given = {name: value for name, value in self if value is not None}
        if len(given) > 1:
            raise ValueError(f"give one of steps, epochs and max_minutes, got {given}")
        return self

    def part(self, share: float) -> "BudgetConfig":
        """This share of the budget, one step at least."""
        parts = {name: value and value * share for name, value in self}
        if self.steps is not None:
            parts["steps"] = max(1, round(self.steps * share))
        return BudgetConfig(**parts)


class FirstStageConfig(Section):
    """What the run begins with: another method, whose encoder it then takes over. Kept in `DIR/first-stage`."""

    method: Literal["none", "mae", "maskfeat"] = "none"
    """none, or a method whose targets mean something from the first step, while I-JEPA's are those of a random
    network (docs/log.md)."""
    share: float = Field(0.5, gt=0, lt=1)
    """Part of the budget that it takes; the run's own schedules are over the rest."""
    lr: float | None = Field(None, gt=0)
    """Its peak learning rate; null: as if the method were trained alone (docs/log.md)."""


class RuntimeConfig(Section):
    """The machine: what is null is chosen by measurement once, and reused on resume."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    devices: int = Field(1, ge=1)
    """Number of processes, one a device."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the networks; weights stay float32. auto: bfloat16 where it is measured faster."""
    attention: Literal["auto", "matmul", "fused"] = "auto"
    """How attention is computed; auto: the faster of the two at this run's shapes."""
    threads: int | None = Field(None, ge=1)
    """CPU threads of a process; null: all cores, shared evenly among the processes."""
    compile: bool = False
    """Compile the forward and backward passes with `torch.compile`, once for each of the few lengths that target
    blocks take. For GPUs: on the CPU it costs minutes and gains nothing (docs/log.md)."""


class LogConfig(Section):
    """What is written while training."""

    every_steps: int = Field(20, ge=1)
    """Steps between lines of metrics.jsonl."""
    health_every_steps: int | None = Field(None, ge=1)
    """Steps between health checks; null: at equal parts of the run, ten or more, and once soon after its start
    (docs/method.md)."""
    protocols: tuple[str, ...] = ()
    """Of `openjepa evaluate` on frozen features, done with --eval-train and --eval-test while the run trains ..."""
    protocols_every_minutes: float = Field(10.0, gt=0)
    """... and how often, at the next health check; metrics.jsonl tells what they found."""
    tensorboard: bool = True
    """Write TensorBoard events beside metrics.jsonl."""


class CheckpointConfig(Section):
    """When the state of the run is saved."""

    every_steps: int = Field(1000, ge=1)
    """Steps between checkpoints."""
    every_minutes: float = Field(10.0, gt=0)
    """Minutes between checkpoints, whichever comes first."""
    keep: int = Field(2, ge=1)
    """Verified checkpoints kept."""


class Config(Section):
    """Everything that defines a run."""

    preset: str = "small"
    """The preset that the run started from."""
    method: Literal["ijepa", "mae", "maskfeat"] = "ijepa"
    """Pretraining method: ijepa; mae, the masked autoencoder to compare with; or maskfeat, which predicts histograms
    of gradients instead of pixels."""
    init_from: str | None = None
    """Checkpoint whose weights the run starts with, and whose encoder it has (`--init-from`)."""
    plan: str = ""
    """What `--preset auto` chose, why, and what it expected."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the weights, the order of samples, crops and masks."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    masks: MasksConfig = MasksConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    ema: EmaConfig = EmaConfig()
    optim: OptimConfig = OptimConfig()
    budget: BudgetConfig = BudgetConfig()
    first_stage: FirstStageConfig = FirstStageConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    log: LogConfig = LogConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @property
    def own_budget(self) -> BudgetConfig:
        """What its first stage leaves of the budget to the run itself."""
        first = self.first_stage
        return self.budget if first.method == "none" else self.budget.part(1 - first.share)

    @model_validator(mode="after")
    def _sizes_fit(self) -> "Config":
        for axis, image, patch in zip(
            ("height", "width"), self.data.image_size, self.model.patch_size, strict=True
        ):
            if patch < 1 or image < patch or image % patch:
                divisors = [size for size in range(1, image + 1) if image % size == 0]
                nearest = min(divisors, key=lambda size: abs(size - patch), default=1)
                raise ValueError(
                    f"model.patch_size: {patch} does not divide data.image_size {image} ({axis}); "
                    f"nearest that does: {nearest}, or data.image_size={max(1, round(image / max(patch, 1))) * patch}"
                )
        if self.data.batch_size % (self.optim.accumulate * self.runtime.devices):
            raise ValueError(
                f"data.batch_size: {self.data.batch_size} is not a multiple of runtime.devices × optim.accumulate = "
                f"{self.runtime.devices} × {self.optim.accumulate}"
            )
        for name, (low, high) in (
            ("crop_scale", self.data.crop_scale),
            ("crop_aspect", self.data.crop_aspect),
        ):
            if not 0 < low <= high:
                raise ValueError(
                    f"data.{name}: ({low}, {high}) is not a range of positive numbers, low first"
                )
        return self

    @model_validator(mode="after")
    def _targets_fit(self) -> "Config":
        for key in ("pixel_share", "whole_weight"):
            value = getattr(self.objective, key)
            if value and self.method != "ijepa":
                raise ValueError(
                    f"objective.{key}: {value} is for method ijepa; {self.method} predicts no features that this could "
                    f"stand beside: set objective.{key}=0"
                )
        if self.objective.whole_weight and not self.ema.generations:
            raise ValueError(
                f"objective.whole_weight: {self.objective.whole_weight} asks for what a teacher says held still, "
                "and with ema.generations=0 it moves at every step: set ema.generations=1 or more, or "
                "objective.whole_weight=0"
            )
        if (
            self.method == "ijepa"
            and self.ema.generations == 1
            and self.first_stage.method == "none"
            and self.init_from is None
        ):
            raise ValueError(
                "ema.generations: 1 holds the encoder that the run begins with as its teacher, which here would be a "
                "random network: set first_stage.method=mae, give --init-from, or set ema.generations=0"
            )
        if self.objective.target_reuse > 1 and (self.method != "ijepa" or not self.ema.generations):
            raise ValueError(
                f"objective.target_reuse: {self.objective.target_reuse} uses answers of a frozen teacher again, and "
                f"method {self.method} with ema.generations={self.ema.generations} has none: set "
                "objective.target_reuse=1"
            )
        parts = self.optim.accumulate * self.runtime.devices
        for key, value, instead in (
            ("loss", self.objective.loss, "mse"),
            ("target_norm", self.objective.target_norm, "layer"),
        ):
            compares = value in ("contrastive", "centred", "double_centred")
            if compares and self.data.batch_size < 2 * parts:
                raise ValueError(
                    f"objective.{key}: {value} compares images of a part of a batch, and data.batch_size="
                    f"{self.data.batch_size} in {parts} parts leaves one in each: set data.batch_size={2 * parts} or "
                    f"more, or objective.{key}={instead}"
                )
        return self
