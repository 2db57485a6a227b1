"""`openjepa predict CKPT --head DIR DATA --out FILE.csv`: the class of each image, by a head that `evaluate` fitted.

openjepa evaluate runs/photos --train labelled/train --test labelled/test --save-head runs/photos/head
openjepa predict runs/photos --head runs/photos/head new-photos --out classes.csv
"""

import csv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from openjepa.allocator import keep_freed_memory
from openjepa.apps.embed import frozen_encoder
from openjepa.data.bad_files import BadFile, BadFiles
from openjepa.data.dataset import Batch, ImageDataset
from openjepa.data.loader import evaluate_batches
from openjepa.data.preprocess import Preprocess, normalise
from openjepa.data.sources import Source, open_source
from openjepa.errors import CheckpointError, DataError, UserError
from openjepa.evals.features import pooled, require_finite
from openjepa.evals.heads import load_head
from openjepa.hub import load, weights_hash
from openjepa.overwrite import check_file, is_bad_files
from openjepa.progress import ImageProgress
from openjepa.runtime import available_cores, bfloat16_pays, resolve_device
from openjepa.writing import written_whole

_COLUMNS = ("path", "class", "probability")


def predict(
    checkpoint: str | Path,
    data: str | Path,
    *,
    head: str | Path,
    out: str | Path,
    device: str = "auto",
    batch_size: int = 64,
    num_heads: int | None = None,
    num_workers: int = 0,
    max_bad_fraction: float = 0.01,
    overwrite: bool = False,
) -> Path:
    """Classify images, one line each: `path`, `class`, `probability`.

    Args:
        checkpoint: What `openjepa.load` takes; the one that the head was fitted on.
        data: Folder, tar, manifest or built-in; its labels, if any, are not looked at.
        head: Folder that `evaluate --save-head` wrote.
        out: CSV file. Images that cannot be read are left out and listed in FILE.bad_files.jsonl.
        device: `cuda`, `mps`, `cpu` or `auto`.
        batch_size: Images a forward pass.
        num_heads: Attention heads, where the checkpoint does not say.
        num_workers: Processes that decode images.
        max_bad_fraction: More unreadable images than this fraction are an error.
        overwrite: Replace ``out``, which must be a file that this function wrote.

    Returns:
        ``out``.

    Raises:
        CheckpointError: The head is of other weights.
        UserError: A mistake in options or data; the message says what to do.
    """
    keep_freed_memory()
    torch.set_num_threads(available_cores())
    out = Path(out)
    if out.exists() and not overwrite:
        raise UserError(f"--out {out}: exists; give --overwrite, or another file")
    sources = {"CHECKPOINT": checkpoint, "DATA": data, "--head": head}
    check_file(out, sources=sources, ours=_is_prediction, what="a file that openjepa predict wrote")
    listing = out.with_suffix(".bad_files.jsonl")
    check_file(listing, sources=sources, ours=is_bad_files, what="a list of unreadable images")
    classify, facts = load_head(Path(head))
    model = load(checkpoint, num_heads=num_heads)
    network = model.target_encoder if facts.encoder == "target" else model.context_encoder
    if weights_hash(network) != facts.weights_sha256:
        raise CheckpointError(
            f"--head {head}: fitted on the {facts.encoder} encoder of {facts.checkpoint}, whose weights are others "
            f"than those of {checkpoint}; fit one with openjepa evaluate {checkpoint} … --save-head"
        )
    source = open_source(data)
    assert isinstance(model.preprocess, Preprocess)
    preprocess = model.preprocess.on(source)
    dataset = ImageDataset(
        source, image_size=preprocess.image_size, channels=preprocess.channels,
        interpolation=preprocess.interpolation, value_range=preprocess.value_range, cache="never",
    )  # fmt: skip
    listing.unlink(missing_ok=True)  # of an earlier file of this name
    bad_files = BadFiles(
        listing, max_fraction=max_bad_fraction, num_images=len(source), option="--max-bad-fraction"
    )
    bad_files.note(BadFile(*problem) for problem in source.problems)
    place = resolve_device(device, option="--device")
    precision = "bfloat16" if bfloat16_pays(place) else "float32"
    featurise = pooled(
        frozen_encoder(network, device=place, precision=precision, num_layers=facts.num_layers),
        facts.pooling,
        patch_size=network.patch_embed.patch_size,
    )

    def scores(images: Tensor) -> Tensor:
        inputs = normalise(images.to(place), mean=preprocess.mean, std=preprocess.std)
        features = featurise(inputs).cpu()
        require_finite(features, str(checkpoint), mean=preprocess.mean, std=preprocess.std)
        return classify(features)

    batches = evaluate_batches(dataset, batch_size=batch_size, num_workers=num_workers, bad_files=bad_files)
    with ImageProgress(len(dataset)) as shown, written_whole(out) as draft:
        num_rows = _write(draft, batches, scores, source, facts.classes, shown)
        if not num_rows:
            raise DataError(
                f"{source.name}: none of its {len(dataset)} images can be read; listed in {listing}"
            )
        if left_out := len(dataset) - num_rows:
            shown.say(f"{left_out:,} images that cannot be read were left out; listed in {listing}")
    return out


def _is_prediction(path: Path) -> bool:
    """Whether a file begins as what is written here."""
    with path.open("rb") as stream:
        return stream.readline().strip() == ",".join(_COLUMNS).encode()


def _write(
    file: Path,
    batches: Iterable[Batch],
    scores: Callable[[Tensor], Tensor],
    source: Source,
    classes: Sequence[str],
    shown: ImageProgress,
) -> int:
    """Write a line an image; how many there are."""
    num_rows = 0
    with file.open("w", newline="", encoding="utf-8") as stream:
        lines = csv.writer(stream)
        lines.writerow(_COLUMNS)
        for batch in batches:
            chances, labels = scores(batch.images).softmax(dim=1).max(dim=1)
            for sample, label, chance in zip(
                batch.samples.tolist(), labels.tolist(), chances.tolist(), strict=True
            ):
                lines.writerow([source.path(sample), classes[label], f"{chance:.4f}"])
            num_rows += len(labels)
            shown.update(int(batch.samples[-1]) + 1)
    return num_rows
