"""Evaluation of a checkpoint as a whole: model and labelled data opened, then `openjepa.evals.run.evaluate`.

With the baselines that give a number its meaning:

    openjepa.evaluate("runs/photos", train="labelled/train", test="labelled/test", baselines=True)
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from openjepa.allocator import keep_freed_memory
from openjepa.apps.embed import frozen_encoder
from openjepa.data.dataset import ImageDataset
from openjepa.data.preprocess import Preprocess
from openjepa.data.sources import open_source
from openjepa.errors import UserError
from openjepa.evals import run
from openjepa.hub import load
from openjepa.methods.ijepa import build_ijepa
from openjepa.runtime import available_cores, bfloat16_pays

NUM_LAYERS = 4
"""Last layers that linear probes may use: as many as in the paper (appendix A.2)."""


def evaluate(
    checkpoint: str | Path,
    *,
    train: str | Path,
    test: str | Path,
    target: str | None = None,
    protocols: Sequence[str] = ("knn", "linear", "logistic"),
    encoder: str = "target",
    baselines: bool = False,
    num_heads: int | None = None,
    num_workers: int = 0,
    out: str | Path | None = None,
) -> dict[str, Any]:
    """Classify images by the frozen features of a checkpoint; print a table and return the result.

    Features are computed in bfloat16 where that is clearly faster, else in float32; the result says in which.

    Args:
        checkpoint: What `openjepa.load` takes.
        train: Labelled images to fit the classifiers on.
        test: Labelled images with the same classes.
        target: Column of a manifest that holds the label.
        protocols: Any of `knn`, `linear` (the best of four heads, as the paper's: on the last layer or the last four,
            with BatchNorm or without), `logistic`, and on data that has such labels `count` (label `count`) and
            `depth` (label `distance`), linear probes as the paper's on Clevr.
        encoder: `target`, as the paper, or `context`.
        baselines: Also the same encoder at random initialisation, and raw pixels.
        num_heads: Attention heads, where the file does not say.
        num_workers: Processes that decode images.
        out: JSON file for the result.

    Returns:
        What is written to ``out``.

    Raises:
        UserError: A mistake in options, data or checkpoint; the message says what to do.
    """
    if encoder not in ("target", "context"):
        raise UserError(f"--encoder {encoder!r}: expected target or context")
    keep_freed_memory()
    torch.set_num_threads(available_cores())
    model = load(checkpoint, num_heads=num_heads)
    preprocess = model.preprocess
    assert isinstance(preprocess, Preprocess)
    assert model.architecture is not None

    def images(data: str | Path, split: str) -> ImageDataset:
        source = open_source(data, split=split, target=target)
        return ImageDataset(
            source,
            image_size=preprocess.image_size,
            channels=preprocess.channels,
            interpolation=preprocess.interpolation,
        )

    precision = "bfloat16" if bfloat16_pays("cpu") else "float32"
    network = model.target_encoder if encoder == "target" else model.context_encoder
    random_init = build_ijepa(model.architecture).target_encoder if baselines else None
    result = run.evaluate(
        frozen_encoder(network, device="cpu", precision=precision, num_layers=NUM_LAYERS),
        train=images(train, "train"),
        test=images(test, "test"),
        mean=preprocess.mean,
        std=preprocess.std,
        protocols=protocols,
        label_sources={
            column: (
                open_source(train, split="train", target=column),
                open_source(test, split="test", target=column),
            )
            for protocol, column in run.OWN_LABELS.items()
            if protocol in protocols
        },
        random_init=random_init
        and frozen_encoder(random_init, device="cpu", precision=precision, num_layers=NUM_LAYERS),
        checkpoint=str(checkpoint),
        encoder=encoder,
        num_workers=num_workers,
    )
    result["precision"] = precision
    if out is not None:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        Path(out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        _update_report(Path(checkpoint), Path(out))
    Console().print(run.format_table(result))
    return result


def _update_report(run_folder: Path, result: Path) -> None:
    """Show a result that was written into the evaluated run's folder on the run's page."""
    if result.absolute().parent == run_folder.absolute() and (run_folder / "report.html").is_file():
        from openjepa.viz.report import write_report  # matplotlib takes half a second

        write_report(run_folder)
