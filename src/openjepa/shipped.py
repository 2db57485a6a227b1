"""Small models that come with the package, each a folder `weights/NAME/` beside this file; no list of them is kept.

    model = openjepa.load("tiny-scenes")  # offline

Such a folder is a checkpoint like any other (`openjepa.checkpoint`: verified, no pickle), made small in three ways:

- tensors are float16: ten bits of mantissa tell weights apart eight times as finely as bfloat16's seven, and weights
  have no use for the wider range of the latter;
- the target encoder stands for the context encoder too, and for a frozen teacher: it is what features are taken from
  and what another run starts from (`--init-from`), and an average of what the context encoder was;
- position tables are left out: they are a function of the grid.

`benchmarks/pack_weights.py` makes one of a finished run.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from openjepa import checkpoint
from openjepa.errors import CheckpointError
from openjepa.evals.result import columns, rows
from openjepa.health import judge_row
from openjepa.methods.whole_image import with_whitening
from openjepa.metrics import read_rows

WEIGHTS = Path(__file__).resolve().parent / "weights"
"""Where the folders are; it may be missing."""
_POSITIONS = "pos_embed"  # how the names of position tables end
_TARGET, _OTHERS = "target_encoder.", ("context_encoder.", "teacher.")


def shipped_names() -> list[str]:
    """Names that `openjepa.load` takes wherever the package is installed."""
    return sorted(path.parent.name for path in WEIGHTS.glob("*/manifest.json"))


def shipped_path(name: str) -> Path | None:
    """The checkpoint folder of a shipped model; None where there is none of this name."""
    return WEIGHTS / name if name in shipped_names() else None


def packed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model's tensors without what `unpacked` can add again, as float16."""
    twice = any(name.startswith(_TARGET) for name in state)  # a masked autoencoder has one encoder
    return {
        name: tensor.half()
        for name, tensor in state.items()
        if not name.endswith(_POSITIONS) and not (twice and name.startswith(_OTHERS))
    }


def unpacked(saved: checkpoint.Checkpoint, *, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors of a model, those that `packed` left out too; of another checkpoint, what is in it.

    Args:
        saved: The checkpoint.
        like: Tensors of a new model of this architecture: the position tables are taken from it.
    """
    state = with_whitening(saved.model, like=like)
    if saved.state.get("packed"):
        for name, own in like.items():
            if name.endswith(_POSITIONS):
                state[name] = own
            elif name.startswith(_OTHERS) and (twin := _TARGET + name.split(".", 1)[1]) in saved.model:
                state[name] = saved.model[twin]
    return state


def pack(run: Path, out: Path, *, terms: str, measured_with: str) -> Path:
    """Make a finished and evaluated run a small model with a card.

    Args:
        run: The run's folder, with an `evaluation.json` that has baselines.
        out: The folder to make; its name is the model's. The card, `README.md`, is the one file in it that may be
            edited afterwards: the manifest does not cover it.
        terms: Where the data come from and under which terms, for the card (Markdown).
        measured_with: The command that wrote `evaluation.json`, for the card.

    Returns:
        ``out``.

    Raises:
        CheckpointError: ``run`` is not a finished, evaluated run, its weights are no numbers in float16, or ``out``
            exists.
    """
    if out.exists():
        raise CheckpointError(f"{out}: exists; remove it first")
    saved = checkpoint.load_latest(run / "checkpoints")
    if saved is None:
        raise CheckpointError(f"{run}: no checkpoint in it; expected the folder of a finished run")
    tensors = packed(saved.model)
    card = _card(out.name, run, tensors, terms=terms, measured_with=measured_with)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as place:
        draft = checkpoint.save(
            Path(place),
            step=saved.state["step"],
            model=tensors,
            optimizer={},  # a few bytes, so that this is a checkpoint like any other
            state={**saved.state, "packed": True},
            config=saved.config,
            keep=1,
        )
        checkpoint.load(draft)  # a weight beyond float16 is now infinite, and refused
        (draft / "README.md").write_text(card, encoding="utf-8")
        draft.rename(out)
    return out


def _card(name: str, run: Path, tensors: Mapping[str, Tensor], *, terms: str, measured_with: str) -> str:
    """The model card: what it is, of which data, how it was trained, and what its features are worth.

    Raises:
        CheckpointError: As `pack`.
    """
    environment, evaluation = _read(run / "environment.json"), _evaluation(run)
    data, model = environment["data"], environment["model"]
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    last = _last_row(run)
    if last["progress"] < 1:
        raise CheckpointError(
            f"{run}: not finished ({last['progress']:.0%} of its budget): go on with --resume"
        )
    verdict = judge_row(
        last,
        num_features=model["embed_dim"],
        method=config["method"],
        generations=config["ema"]["generations"],
    )
    assert verdict is not None, "the last line of a finished run has a health check"
    count = {
        part: sum(tensor.numel() for key, tensor in tensors.items() if key.startswith("predictor.") == there)
        for part, there in (("encoder", False), ("predictor", True))
    }
    machine = environment["cuda"] or f"{environment['cores']} cores, {environment['processor']}"
    average = any(key.startswith(_TARGET) for key in tensors)
    note = " The context encoder that you get is the target encoder, for only that one is kept." * average
    return f"""# {name}

```python
model = openjepa.load("{name}")
```

An encoder pretrained without labels ({config["method"]}): {_shape(model)}, {count["encoder"]:,} parameters.
Its predictor: {model["predictor_dim"]} wide, {model["predictor_depth"]} deep, {count["predictor"]:,} parameters.
Stored as float16.{note}

## Data

{data["name"]}: {data["num_images"]:,} images. {terms}

## Training

```bash
{environment["command"]}
```

{_stages(run)}

On {machine}; OpenJEPA {environment["openjepa"]}, PyTorch {environment["torch"]}. All settings are in `config.yaml`.
At the end: {verdict.words}.

## Figures

Top-1 on {evaluation["num_test"]:,} test images; classifiers were fitted on {evaluation["num_train"]:,}.
Frozen, average-pooled features of the {evaluation["encoder"]} encoder of `{evaluation["checkpoint"]}`,
before its weights were rounded.

{_figures(evaluation)}

```bash
{measured_with}
```
"""


def _shape(model: Mapping[str, Any]) -> str:
    """An encoder's sizes in words."""
    (height, width), (down, across) = model["image_size"], model["patch_size"]
    return (
        f"ViT {model['embed_dim']} wide, {model['depth']} deep, {model['num_heads']} heads, "
        f"images of {height} × {width} px in patches of {down} × {across}"
    )


def _stages(run: Path) -> str:
    """A line for each stage of a run: what was trained, and for how long."""
    lines = []
    for folder in (run / "first-stage", run):
        if folder.is_dir():
            config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
            row, batch_size = _last_row(folder), config["data"]["batch_size"]
            minutes = row["seconds"] / 60
            taught = ", with the encoder before as its teacher, frozen" * (config["ema"]["generations"] == 1)
            lines.append(
                f"- {config['method']}{taught}: {row['step']:,} steps of {batch_size} images, {minutes:.1f} minutes"
            )
    return "\n".join(lines)


def _figures(evaluation: Mapping[str, Any]) -> str:
    """The table of a result of `openjepa evaluate --baselines`."""
    names = ["probe", *columns(evaluation)]
    lines = [" | ".join(["", *names, ""]).strip(), "|---" * len(names) + "|"]
    for row in rows(evaluation):
        shown = ("–" if value is None else f"{value:.1%}" for value in row.values)
        lines.append(" | ".join(["", row.name, *shown, ""]).strip())
    return "\n".join(lines)


def _evaluation(run: Path) -> dict[str, Any]:
    """The result in a run's folder; figures without baselines say little (CheckpointError)."""
    path = run / "evaluation.json"
    evaluation: dict[str, Any] = _read(path) if path.exists() else {}
    if not evaluation.get("baselines"):
        raise CheckpointError(
            f"{path}: no figures with baselines; "
            f"make them: openjepa evaluate {run} --train DATA --test DATA --baselines --out {path}"
        )
    return evaluation


def _last_row(run: Path) -> dict[str, Any]:
    """The last line of a run's metrics; of a finished run it has the last health check."""
    return read_rows(run / "metrics.jsonl")[-1]


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
