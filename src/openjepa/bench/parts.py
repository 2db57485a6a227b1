"""The training step that `openjepa pretrain DATA` would make, timed part by part on the user's images.

    openjepa bench step path/to/images

It makes a short run in a temporary folder, with the settings that `--preset auto` chooses, and times the functions that
a step consists of. Batches are made between the steps; in a real run a thread or processes make the next one meanwhile.
"""

import math
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from lightning_fabric import Fabric

from openjepa import train
from openjepa.apps.pretrain import planned_config, pretrain
from openjepa.data import loader
from openjepa.methods import IJEPA, Method
from openjepa.muon import Muon
from openjepa.run import Run
from openjepa.settings import dump_config, load_config

PARTS = (
    "data", "masks, normalising", "kept targets", "target pass", "context", "predictor, loss", "backward", "clipping",
    "AdamW", "Muon", "moving average", "the rest", "logging",
)  # fmt: skip
_WARMUP = 2  # steps of each stage that are not counted


class Record(NamedTuple):
    """What one training step took."""

    method: str
    """Of its stage."""
    seconds: dict[str, float]
    """By part."""


@dataclass
class Stopwatch:
    """Seconds of the parts of training steps, and of what is done now and then.

    Attributes:
        warmup: First steps of each stage that do not count.
        records: Of the steps, in order.
        logging: Seconds of each line of metrics without a health check, by method.
        current: Seconds of the step that is going on.
        stepping: Whether one is; what is called in between (by health checks) is no part of it.
    """

    warmup: int = _WARMUP
    records: list[Record] = field(default_factory=list)
    logging: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    current: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    stepping: bool = False

    @property
    def methods(self) -> list[str]:
        """Of the stages, in order."""
        return list(dict.fromkeys(record.method for record in self.records))

    def around(self, part: str, work: Callable[..., Any], *, always: bool = False) -> Callable[..., Any]:
        """The same function, its time counted to a part: during steps, or always."""

        @wraps(work)
        def measured(*args: Any, **kwargs: Any) -> Any:
            start = _now()
            result = work(*args, **kwargs)
            if self.stepping or always:
                self.current[part] += _now() - start
            return result

        return measured

    def around_step(self, step: Callable[..., float]) -> Callable[..., float]:
        """`train_step`, after which a record is complete."""

        @wraps(step)
        def measured(fabric: Any, objective: Any, *args: Any, **kwargs: Any) -> float:
            self.stepping, start = True, _now()
            loss = step(fabric, objective, *args, **kwargs)
            whole, self.stepping = _now() - start, False
            spent = self.current
            spent["predictor, loss"] = spent.pop("forward") - spent["target pass"] - spent["context"]
            outside = spent["data"] + spent["masks, normalising"] + spent["kept targets"]
            spent["the rest"] = whole - (sum(spent.values()) - outside)
            self.records.append(Record(type(objective.method).__name__.lower(), dict(spent)))
            self.current = defaultdict(float)
            return loss

        return measured

    def around_log(self, log: Callable[..., None]) -> Callable[..., None]:
        """`Run.log`; health checks are left out, which a short run has at its end only."""

        @wraps(log)
        def measured(run: Run, row: dict[str, Any], *, measure: bool) -> None:
            start = _now()
            log(run, row, measure=measure)
            if not measure:
                self.logging[run.config.method].append(_now() - start)

        return measured


def _now() -> float:
    """Seconds on a clock, once the device has done what it was asked for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def bench_parts(
    data: str | Path,
    *,
    minutes: float = 10.0,
    repeats: int = 20,
    threads: int | None = None,
    say: Callable[[str], None],
) -> None:
    """Time the training step that `openjepa pretrain DATA --max-minutes M` would make on these images.

    Args:
        data: The images.
        minutes: Length of the run whose settings are taken.
        repeats: Steps of the first stage that count, or of the only one; another stage has as many as its share of the
            run gives it.
        threads: CPU threads; by default the cores there are.
        say: Called with each paragraph of the result, Markdown.

    Raises:
        UserError: Data that cannot be used.
    """
    config = planned_config(data, max_minutes=minutes)
    every, first = config.log.every_steps, config.first_stage
    share = 1.0 if first.method == "none" else min(first.share, 1 - first.share)
    changes = {
        "budget.max_minutes": None,
        "budget.steps": math.ceil((repeats + _WARMUP) / share),
        "runtime.threads": threads,
        "log.every_steps": 1,  # so that a short run has lines to time
    }
    short = load_config(config.model_dump(mode="json"), changes=changes)
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder, watching(watch):
        settings = Path(folder) / "settings.yaml"
        settings.write_text(dump_config(short), encoding="utf-8")
        pretrain(data=data, out=Path(folder) / "run", preset=config.preset, config=settings)
    size = config.data.batch_size
    say(f"{config.plan}\n")
    say(f"{config.model.name}, batch {size}, {torch.get_num_threads()} threads, a line of metrics every {every} steps; "
        f"medians of the steps after the first {_WARMUP}\n")  # fmt: skip
    say(table(watch, batch_size=size, log_every=every, reuse=config.objective.target_reuse))


@contextmanager
def watching(watch: Stopwatch) -> Iterator[None]:
    """Watches around the parts of a step, as long as the context lasts; batches are made between the steps."""
    parts: list[tuple[str, Any, str]] = [
        ("forward", train.Objective, "forward"),
        ("target pass", Method, "ask"),
        ("target pass", IJEPA, "ask"),
        ("context", Method, "encode_context"),
        ("backward", Fabric, "backward"),
        ("clipping", torch.nn.utils, "clip_grad_norm_"),
        ("AdamW", torch.optim.AdamW, "step"),
        ("Muon", Muon, "step"),
        ("moving average", IJEPA, "update_target"),
    ]
    with ExitStack() as patches:

        def put(owner: Any, name: str, function: Any) -> None:
            patches.enter_context(mock.patch.object(owner, name, function))

        put(loader, "compute_ahead", lambda make, steps, **_: map(make, steps))
        put(loader.Loader, "batch", watch.around("data", loader.Loader.batch, always=True))
        put(train, "_parts", watch.around("masks, normalising", train._parts, always=True))
        put(train, "train_step", watch.around_step(train.train_step))
        put(Run, "_ask", watch.around("kept targets", Run._ask, always=True))
        put(Run, "log", watch.around_log(Run.log))
        for part, owner, name in parts:
            put(owner, name, watch.around(part, getattr(owner, name)))
        yield


def table(watch: Stopwatch, *, batch_size: int, log_every: int, reuse: int = 1) -> str:
    """Markdown: a line for each part; for each stage its median milliseconds and its share of a step in percent.

    Args:
        watch: What was measured.
        batch_size: Images a step.
        log_every: Steps between lines of metrics, over which the time of one is spread.
        reuse: Steps that a batch serves, over which making it and its kept targets is spread (in a stage that keeps
            them).
    """
    columns = []
    for method in watch.methods:
        steps = [record.seconds for record in watch.records if record.method == method]
        counted = steps[watch.warmup :]
        spent = {part: statistics.median(step.get(part, 0.0) for step in counted) for part in PARTS}
        if asked := [step["kept targets"] for step in counted if step.get("kept targets")]:
            spent["kept targets"] = statistics.median(asked) / reuse
            spent["data"] /= reuse
        spent["logging"] = statistics.median(watch.logging[method]) / log_every
        columns.append(spent)
    lines = [
        "| part | " + " | ".join(f"{method}, ms | %" for method in watch.methods) + " |",
        "|---|" + "---|---|" * len(columns),
    ]
    wholes = [sum(spent.values()) for spent in columns]
    for part in PARTS:
        cells = [f"{1e3 * spent[part]:.1f} | {100 * spent[part] / whole:.1f}"
                 for spent, whole in zip(columns, wholes, strict=True)]  # fmt: skip
        lines.append(f"| {part} | {' | '.join(cells)} |")
    lines.append(f"| **a step** | {' | '.join(f'**{1e3 * whole:.1f}** |' for whole in wholes)} |")
    lines.append(f"| **images/s** | {' | '.join(f'**{batch_size / whole:.0f}** |' for whole in wholes)} |")
    return "\n".join(lines)
