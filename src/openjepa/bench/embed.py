"""Embedding images, timed side by side with transformers and timm.

    openjepa bench embed --case small --case base --data photos

All sides have the same random weights, so that their features can be compared, and give the mean over patches. Each
runs in a process of its own, and they take turns. With `--data`, also from files to features: ours as `openjepa embed`
does it, parquet file included; theirs as their documentation shows it, an image after another through Pillow and
their own processor, then batches through the model.
"""

import importlib
import importlib.util
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from openjepa.allocator import keep_freed_memory
from openjepa.apps.embed import embed, frozen_encoder
from openjepa.bench.turns import Answers, Sides, ratio, timed
from openjepa.data.dataset import spread
from openjepa.data.preprocess import Preprocess
from openjepa.data.sources import open_source
from openjepa.errors import UserError
from openjepa.evals.features import pooled
from openjepa.formats.huggingface import huggingface_config, to_huggingface
from openjepa.methods.ijepa import IJEPA, build_ijepa
from openjepa.models.architecture import Architecture
from openjepa.runtime import available_cores

_EXTRAS = {"transformers": "hf", "timm": "timm"}


class Case(NamedTuple):
    """Sizes of all sides."""

    image: int
    patch: int
    width: int
    depth: int
    heads: int
    batch: int = 16


CASES = {"small": Case(224, 16, 384, 12, 6), "base": Case(224, 16, 768, 12, 12)}


class Side(NamedTuple):
    """What a side can do: images (B, 3, H, W) to features (B, D); and files to as many features, or None."""

    forward: Callable[[Tensor], Tensor]
    from_files: Callable[[Sequence[str]], int]


def bench_embed(
    *,
    cases: Sequence[str] = tuple(CASES),
    repeats: int = 5,
    batch: int = 16,
    bfloat16: bool = False,
    data: str | Path | None = None,
    num_images: int = 256,
    say: Callable[[str], None],
) -> None:
    """Time the forward pass, and with ``data`` the way from files to features.

    Args:
        cases: Any of `small` (S/16 at 224 px) and `base` (B/16 at 224 px).
        repeats: Turns of each side, after one to warm up.
        batch: Images a forward pass.
        bfloat16: Ours with weights in bfloat16, the others in bfloat16 autocast.
        data: Folder of images.
        num_images: How many of them a turn reads.
        say: Called with each line of the result, Markdown.

    Raises:
        UserError: An unknown case, or data that is no folder of images.
    """
    if unknown := sorted(set(cases) - set(CASES)):
        raise UserError(f"--case {', '.join(unknown)}: unknown; choose from {', '.join(CASES)}")
    paths: list[str] = []
    if data is not None:
        if not Path(data).is_dir():
            raise UserError(f"--data {data}: not a folder; the other sides read files")
        source = open_source(Path(data))
        paths = [source.path(int(sample)) for sample in spread(len(source), num_images)]
    for name in cases:
        play(
            name, CASES[name]._replace(batch=batch), repeats=repeats, bfloat16=bfloat16, paths=paths, say=say
        )


def play(
    name: str, case: Case, *, repeats: int, bfloat16: bool, paths: Sequence[str], say: Callable[[str], None]
) -> None:
    """Let the sides that are installed take turns at one case, and say what came out."""
    names = ["ours", *(side for side in _EXTRAS if importlib.util.find_spec(side))]
    say(
        f"{name}: {case.width} wide, {case.depth} deep, {case.image} px in patches of {case.patch}, batch "
        f"{case.batch}, {available_cores()} threads, {'bfloat16' if bfloat16 else 'float32'}\n"
    )
    for side in _EXTRAS.keys() - set(names):
        say(f"{side}: not installed, left out (pip install 'openjepa[{_EXTRAS[side]}]')\n")
    with Sides({side: partial(make_side, side, case, bfloat16, tuple(paths)) for side in names}) as sides:
        features = {side: np.asarray(sides.ask(side, "features")) for side in names}
        seconds = {"forward": sides.take_turns("forward", repeats=repeats)}
        if paths:
            seconds["files to features"] = sides.take_turns("files", repeats=repeats)
    say("| | images/s (range) | ours / this (range) | features differ by |\n|---|---|---|---|")
    for what, times in seconds.items():
        num_images = case.batch if what == "forward" else len(paths)
        for side in names:
            faster = apart = "–"
            if side != "ours":
                faster = ratio(times[side], times["ours"])
                if what == "forward":
                    apart = f"{relative_difference(features['ours'], features[side]):.1e}"
            rates = sorted(num_images / one for one in times[side])
            middle = f"{statistics.median(rates):.2f} ({rates[0]:.2f}–{rates[-1]:.2f})"
            say(f"| {what}, {side} | {middle} | {faster} | {apart} |")
    say("")


def relative_difference(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    """The largest, over images, of |ours − theirs| / |theirs|, both (B, D)."""
    return float(np.max(np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1)))


def make_side(name: str, case: Case, bfloat16: bool, paths: Sequence[str]) -> Answers:
    """One side, in the process that calls this."""
    torch.set_num_threads(available_cores())
    images = torch.randn(case.batch, 3, case.image, case.image, generator=torch.Generator().manual_seed(0))
    side = SIDES[name](case, bfloat16)

    def from_files() -> float:
        seconds, num_rows = timed(lambda: side.from_files(paths))
        assert num_rows == len(paths), f"{name}: {num_rows} of {len(paths)} images"
        return seconds

    return {
        "features": lambda: side.forward(images).float().tolist(),
        "forward": lambda: timed(lambda: side.forward(images))[0],
        "files": from_files,
    }


def _model(case: Case) -> IJEPA:
    """Weights that are all random, biases and norms too: a tensor under a wrong name is then seen."""
    size = (case.image, case.image)
    model = build_ijepa(
        Architecture(
            image_size=size, patch_size=(case.patch, case.patch), in_channels=3, embed_dim=case.width,
            depth=case.depth, num_heads=case.heads, mlp_ratio=4.0, predictor_dim=case.width, predictor_depth=1,
            predictor_heads=case.heads,
        )
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.target_encoder.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.02)
    model.preprocess = Preprocess.imagenet(size, 3)
    return model.eval()


def _ours(case: Case, bfloat16: bool) -> Side:
    keep_freed_memory()
    model, precision = _model(case), "bfloat16" if bfloat16 else "float32"
    forward = pooled(frozen_encoder(model.target_encoder, device="cpu", precision=precision))

    def from_files(paths: Sequence[str]) -> int:
        with tempfile.TemporaryDirectory() as folder:
            listing = Path(folder) / "images.txt"
            listing.write_text("\n".join(paths), encoding="utf-8")
            out = embed(
                model, listing, listing.with_suffix(".parquet"), device="cpu", precision=precision,
                batch_size=case.batch, progress=False,
            )  # fmt: skip
            return int(importlib.import_module("pyarrow.parquet").read_metadata(out).num_rows)

    return Side(forward, from_files)


def _transformers(case: Case, bfloat16: bool) -> Side:
    transformers = importlib.import_module("transformers")
    encoder = _model(case).target_encoder
    with tempfile.TemporaryDirectory() as folder:  # through files: their names stay, those in memory do not
        (Path(folder) / "config.json").write_text(json.dumps(huggingface_config(encoder)), encoding="utf-8")
        tensors = to_huggingface(encoder.state_dict())
        save_file(tensors, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        transformers.logging.disable_progress_bar()
        model = transformers.IJepaModel.from_pretrained(folder).eval()
    processor = transformers.ViTImageProcessor(size={"height": case.image, "width": case.image})
    forward = _autocast(lambda images: model(pixel_values=images).last_hidden_state.mean(dim=1), bfloat16)

    def prepare(images: list[Image.Image]) -> Tensor:
        return processor(images=images, return_tensors="pt")["pixel_values"]

    return Side(forward, partial(_file_by_file, case.batch, prepare, forward))


def _timm(case: Case, bfloat16: bool) -> Side:
    timm, data = (importlib.import_module(name) for name in ("timm", "timm.data"))
    model = timm.create_model(
        "vit_small_patch16_224", class_token=False, global_pool="avg", fc_norm=False, num_classes=0,
        img_size=case.image, patch_size=case.patch, embed_dim=case.width, depth=case.depth, num_heads=case.heads,
    ).eval()  # fmt: skip
    model.load_state_dict(_model(case).target_encoder.state_dict())
    transform = data.create_transform(
        **data.resolve_data_config({"img_size": case.image}, model=model), is_training=False
    )
    forward = _autocast(model, bfloat16)

    def prepare(images: list[Image.Image]) -> Tensor:
        return torch.stack([transform(image) for image in images])

    return Side(forward, partial(_file_by_file, case.batch, prepare, forward))


def _autocast(forward: Callable[[Tensor], Any], bfloat16: bool) -> Callable[[Tensor], Tensor]:
    def run(images: Tensor) -> Tensor:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            return forward(images)

    return run


def _file_by_file(
    batch: int,
    prepare: Callable[[list[Image.Image]], Tensor],
    forward: Callable[[Tensor], Tensor],
    paths: Sequence[str],
) -> int:
    """Open, prepare, embed: one after another, as in the examples of both libraries."""
    features = []
    for start in range(0, len(paths), batch):
        images = [Image.open(path).convert("RGB") for path in paths[start : start + batch]]
        features.append(forward(prepare(images)))
    return len(torch.cat(features))


SIDES: dict[str, Callable[[Case, bool], Side]] = {"ours": _ours, "transformers": _transformers, "timm": _timm}
