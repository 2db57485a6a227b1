"""Evaluation of a checkpoint as a whole: model and labelled data opened, then `openjepa.evals.run.evaluate`.

With the baselines that give a number its meaning:

    openjepa.evaluate("runs/photos", train="labelled/train", test="labelled/test", baselines=True)
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from openjepa.allocator import keep_freed_memory
from openjepa.apps.embed import frozen_encoder
from openjepa.data.dataset import ImageDataset
from openjepa.data.preprocess import Preprocess
from openjepa.data.sources import Source, open_source, same_data
from openjepa.errors import CheckpointError, DataError, UserError
from openjepa.evals import run
from openjepa.evals.config import EvalConfig
from openjepa.evals.features import Encoder
from openjepa.evals.fewshot import sizes, subset
from openjepa.evals.heads import Head, HeadFacts, check_new_folder, save_head
from openjepa.evals.labels import Labels
from openjepa.evals.on_images import ON_IMAGES, Bench
from openjepa.evals.protocols import NUM_LAYERS, OWN_LABELS, PROTOCOLS, Outcome
from openjepa.evals.result import as_json, format_table
from openjepa.evals.store import FeatureStore, feature_folder
from openjepa.hub import load, weights_hash
from openjepa.methods.ijepa import build_ijepa
from openjepa.models.transformer import AttentionPath
from openjepa.models.vit import VisionTransformer
from openjepa.overwrite import check_file, is_result
from openjepa.progress import ImageProgress
from openjepa.runtime import available_cores, bfloat16_pays, environment, fastest_attention, resolve_device
from openjepa.settings import load_config
from openjepa.writing import write_text

_log = logging.getLogger(__name__)
PROTOCOLS_BY_DEFAULT = ("knn", "linear", "logistic")
_KEPT_BYTES = 2**29  # of decoded images, for protocols that look at them more than once; of each split


@dataclass(frozen=True, kw_only=True)
class _Request:
    """What is evaluated on what; the arguments of `evaluate` that its result depends on."""

    checkpoint: str
    train: str
    test: str
    target: str | None
    protocols: list[str]
    encoder: str
    baselines: bool
    num_heads: int | None

    def __post_init__(self) -> None:
        if self.encoder not in ("target", "context"):
            raise UserError(f"--encoder {self.encoder!r}: expected target or context")
        known = [*PROTOCOLS, *ON_IMAGES]
        if unknown := [name for name in self.protocols if name not in known]:
            raise UserError(f"--protocols: {', '.join(unknown)} not known; choose from {', '.join(known)}")


def evaluate(
    checkpoint: str | Path,
    *,
    train: str | Path,
    test: str | Path,
    target: str | None = None,
    protocols: Sequence[str] = PROTOCOLS_BY_DEFAULT,
    encoder: str = "target",
    baselines: bool = False,
    save_head: str | Path | None = None,
    set: Sequence[str] = (),
    num_heads: int | None = None,
    num_workers: int = 0,
    device: str = "auto",
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
            with BatchNorm or without), `linear_grid` (the same on means over 3 x 3 regions), `attentive` (a learned
            query over the patches, and a linear classifier), `logistic`, `fewshot` (`linear` on 1 % and 10 % of the
            labels), `finetune` (encoder and head trained further; its baseline is trained from scratch),
            `fewshot_finetune`; on data that has such labels `count` (label `count`) and `depth` (label `distance`),
            linear probes as the paper's on Clevr; and where more is known of each pixel, `dense_depth` and
            `segmentation` by patch.
        encoder: `target`, as the paper, or `context`.
        baselines: Also the same encoder at random initialisation, and raw pixels.
        save_head: Folder for the first linear head among the protocols, for `openjepa.predict`.
        set: `KEY=VALUE` settings of the protocols (`openjepa.evals.config`).
        num_heads: Attention heads, where the file does not say.
        num_workers: Processes that decode images.
        device: Where to embed and fine-tune: `cuda`, `mps`, `cpu`, or `auto`, the best there is. Heads on frozen
            features are fitted on the CPU, whose numbers are the same everywhere but for rounding.
        out: JSON file for the result. Beside it, in FILE.subsets/, `fewshot` lists the images of its subsets.

    Returns:
        What is written to ``out``. `rerun` makes it again from there.

    Raises:
        UserError: A mistake in options, data or checkpoint; the message says what to do.
    """
    if out is not None:
        sources = {"CHECKPOINT": checkpoint, "--train": train, "--test": test}
        check_file(Path(out), sources=sources, ours=is_result, what="a result of openjepa evaluate")
    config = load_config({}, schema=EvalConfig, overrides=set)
    request = _Request(
        checkpoint=str(checkpoint), train=str(train), test=str(test), target=target, protocols=list(protocols),
        encoder=encoder, baselines=baselines, num_heads=num_heads,
    )  # fmt: skip
    head = None if save_head is None else Path(save_head)
    if head is not None:
        _check_head(head, protocols)
    done = _Evaluation(request, config, device=device, num_workers=num_workers)
    return done.run(out=None if out is None else Path(out), head=head)


def _check_head(folder: Path, protocols: Sequence[str]) -> None:
    """Refuse, before the work, what `--save-head` could not do after it."""
    check_new_folder(folder)
    if not any(name in PROTOCOLS and PROTOCOLS[name].fits_head for name in protocols):
        raise UserError(
            f"--save-head {folder}: none of {', '.join(protocols)} fits a linear head; "
            "add linear or logistic to --protocols"
        )


def rerun(result: str | Path, *, num_workers: int = 0, out: str | Path | None = None) -> dict[str, Any]:
    """Make a result again from what it says of itself: checkpoint, data, protocols, settings, device and precision.

    Args:
        result: JSON file that `evaluate` wrote.
        num_workers: Processes that decode images.
        out: JSON file for the new result.

    Returns:
        The new result.

    Raises:
        CheckpointError: The file is no such result, or the weights are others than they were.
        DataError: The data are others than they were.
        UserError: The device is not available here.
    """
    try:
        told = json.loads(Path(result).read_text(encoding="utf-8"))
        request = _Request(**told["request"])
        # Earlier versions mirrored nothing, and had no setting for it.
        config = load_config({"flip": False, **told["settings"]}, schema=EvalConfig)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"--rerun {result}: not a result of this version of openjepa evaluate: {error}"
        ) from None
    device = told.get("device", "cpu")  # results of earlier versions were all made on the CPU
    again = _Evaluation(
        request, config, device=device, num_workers=num_workers, precision=told.get("precision")
    )
    if again.weights_sha256 != told["weights_sha256"]:
        raise CheckpointError(
            f"--rerun {result}: {request.checkpoint} has other weights now than it was made with; evaluate it anew"
        )
    for name, source in again.sources.items():
        if not same_data(source, told["data"][name]):
            raise DataError(
                f"--rerun {result}: the {name} images, {getattr(request, name)}, are not those that it was made with "
                "(other names, sizes, content or order); evaluate anew"
            )
    return again.run(out=None if out is None else Path(out), head=None)


class _Evaluation:
    """Model and data, opened and ready."""

    def __init__(
        self,
        request: _Request,
        config: EvalConfig,
        *,
        device: str,
        num_workers: int,
        precision: str | None = None,
    ) -> None:
        keep_freed_memory()
        self.device = resolve_device(device, option="--device")
        torch.set_num_threads(available_cores())
        self.request, self.config, self.num_workers = request, config, num_workers
        self.model = model = load(request.checkpoint, num_heads=request.num_heads)
        self.network = model.target_encoder if request.encoder == "target" else model.context_encoder
        self.weights_sha256 = weights_hash(self.network)
        self.precision = precision or ("bfloat16" if bfloat16_pays(self.device) else "float32")
        self.sources = {
            "train": self._open("train", request.target),
            "test": self._open("test", request.target),
        }
        assert isinstance(model.preprocess, Preprocess)
        self.preprocess = model.preprocess.on(self.sources["train"])
        self.fingerprints = {name: source.fingerprint for name, source in self.sources.items()}
        self.images = {split: self._images(split) for split in self.sources}

    def run(self, *, out: Path | None, head: Path | None) -> dict[str, Any]:
        """Evaluate; write and print."""
        request = self.request
        networks = {"encoder": self.network}
        if request.baselines:
            assert self.model.architecture is not None
            networks["random_init"] = build_ijepa(self.model.architecture).target_encoder
        heads: dict[str, tuple[Head, Sequence[str]]] = {}

        def keep(protocol: str, found: Outcome, labels: Labels) -> None:
            if found.head is not None:
                heads[protocol] = found.head, labels.names
            if protocol == "fewshot" and out is not None:
                self._list_subsets(labels, out.with_suffix(".subsets"))

        result = self._by_features(networks, on_outcome=keep)
        result |= self._by_images(networks, result)
        result |= {
            "precision": self.precision,
            "device": self.device,
            "weights_sha256": self.weights_sha256,
            "data": self.fingerprints,
            "request": asdict(request),
            "settings": self.config.model_dump(mode="json"),
            "environment": environment(),
        }
        if out is not None:
            self._write(result, out)
        if head is not None:
            self._save_head(head, heads)
        Console().print(format_table(result))
        return result

    def _by_features(
        self, networks: Mapping[str, VisionTransformer], *, on_outcome: Callable[[str, Outcome, Labels], None]
    ) -> dict[str, Any]:
        """The protocols on frozen, pooled features; with none the labels are checked and counted."""
        request, preprocess = self.request, self.preprocess
        protocols = [name for name in request.protocols if name in PROTOCOLS]
        encode = {name: self._frozen(network, num_layers=NUM_LAYERS) for name, network in networks.items()}
        return run.evaluate(
            encode["encoder"],
            train=self.images["train"],
            test=self.images["test"],
            mean=preprocess.mean,
            std=preprocess.std,
            protocols=protocols,
            label_sources={
                column: (self._open("train", column), self._open("test", column))
                for protocol, column in OWN_LABELS.items()
                if protocol in protocols
            },
            random_init=encode.get("random_init"),
            patch_size=self.network.patch_embed.patch_size,
            checkpoint=request.checkpoint,
            encoder=request.encoder,
            num_workers=self.num_workers,
            config=self.config,
            store=self._store(),
            bars=ImageProgress,
            on_outcome=on_outcome,
        )

    def _by_images(
        self, networks: Mapping[str, VisionTransformer], result: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The result's ``protocols`` and ``baselines`` with those that want images, in the order asked for."""
        scores, baselines = (
            dict(result["protocols"]),
            {name: dict(found) for name, found in result["baselines"].items()},
        )
        if wanted := [name for name in self.request.protocols if name in ON_IMAGES]:
            bench = Bench(
                encoders=networks, frozen={name: self._frozen(network) for name, network in networks.items()},
                train=self.images["train"], test=self.images["test"], mean=self.preprocess.mean,
                std=self.preprocess.std, config=self.config, precision=self.precision,
                attention=self._fastest_attention(wanted), device=self.device, num_workers=self.num_workers,
                say=_log.info, bars=ImageProgress,
            )  # fmt: skip
            for protocol in wanted:
                found = ON_IMAGES[protocol](bench)
                scores[protocol] = found.pop("encoder")
                for name, baseline in found.items():
                    baselines.setdefault(name, {})[protocol] = run.without_settings(baseline)
        return {"protocols": {name: scores[name] for name in self.request.protocols}, "baselines": baselines}

    def _fastest_attention(self, protocols: Sequence[str]) -> AttentionPath:
        """For training on whole images, where a protocol does; measured."""
        if not {"finetune", "fewshot_finetune"} & set(protocols):
            return "fused"
        (rows, columns), network = self.network.grid, self.network
        shape = (self.config.finetune.batch_size, rows * columns, network.embed_dim, network.num_heads)
        dtype = torch.bfloat16 if self.precision == "bfloat16" else torch.float32
        return fastest_attention([shape], self.device, dtype)

    def _frozen(self, network: VisionTransformer, *, num_layers: int | None = None) -> Encoder:
        return frozen_encoder(network, device=self.device, precision=self.precision, num_layers=num_layers)

    def _store(self) -> FeatureStore:
        """Where features are kept, by everything that makes them beside the images."""
        view = {"preprocess": asdict(self.preprocess)}
        encoded = {**view, "precision": self.precision, "device": self.device, "layers": NUM_LAYERS}
        assert self.model.architecture is not None
        return FeatureStore(
            feature_folder(),
            {
                "encoder": {**encoded, "weights": self.weights_sha256},
                "random_init": {**encoded, "untrained": self.model.architecture.as_dict()},
                "raw_pixels": view,
            },
        )

    def _open(self, split: str, target: str | None) -> Source:
        return open_source(getattr(self.request, split), split=split, target=target)

    def _images(self, split: str) -> ImageDataset:
        return ImageDataset(
            self.sources[split],
            image_size=self.preprocess.image_size,
            channels=self.preprocess.channels,
            interpolation=self.preprocess.interpolation,
            value_range=self.preprocess.value_range,
            cache_bytes=_KEPT_BYTES,
            flip=self.config.flip,
            max_bad_fraction=self.config.data.max_bad_fraction,
        )

    def _save_head(self, folder: Path, heads: dict[str, tuple[Head, Sequence[str]]]) -> None:
        protocol = next(name for name in self.request.protocols if name in heads)
        head, classes = heads[protocol]
        facts = HeadFacts(
            classes=list(classes), protocol=protocol, num_layers=head.num_layers, checkpoint=self.request.checkpoint,
            weights_sha256=self.weights_sha256, encoder=self.request.encoder,
            pooling=PROTOCOLS[protocol].pooling(self.config),
        )  # fmt: skip
        save_head(folder, head, facts)

    def _list_subsets(self, labels: Labels, folder: Path) -> None:
        """Write the images of each few-shot subset, a path a line."""
        config, source = self.config.fewshot, self.sources["train"]
        num_images = len(labels.samples[0]) // (1 + self.config.views)
        for size in sizes(fractions=config.fractions, per_class=config.per_class):
            for seed in range(self.config.seed, self.config.seed + config.subsets):
                rows = subset(labels.values[0][:num_images].cpu().numpy(), size, seed=seed)
                paths = [source.path(int(sample)) for sample in labels.samples[0][rows]]
                write_text(folder / f"{size.name} seed {seed}.txt", "\n".join(paths) + "\n")

    def _write(self, result: dict[str, Any], out: Path) -> None:
        write_text(out, as_json(result))
        _update_report(Path(self.request.checkpoint), out)


def _update_report(run_folder: Path, result: Path) -> None:
    """Show a result that was written into the evaluated run's folder on the run's page."""
    if result.absolute().parent == run_folder.absolute() and (run_folder / "report.html").is_file():
        from openjepa.viz.report import write_report  # matplotlib takes half a second

        write_report(run_folder)
