"""The protocols on frozen features by name: what each classifies, and how.

Most classify by the data's own label; `count` and `depth` (Clevr/Count and Clevr/Dist of the paper) are linear probes
on labels of theirs. Most see the mean over patches; `linear_grid` sees means over regions of the image.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from openjepa.evals.config import EvalConfig
from openjepa.evals.features import Result
from openjepa.evals.fewshot import fewshot
from openjepa.evals.heads import Head
from openjepa.evals.knn import knn
from openjepa.evals.linear import linear
from openjepa.evals.logistic import logistic

NUM_LAYERS = 4
"""Last layers that linear probes may use: as many as in the paper (appendix A.2)."""


class Split(NamedTuple):
    """Features of the last layers (N, L, D) and labels (N,) of training or test images."""

    x: Tensor
    y: Tensor


class Outcome(NamedTuple):
    """What a protocol found."""

    scores: dict[str, Any]
    """For the result: accuracies, predictions (see `openjepa.evals.result.with_classes`) and settings."""
    head: Head | None = None
    """What classifies, where it is a linear function of the features."""


class Evaluator(Protocol):
    """A way to classify by features."""

    def __call__(self, train: Split, test: Split, config: EvalConfig, *, classes: Sequence[str]) -> "Outcome":
        """What to fit on, what to test, and the names of the labels."""


class Task(NamedTuple):
    """What is classified, and how."""

    fit: Evaluator
    column: str | None = None
    """The label that it is about; None is the data's own."""
    pooling: Callable[[EvalConfig], str] = lambda config: "mean"
    """How the patches of an image become the features that it sees, one of ``POOLINGS``."""
    fits_head: bool = False
    """Whether its classifier is one linear head, which can be kept."""


def _told(result: Result) -> Outcome:
    scores = {"top1": result.top1, "predictions": result.predictions, **result.settings}
    return Outcome(scores, result.head)


def _linear_settings(config: EvalConfig) -> dict[str, Any]:
    return {**config.linear.model_dump(exclude={"layers"}), "num_views": 1 + config.views}


def _by_knn(train: Split, test: Split, config: EvalConfig, *, classes: Sequence[str]) -> Outcome:
    return _told(knn(train.x[:, -1], train.y, test.x[:, -1], test.y, **config.knn.model_dump()))


def _by_linear(train: Split, test: Split, config: EvalConfig, *, classes: Sequence[str]) -> Outcome:
    settings = _linear_settings(config)
    train, test = (part._replace(x=part.x[:, -config.linear.layers :]) for part in (train, test))
    return _told(linear(*train, *test, seed=config.seed, **settings))


def _by_linear_grid(train: Split, test: Split, config: EvalConfig, *, classes: Sequence[str]) -> Outcome:
    """`linear`, on what the task's pooling gives."""
    found = _by_linear(train, test, config, classes=classes)
    return Outcome({**found.scores, "grid": config.linear_grid.grid}, found.head)


def _by_logistic(train: Split, test: Split, config: EvalConfig, *, classes: Sequence[str]) -> Outcome:
    settings = config.logistic.model_dump()
    settings |= {"seed": config.seed, "num_views": 1 + config.views}
    return _told(logistic(train.x[:, -1], train.y, test.x[:, -1], test.y, **settings))


def _by_few(train: Split, test: Split, config: EvalConfig, *, classes: Sequence[str]) -> Outcome:
    settings = {**_linear_settings(config), **config.fewshot.model_dump()}
    train, test = (part._replace(x=part.x[:, -config.linear.layers :]) for part in (train, test))
    return Outcome(fewshot(*train, *test, seed=config.seed, classes=classes, **settings))


def _linear_with_knn(train: Split, test: Split, config: EvalConfig, *, classes: Sequence[str]) -> Outcome:
    """A linear probe, with the accuracy of a k-NN beside it."""
    near = _by_knn(train, test, config, classes=classes).scores
    found = _by_linear(train, test, config, classes=classes)
    return Outcome({**found.scores, "knn_top1": near["top1"]}, found.head)


PROTOCOLS: dict[str, Task] = {
    "knn": Task(_by_knn),
    "linear": Task(_by_linear, fits_head=True),
    "logistic": Task(_by_logistic, fits_head=True),
    "linear_grid": Task(
        _by_linear_grid, pooling=lambda config: f"grid{config.linear_grid.grid}", fits_head=True
    ),
    "fewshot": Task(_by_few),
    "count": Task(_linear_with_knn, "count", fits_head=True),
    "depth": Task(_linear_with_knn, "distance", fits_head=True),
}
OWN_LABELS = {name: task.column for name, task in PROTOCOLS.items() if task.column is not None}
"""Protocols on labels of their own, and which."""
