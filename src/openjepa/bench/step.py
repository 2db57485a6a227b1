"""The training step, timed side by side with the authors' code.

    openjepa bench step --reference path/to/ijepa --case tiny --case small

`--reference` is your own clone of facebookresearch/ijepa. Each side runs in a process of its own, so that neither
changes the other's memory allocator, and they take turns, step by step. All start from the same weights and get the
same images and mask indices, drawn by our sampler, and do a whole step: target pass, context, predictor, loss,
backward, AdamW, moving average. That losses agree is printed too. Drawing the masks and cropping
images (pixels in memory; for decoding see `bench data`) are timed apart.
"""

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from openjepa.bench.sides import CASES, NUM_TARGETS, SIDES, Case, Options, make_side
from openjepa.bench.turns import Sides, ratio, timed
from openjepa.errors import UserError
from openjepa.runtime import available_cores


def bench_step(
    *,
    reference: str | Path | None = None,
    cases: Sequence[str] = tuple(CASES),
    repeats: int = 7,
    threads: int | None = None,
    batch: int | None = None,
    bfloat16: bool = False,
    profile: bool = False,
    say: Callable[[str], None],
) -> None:
    """Time the training step.

    Args:
        reference: Clone of the authors' code; without it only our side is timed.
        cases: Any of `tiny` (T/4 at 32 px), `small` (S/16 at 224 px) and `base` (B/16 at 224 px).
        repeats: Steps of each side, after one to warm up.
        threads: Threads of each side; by default the cores there are.
        batch: Another batch size.
        bfloat16: All sides in bfloat16 autocast.
        profile: Also say where the time goes.
        say: Called with each paragraph of the result, Markdown.

    Raises:
        UserError: An unknown case, or a folder that is no clone of the authors' code.
    """
    if unknown := sorted(set(cases) - set(CASES)):
        raise UserError(f"--case {', '.join(unknown)}: unknown; choose from {', '.join(CASES)}")
    if reference is not None and not (Path(reference) / "src" / "helper.py").is_file():
        raise UserError(
            f"--reference {reference}: no clone of facebookresearch/ijepa (no src/helper.py in it)"
        )
    options = Options(Path(reference) if reference else None, threads or available_cores(), bfloat16)
    torch.set_num_threads(options.threads)
    for name in cases:
        case = CASES[name]._replace(batch=batch or CASES[name].batch)
        makers = {
            side: partial(make_side, side, case, options)
            for side in SIDES
            if side != "theirs" or options.reference is not None
        }
        with Sides(makers) as sides:
            _play(name, case, options, sides, list(makers), repeats=repeats, profile=profile, say=say)


def _play(
    name: str,
    case: Case,
    options: Options,
    sides: Sides,
    names: list[str],
    *,
    repeats: int,
    profile: bool,
    say: Callable[[str], None],
) -> None:
    """Let the sides take turns, and say what came out."""
    masks = case.masks(0)
    work = case.flops(masks)
    steps: dict[str, list[tuple[float, float]]] = sides.take_turns("step", repeats=repeats)
    seconds = {side: [one for one, _ in measured] for side, measured in steps.items()}
    peak = matrix_peak(options.bfloat16)  # now that the sides wait
    precision = "bfloat16" if options.bfloat16 else "float32"
    say(f"{name}: batch {case.batch}, {options.threads} threads, {masks.context.shape[2]} context and "
        f"{NUM_TARGETS} × {masks.target.shape[2]} target patches, {work / 1e9:.2f} GFLOP an image, "
        f"{precision} matrix peak {peak / 1e9:.0f} GFLOP/s\n")  # fmt: skip
    say(
        "| | images/s | tokens/s | of the peak | step, ms (range) | masks, data, ms | activations, GB | peak, GB |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for side in names:
        memory = sides.ask(side, "memory")  # of the steps alone
        drawn, viewed = ([sides.ask(side, part) for _ in range(6)] for part in ("masks", "data"))
        beside = ", ".join(
            "–" if None in part else f"{statistics.median(part) * 1e3:.1f}" for part in (drawn, viewed)
        )
        share = None if side == "ours, shared context" else work / peak  # it does less work
        say(_row(side, case, seconds[side], share=share, beside=beside, memory=memory))
    for side in names if "theirs" in names else ():
        if side != "theirs":
            pairs = zip(steps[side], steps["theirs"], strict=True)
            apart = max(abs(a[1] / b[1] - 1) for a, b in pairs)
            say(f"\n{side} / theirs: {ratio(seconds['theirs'], seconds[side])}; "
                f"losses of {repeats} steps agree within {apart:.1e}")  # fmt: skip
    for side in names:
        say(f"\n{side}, parts of the step: {_shares(sides.ask(side, 'phases'))}")
        if profile:
            say(f"\n{side}, operators: {_shares(sides.ask(side, 'operators'))}")


def _shares(spent: dict[str, float]) -> str:
    """The longest, with their shares of all the time."""
    longest = sorted(spent.items(), key=lambda one: -one[1])[:14]
    return ", ".join(f"{name} {seconds / sum(spent.values()):.1%}" for name, seconds in longest)


def _row(
    side: str,
    case: Case,
    seconds: list[float],
    *,
    share: float | None,
    beside: str,
    memory: tuple[int | None, int],
) -> str:
    median = statistics.median(seconds)
    rate = case.batch / median
    activations, whole = ("–" if size is None else f"{size / 1e9:.2f}" for size in memory)
    tokens = rate * (case.image // case.patch) ** 2
    of_peak = "–" if share is None else f"{share * rate:.1%}"
    return (
        f"| {side} | {rate:.2f} | {tokens:,.0f} | {of_peak} | {median * 1e3:.0f} ({min(seconds) * 1e3:.0f}–"
        f"{max(seconds) * 1e3:.0f}) | {beside} | {activations} | {whole} |"
    )


def matrix_peak(bfloat16: bool) -> float:
    """FLOP/s of a large product of matrices, the best of ten."""
    matrix = torch.randn(2048, 2048, dtype=torch.bfloat16 if bfloat16 else torch.float32)
    return 2 * 2048**3 / min(timed(lambda: matrix @ matrix)[0] for _ in range(10))
