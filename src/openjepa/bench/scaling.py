"""How speed and memory grow with the batch, the tokens, the depth and the number of files.

    openjepa bench scaling --out scaling --what batch,tokens,depth,images

The first three are the training step of `vit_nano` (128 wide, 4 blocks, patch 4, predictor 64 × 2; `ours` of the step
benchmark). The sizes of one ladder are processes of their own that take turns. With `--out`, the tables are also
kept as `scaling.json`, and drawn in `scaling.png`.
"""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from openjepa.bench.many_files import LATE_STEP, DataSet, read_data_sets
from openjepa.bench.sides import Case, Options, make_side
from openjepa.bench.turns import Sides, ratio
from openjepa.errors import UserError
from openjepa.models.vit import SIZES
from openjepa.runtime import available_cores, environment
from openjepa.writing import write_text

WHAT = ("batch", "tokens", "depth", "images")
RUNGS: dict[str, tuple[int, ...]] = {
    "batch": (8, 16, 32, 64, 128, 256, 512),
    "tokens": (32, 48, 64, 96, 128),  # pixels: 64 to 1,024 tokens
    "depth": (2, 4, 8, 16, 32),
}
_TOKENS = 4096  # a batch of the ladder `tokens`
_SIZE = SIZES["vit_nano"]
# The share of context patches that pretraining chooses by itself at 32 px (20 of 64), here at all sizes, so that
# the work grows by the tokens alone.
_NANO = Case(
    "vit_nano", 32, 4, _SIZE.embed_dim, _SIZE.num_heads, _SIZE.predictor_dim, 64, 20 / 64,
    depth=_SIZE.depth, predictor_depth=_SIZE.predictor_depth,
)  # fmt: skip


class Rung(NamedTuple):
    """One size of a training step, measured."""

    size: int
    """What grows: images a batch, tokens an image, or blocks."""
    batch: int
    num_tokens: int
    """Of an image."""
    flops: float
    """Floating-point operations an image."""
    seconds: list[float]
    """Of each step."""
    peak_bytes: int
    """Most memory that the process has held; 0 where the system does not say."""

    @property
    def rate(self) -> float:
        """Images/s."""
        return self.batch / statistics.median(self.seconds)


class Chart(NamedTuple):
    """A ladder's two pictures: a speed, and memory."""

    grows: str
    sizes: list[int]
    speed: str
    speeds: list[float]
    gigabytes: list[float]


def bench_scaling(
    *,
    what: Sequence[str] = WHAT,
    out: str | Path | None = None,
    repeats: int = 5,
    threads: int | None = None,
    max_images: int = 1_000_000,
    rungs: Mapping[str, Sequence[int]] | None = None,
    say: Callable[[str], None],
) -> None:
    """Measure how speed and memory grow.

    Args:
        what: Any of `batch`, `tokens`, `depth` and `images`.
        out: Folder for `scaling.json` and `scaling.png`.
        repeats: Steps of each size, after one to warm up; or processes for each number of files.
        threads: Threads of each process; by default the cores there are.
        max_images: Files of the largest data set; there is one for every power of ten from 1,000 on.
        rungs: Other sizes: images a batch for `batch`, pixels for `tokens`, blocks for `depth`, files for `images`.
        say: Called with each paragraph of the result, Markdown.

    Raises:
        UserError: Something unknown to measure, too few images, or a folder that cannot be written.
    """
    if unknown := sorted(set(what) - set(WHAT)):
        raise UserError(f"--what {', '.join(unknown)}: unknown; choose from {', '.join(WHAT)}")
    sizes = {**RUNGS, "images": file_counts(max_images), **(rungs or {})}
    folder = None if out is None else _folder(Path(out))
    threads = threads or available_cores()
    result: dict[str, Any] = {**environment(), "threads": threads, "repeats": repeats}
    charts = []
    for name in (name for name in WHAT if name in what):
        if name == "images":
            data_sets = read_data_sets(sizes[name], threads=threads, repeats=repeats)
            say(files_table(data_sets))
            result[name] = [_files_as_dict(data_set) for data_set in data_sets]
            charts.append(files_chart(data_sets))
        else:
            ladder = climb(name, cases_of(name, sizes[name]), threads=threads, repeats=repeats)
            say(steps_table(name, ladder, threads=threads))
            result[name] = [{**rung._asdict(), "images_per_second": rung.rate} for rung in ladder]
            charts.append(steps_chart(name, ladder))
        if folder is not None:  # after each, for all of them take a while
            text = json.dumps(result, indent=1) + "\n"
            write_text(folder / "scaling.json", text)
    if folder is not None:
        # Last, for it takes memory, and `peak_memory` of a process is never below what its parent held at its start.
        draw(charts, folder / "scaling.png")


def file_counts(max_images: int) -> list[int]:
    """The powers of ten from 1,000 to ``max_images``.

    Raises:
        UserError: There is none.
    """
    if max_images < 1000:
        raise UserError(f"--max-images {max_images}: at least 1000, the smallest data set that is measured")
    return [10**power for power in range(3, len(str(max_images)))]


def cases_of(what: str, sizes: Sequence[int]) -> dict[int, Case]:
    """The steps of a ladder, by what grows: images a batch, tokens an image, or blocks."""
    if what == "batch":
        return {size: _NANO._replace(batch=size) for size in sizes}
    if what == "depth":
        return {size: _NANO._replace(depth=size) for size in sizes}
    tokens = {(size // _NANO.patch) ** 2: size for size in sizes}
    return {num: _NANO._replace(image=size, batch=max(1, _TOKENS // num)) for num, size in tokens.items()}


def climb(what: str, cases: Mapping[int, Case], *, threads: int, repeats: int) -> list[Rung]:
    """Measure the steps of a ladder, in turns."""
    options = Options(None, threads, False)
    makers = {f"{what} {size}": partial(make_side, "ours", case, options) for size, case in cases.items()}
    with Sides(makers) as sides:
        steps = sides.take_turns("step", repeats=repeats)
        peaks = {side: sides.ask(side, "memory")[1] for side in makers}
    return [
        Rung(
            size, case.batch, (case.image // case.patch) ** 2, case.flops(case.masks(0)),
            [seconds for seconds, _ in steps[side]], peaks[side],
        )
        for side, (size, case) in zip(makers, cases.items(), strict=True)
    ]  # fmt: skip


def steps_table(what: str, ladder: Sequence[Rung], *, threads: int) -> str:
    """Markdown: a ladder of training steps, and its last rung beside its first."""
    lines = [
        f"{what}: training step of vit_nano, {threads} threads\n",
        f"| {_GROWS[what]} | batch | images/s | tokens/s | GFLOP/s | step, ms (range) | peak, GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for rung in ladder:
        low, middle, high = (1e3 * function(rung.seconds) for function in (min, statistics.median, max))
        lines.append(
            f"| {rung.size:,} | {rung.batch} | {rung.rate:,.1f} | {rung.rate * rung.num_tokens:,.0f} | "
            f"{rung.rate * rung.flops / 1e9:.1f} | {middle:.1f} ({low:.1f}–{high:.1f}) | "
            f"{_gigabytes(rung.peak_bytes)} |"
        )
    first, last = ladder[0], ladder[-1]
    costs = []  # seconds for a unit of work
    for rung in (first, last):
        work = rung.batch * (1 if what == "batch" else rung.flops)
        costs.append([seconds / work for seconds in rung.seconds])
    unit = "images/s" if what == "batch" else "GFLOP/s"
    lines.append(f"\n{unit}, {last.size:,} / {first.size:,} {_GROWS[what]}: {ratio(*costs)}")
    if what != "tokens" and first.peak_bytes and last.size > first.size:
        each = (last.peak_bytes - first.peak_bytes) / (last.size - first.size)
        lines[-1] += f"; {each / 1e6:.2f} MB of peak memory for one more"
    return "\n".join(lines) + "\n"


def files_table(data_sets: Sequence[DataSet]) -> str:
    """Markdown: data sets of more and more files, and the largest beside the smallest."""
    lines = [
        f"images: JPEG files of 64 px in the system's cache, batches of {data_sets[0].batch} views of 32 px\n",
        f"| files | index, s | index, bytes a file | batch of step 0, ms | of step {LATE_STEP:,}, ms | "
        "images/s (range) | peak, GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in data_sets:
        grown = one.median("index_bytes")
        lines.append(
            f"| {one.num_files:,} | {one.median('index_seconds'):.3f} | "
            f"{f'{grown / one.num_files:,.0f}' if grown else '–'} | "
            f"{one.median('first_seconds') * 1e3:.1f} | {one.median('late_seconds') * 1e3:.1f} | "
            f"{statistics.median(one.rates):,.0f} ({min(one.rates):,.0f}–{max(one.rates):,.0f}) | "
            f"{_gigabytes(one.median('peak_bytes'))} |"
        )
    first, last = data_sets[0], data_sets[-1]
    seconds = ([reading.batch_seconds for reading in one.readings] for one in (first, last))
    lines.append(f"\nimages/s, {last.num_files:,} / {first.num_files:,} files: {ratio(*seconds)}")
    return "\n".join(lines) + "\n"


def steps_chart(what: str, ladder: Sequence[Rung]) -> Chart:
    """Images/s over the batch; GFLOP/s over the others, which is level where the cost grows as the arithmetic."""
    speeds = [rung.rate if what == "batch" else rung.rate * rung.flops / 1e9 for rung in ladder]
    return Chart(
        _GROWS[what], [rung.size for rung in ladder], "images/s" if what == "batch" else "GFLOP/s", speeds,
        [rung.peak_bytes / 1e9 for rung in ladder],
    )  # fmt: skip


def files_chart(data_sets: Sequence[DataSet]) -> Chart:
    """Images/s over the number of files."""
    return Chart(
        "files", [one.num_files for one in data_sets], "images/s, reading",
        [statistics.median(one.rates) for one in data_sets],
        [one.median("peak_bytes") / 1e9 for one in data_sets],
    )  # fmt: skip


def draw(charts: Sequence[Chart], path: Path) -> None:
    """One PNG: a column a ladder, its speed above, its peak memory below."""
    import matplotlib as mpl  # half a second: only when something is drawn
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

    with mpl.rc_context({"font.size": 9, "font.family": "sans-serif"}):
        figure = Figure(figsize=(3.0 * len(charts), 4.0), layout="constrained")
        rows = figure.subplots(2, len(charts), squeeze=False)
        for column, chart in enumerate(charts):
            pictures = ((chart.speed, chart.speeds), ("peak memory, GB", chart.gigabytes))
            for axes, (title, values) in zip(rows[:, column], pictures, strict=True):
                axes.plot(chart.sizes, values, "o-", color="#2458a6", linewidth=1.4, markersize=3)
                axes.set_xscale("log")
                axes.xaxis.set_major_locator(FixedLocator(chart.sizes))
                axes.xaxis.set_minor_locator(NullLocator())
                axes.set_xticks(chart.sizes, [_short(size) for size in chart.sizes])
                axes.set_ylim(0, 1.1 * max(values) or 1)
                axes.yaxis.set_major_locator(MaxNLocator(4))
                axes.spines[["top", "right"]].set_visible(False)
                axes.spines[["left", "bottom"]].set_color("#999")
                axes.tick_params(color="#999", labelcolor="#555")
                axes.set_title(title, loc="left", fontsize=9)
            rows[1, column].set_xlabel(chart.grows, color="#555", loc="right")
        figure.savefig(path, dpi=150)


_GROWS = {"batch": "images a batch", "tokens": "tokens an image", "depth": "blocks"}


def _files_as_dict(data_set: DataSet) -> dict[str, Any]:
    readings = [reading._asdict() for reading in data_set.readings]
    rate = statistics.median(data_set.rates)
    return {**data_set._asdict(), "readings": readings, "images_per_second": rate}


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f}" if size else "–"


def _short(size: int) -> str:
    """A number of at most four digits, with its unit: 8, 1,024, 10k, 1M."""
    for factor, letter in ((10**6, "M"), (10**3, "k")):
        if size >= factor and size % factor == 0:
            return f"{size // factor}{letter}"
    return f"{size:,}"


def _folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {path}: no folder can be made here: {error.strerror}") from None
    return path
