"""The `openjepa` command: thin commands over the Python functions of the same names."""

import io
import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from openjepa.errors import Preempted, UserError

app = typer.Typer(
    name="openjepa",
    help="I-JEPA on your own images: pretrain an encoder, watch it learn, evaluate its features.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_CHECKPOINT = "Run folder, checkpoint folder, export, hf://org/name, shipped name or the authors' .pth.tar."
Checkpoint = Annotated[str, typer.Argument(help=_CHECKPOINT)]
Encoder = Annotated[str, typer.Option(help="target (as the paper) or context.")]
Device = Annotated[str, typer.Option(help="auto, cuda, mps or cpu.")]
NumWorkers = Annotated[int, typer.Option(help="Processes that decode images.")]
MaxBadFraction = Annotated[
    float, typer.Option(help="Fail when more than this fraction of the images cannot be read.")
]
NumHeads = Annotated[int | None, typer.Option(help="Attention heads, where the file does not say.")]
Data = Annotated[
    str, typer.Argument(help="Folder, list file, manifest, tar pattern, scenes, fashion-mnist or cifar10.")
]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting, e.g. optim.lr=1e-3.")
]


@app.callback()
def _log_to_terminal() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("openjepa")
    logger.setLevel(logging.INFO)
    logger.handlers[:] = [handler]


@app.command()
def pretrain(
    data: Data,
    out: Annotated[Path | None, typer.Option(help="Folder for everything that the run writes.")] = None,
    method: Annotated[str | None, typer.Option(help="ijepa, mae or maskfeat.")] = None,
    preset: Annotated[
        str, typer.Option(help="Settings to start from: auto, salt, small, multiblock, medium, …")
    ] = "auto",
    config: Annotated[Path | None, typer.Option(help="YAML file of settings on top of the preset.")] = None,
    set: Set = None,
    epochs: Annotated[float | None, typer.Option(help="Train for so many passes over the data …")] = None,
    steps: Annotated[int | None, typer.Option(help="… or so many steps …")] = None,
    max_minutes: Annotated[float | None, typer.Option(help="… or so many minutes.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, order, crops and masks.")] = None,
    devices: Annotated[int | None, typer.Option(help="Processes, one a device.")] = None,
    channels: Annotated[int | None, typer.Option(help="Channels of the images.")] = None,
    init_from: Annotated[
        str | None, typer.Option(help="Checkpoint to start from: its encoder, shape and weights.")
    ] = None,
    eval_train: Annotated[str | None, typer.Option(help="Labelled data for the k-NN that watches.")] = None,
    eval_test: Annotated[str | None, typer.Option(help="Labelled data that it classifies.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    override: Annotated[bool, typer.Option("--override", help="Let it change settings.")] = False,
    allow_data_change: Annotated[
        bool, typer.Option("--allow-data-change", help="Let it change data.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove the earlier run in --out.")] = False,
    stop_on_collapse: Annotated[
        bool, typer.Option("--stop-on-collapse", help="Fail (exit 6) when features collapse.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done, why, and what to expect.")
    ] = False,
) -> None:
    """Pretrain an encoder on unlabelled images."""
    from openjepa.apps.pretrain import pretrain as run  # heavy imports only when needed

    run(
        data=data, out=out, method=method, preset=preset, config=config, set=set or (), epochs=epochs, steps=steps,
        max_minutes=max_minutes, seed=seed, devices=devices, channels=channels, init_from=init_from,
        eval_train=eval_train, eval_test=eval_test, resume=resume, override=override,
        allow_data_change=allow_data_change, overwrite=overwrite, stop_on_collapse=stop_on_collapse, dry_run=dry_run,
    )  # fmt: skip


@app.command()
def evaluate(
    checkpoint: Annotated[
        str | None,
        typer.Argument(help=_CHECKPOINT),
    ] = None,
    train: Annotated[str | None, typer.Option(help="Labelled data to fit the classifiers on.")] = None,
    test: Annotated[str | None, typer.Option(help="Labelled data to test them on.")] = None,
    target: Annotated[str | None, typer.Option(help="Column of a manifest that holds the label.")] = None,
    protocols: Annotated[
        str | None,
        typer.Option(
            help="Any of knn,linear,logistic,linear_grid,attentive,fewshot,finetune,fewshot_finetune,count,depth,"
            "dense_depth,segmentation; by default the first three."
        ),
    ] = None,
    encoder: Encoder = "target",
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Also the same encoder at random init, and raw pixels.")
    ] = False,
    num_heads: NumHeads = None,
    num_workers: NumWorkers = 0,
    device: Device = "auto",
    save_head: Annotated[
        Path | None, typer.Option(help="Folder for the linear head, for `openjepa predict`.")
    ] = None,
    set: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A protocol's setting, e.g. knn.k=5."),
    ] = None,
    suite: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Several data sets and checkpoints, one table.")
    ] = None,
    again: Annotated[
        Path | None, typer.Option("--rerun", metavar="FILE", help="Make this result again, instead.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for the result.")] = None,
) -> None:
    """Evaluate an encoder: k-NN, linear heads, logistic regression, few labels, fine-tuning, counting, depth."""
    from openjepa.apps.evaluate import PROTOCOLS_BY_DEFAULT, rerun
    from openjepa.apps.evaluate import evaluate as run
    from openjepa.apps.suite import evaluate_suite

    if again is not None:
        if (checkpoint, train, test, target, protocols, suite) != (None,) * 6 or set or device != "auto":
            raise UserError(
                "--rerun takes checkpoint, data, settings and device from its file: give none of them"
            )
        rerun(again, num_workers=num_workers, out=out)
        return
    options: dict[str, Any] = {
        "encoder": encoder, "baselines": baselines, "set": set or (), "num_heads": num_heads,
        "num_workers": num_workers, "device": device, "out": out,
    }  # fmt: skip
    if suite is not None:
        if (train, test, target, protocols, save_head) != (None,) * 5:
            raise UserError("--suite takes data and protocols from its file: give no --train, --test, --target, "
                            "--protocols or --save-head")  # fmt: skip
        evaluate_suite(suite, checkpoint=checkpoint, **options)
        return
    if checkpoint is None or train is None or test is None:
        raise UserError(
            "what is evaluated on what? Give CHECKPOINT, --train and --test (or --suite or --rerun FILE)"
        )
    wanted = protocols.split(",") if protocols else PROTOCOLS_BY_DEFAULT
    run(checkpoint, train=train, test=test, target=target, protocols=wanted, save_head=save_head, **options)


@app.command()
def predict(
    checkpoint: Checkpoint,
    data: Data,
    head: Annotated[Path, typer.Option(help="Folder that `openjepa evaluate --save-head` wrote.")],
    out: Annotated[Path, typer.Option(help="CSV file: path, class, probability.")],
    device: Device = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Images a forward pass.")] = 64,
    num_heads: NumHeads = None,
    num_workers: NumWorkers = 0,
    max_bad_fraction: MaxBadFraction = 0.01,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file of predictions.")] = False,
) -> None:
    """Classify images by a head that `openjepa evaluate` fitted."""
    from openjepa.apps.predict import predict as run

    run(
        checkpoint, data, head=head, out=out, device=device, batch_size=batch_size, num_heads=num_heads,
        num_workers=num_workers, max_bad_fraction=max_bad_fraction, overwrite=overwrite,
    )  # fmt: skip


@app.command()
def embed(
    checkpoint: Checkpoint,
    data: Data,
    out: Annotated[Path, typer.Option(help="Parquet file for the embeddings.")],
    patches: Annotated[
        bool, typer.Option("--patches", help="Also the representation of each patch: large.")
    ] = False,
    encoder: Encoder = "target",
    pool: Annotated[
        str, typer.Option(help="Make one vector of the patches: mean, max, mean+max, grid2 or grid3.")
    ] = "mean",
    precision: Annotated[
        str, typer.Option(help="float32, bfloat16, or auto: bfloat16 where it is faster.")
    ] = "auto",
    device: Device = "auto",
    batch_size: Annotated[
        int | None, typer.Option(help="Images a forward pass; 64 up to 64 px, else 16.")
    ] = None,
    num_heads: NumHeads = None,
    num_workers: NumWorkers = 0,
    max_bad_fraction: MaxBadFraction = 0.01,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file of embeddings.")] = False,
) -> None:
    """Write one vector an image to a parquet file; run again after a kill, it goes on."""
    from openjepa.apps.embed import embed as run

    run(
        checkpoint, data, out, patches=patches, encoder=encoder, pool=pool, precision=precision, device=device,
        batch_size=batch_size, num_heads=num_heads, num_workers=num_workers, max_bad_fraction=max_bad_fraction,
        overwrite=overwrite,
    )  # fmt: skip


@app.command()
def search(
    file: Annotated[Path, typer.Argument(help="Parquet file of openjepa embed.")],
    image: Annotated[Path | None, typer.Argument(help="Find the images most like this one.")] = None,
    k: Annotated[int, typer.Option(help="How many.")] = 9,
    checkpoint: Annotated[
        str | None, typer.Option(help="The encoder for IMAGE, where it has another name than the file says.")
    ] = None,
    duplicates: Annotated[bool, typer.Option("--duplicates", help="Find near duplicates.")] = False,
    outliers: Annotated[
        bool, typer.Option("--outliers", help="Find the k images least like any other.")
    ] = False,
    select: Annotated[
        int | None, typer.Option(metavar="N", help="Find N images that stand for all, to label first.")
    ] = None,
    threshold: Annotated[float, typer.Option(help="Cosine similarity of duplicates.")] = 0.99,
    num_heads: NumHeads = None,
    out: Annotated[Path | None, typer.Option(help="Picture of what was found.")] = None,
) -> None:
    """Find images by their features: the most similar, near duplicates, outliers, some that stand for all."""
    from openjepa.apps.search import search as run

    run(
        file, image, k=k, checkpoint=checkpoint, duplicates=duplicates, outliers=outliers, select=select,
        threshold=threshold, num_heads=num_heads, out=out,
    )  # fmt: skip


@app.command()
def export(
    checkpoint: Checkpoint,
    to: Annotated[str, typer.Option(help="hf, timm, onnx or reference (the authors' .pth.tar).")],
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    encoder: Encoder = "target",
    head: Annotated[
        Path | None, typer.Option(help="With hf: a head that openjepa evaluate --save-head wrote.")
    ] = None,
    num_heads: NumHeads = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the earlier export.")] = False,
) -> None:
    """Write the encoder for transformers, timm, ONNX or the authors' code."""
    from openjepa.apps.export import export as run

    run(checkpoint, to=to, out=out, encoder=encoder, head=head, num_heads=num_heads, overwrite=overwrite)


@app.command()
def scan(
    data: Data,
    test: Annotated[str | None, typer.Option(help="Held-out images, looked for in DATA.")] = None,
    channels: Annotated[int, typer.Option(help="Channels that images are decoded to.")] = 3,
) -> None:
    """Tell what is in a data set, what is broken, and which preset fits."""
    from openjepa.apps.scan import scan as run

    run(data, test=test, channels=channels)


bench = typer.Typer(help="Time OpenJEPA on this machine.", no_args_is_help=True)
app.add_typer(bench, name="bench")


@bench.command("step")
def bench_step(
    data: Annotated[
        str | None, typer.Argument(help="Images: the step that `openjepa pretrain DATA` makes, part by part.")
    ] = None,
    reference: Annotated[Path | None, typer.Option(help="Your clone of facebookresearch/ijepa.")] = None,
    case: Annotated[list[str] | None, typer.Option(help="tiny, small or base; may be repeated.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Steps of each side, after those to warm up.")] = 7,
    threads: Annotated[int | None, typer.Option(help="Threads of each side.")] = None,
    batch: Annotated[int | None, typer.Option(help="Another batch size.")] = None,
    bfloat16: Annotated[bool, typer.Option("--bfloat16", help="All sides in bfloat16 autocast.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Also say where the time goes.")] = False,
) -> None:
    """The training step: side by side with the authors' code, or on your images part by part."""
    from openjepa.bench.parts import bench_parts
    from openjepa.bench.step import bench_step as run

    if data is not None:
        if reference or case or batch or bfloat16 or profile:
            raise UserError("bench step DATA times what `openjepa pretrain DATA` does: give no --reference, --case, "
                            "--batch, --bfloat16 or --profile, or leave out DATA")  # fmt: skip
        bench_parts(data, repeats=repeats, threads=threads, say=typer.echo)
        return
    given = {"cases": case} if case else {}
    run(
        reference=reference, repeats=repeats, threads=threads, batch=batch, bfloat16=bfloat16, profile=profile,
        say=typer.echo, **given,
    )  # fmt: skip


@bench.command("data")
def bench_data(
    data: Data,
    reference: Annotated[Path | None, typer.Option(help="Your clone of facebookresearch/ijepa.")] = None,
    image_size: Annotated[int, typer.Option(help="Side of the views in pixels.")] = 224,
    repeats: Annotated[int, typer.Option(help="Rounds of each side, after one to warm up.")] = 5,
) -> None:
    """Decoding and cropping on one thread, beside the authors' transform."""
    from openjepa.bench.data import bench_data as run

    run(data, reference=reference, image_size=image_size, repeats=repeats, say=typer.echo)


@bench.command("embed")
def bench_embed(
    case: Annotated[list[str] | None, typer.Option(help="small or base; may be repeated.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Turns of each side, after one to warm up.")] = 5,
    batch: Annotated[int, typer.Option(min=1, help="Images a forward pass.")] = 16,
    bfloat16: Annotated[bool, typer.Option("--bfloat16", help="All sides in bfloat16.")] = False,
    data: Annotated[Path | None, typer.Option(help="Folder of images: also from files to features.")] = None,
    num_images: Annotated[int, typer.Option(min=1, help="How many of its images a turn reads.")] = 256,
) -> None:
    """Embedding images, side by side with transformers and timm where they are installed."""
    from openjepa.bench.embed import bench_embed as run

    given = {"cases": case} if case else {}
    run(
        repeats=repeats, batch=batch, bfloat16=bfloat16, data=data, num_images=num_images, say=typer.echo, **given
    )  # fmt: skip


@bench.command("scaling")
def bench_scaling(
    out: Annotated[Path | None, typer.Option(help="Folder for the numbers and the figure.")] = None,
    what: Annotated[
        str, typer.Option(help="Any of batch,tokens,depth,images.")
    ] = "batch,tokens,depth,images",
    repeats: Annotated[int, typer.Option(min=1, help="Measurements of each size.")] = 5,
    threads: Annotated[int | None, typer.Option(help="Threads of each process.")] = None,
    max_images: Annotated[int, typer.Option(help="Files of the largest data set.")] = 1_000_000,
) -> None:
    """How speed and memory grow with the batch, the tokens, the depth and the number of files."""
    from openjepa.bench.scaling import bench_scaling as run

    run(
        what=what.split(","), out=out, repeats=repeats, threads=threads, max_images=max_images, say=typer.echo
    )


def main() -> None:
    """Run the command; a user's mistake is one message and an exit code, never a traceback."""
    for stream in (sys.stdout, sys.stderr):  # what a terminal or a pipe cannot show is replaced
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        app(standalone_mode=True)
    except (UserError, Preempted) as error:
        typer.echo(f"openjepa: {error}", err=True)
        sys.exit(error.exit_code)
