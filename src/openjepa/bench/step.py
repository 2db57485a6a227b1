"""The training step, timed side by side with the authors' code.

    openjepa bench step --reference path/to/ijepa --case tiny --case small

`--reference` is your own clone of facebookresearch/ijepa. Each side runs in a process of its own, so that neither
changes the other's memory allocator, and they take turns, step by step. All start from the same weights and get the
same images and mask indices, drawn by our sampler, and do a whole step: target pass, context, predictor, loss,
backward, AdamW, moving average. That losses agree is printed too. Drawing the masks is timed apart.
"""

import multiprocessing
import statistics
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from openjepa.bench.sides import CASES, NUM_TARGETS, SIDES, Case, Options, serve, timed
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
        _Match(case, options).play(name, repeats=repeats, profile=profile, say=say)


class _Match:
    """The sides of one case, each in its process."""

    def __init__(self, case: Case, options: Options) -> None:
        self.case, self.options = case, options
        context = multiprocessing.get_context("spawn")
        self.sides: dict[str, Connection] = {}
        for side in SIDES:
            if side == "theirs" and options.reference is None:
                continue
            self.sides[side], child = context.Pipe()
            context.Process(target=serve, args=(side, case, options, child), daemon=True).start()

    def ask(self, side: str, question: str) -> Any:
        """A side's answer, see `serve`."""
        self.sides[side].send(question)
        return self.sides[side].recv()

    def play(self, name: str, *, repeats: int, profile: bool, say: Callable[[str], None]) -> None:
        """Let the sides take turns, and say what came out."""
        case, masks = self.case, self.case.masks(0)
        work = case.flops(masks)
        steps: dict[str, list[tuple[float, float]]] = {side: [] for side in self.sides}
        for _ in range(repeats + 1):
            for side in self.sides:
                steps[side].append(self.ask(side, "step"))
        peak = matrix_peak(self.options.bfloat16)  # now that the sides wait
        precision = "bfloat16" if self.options.bfloat16 else "float32"
        say(f"{name}: batch {case.batch}, {self.options.threads} threads, {masks.context.shape[2]} context and "
            f"{NUM_TARGETS} × {masks.target.shape[2]} target patches, {work / 1e9:.2f} GFLOP an image, "
            f"{precision} matrix peak {peak / 1e9:.0f} GFLOP/s\n")  # fmt: skip
        say(
            "| | images/s | tokens/s | of the peak | step, ms (range) | masks, ms | activations, GB | peak, GB |\n"
            "|---|---|---|---|---|---|---|---|"
        )
        for side, measured in steps.items():
            say(self._row(side, [seconds for seconds, _ in measured[1:]], work=work, peak=peak))
        for side in self.sides:
            if side != "theirs" and "theirs" in self.sides:
                say(_ratio(side, "theirs", steps))
        for side in self.sides if profile else ():
            spent = self.ask(side, "operators")
            total, longest = sum(spent.values()), sorted(spent.items(), key=lambda one: -one[1])[:14]
            shares = (f"{operator} {seconds / total:.1%}" for operator, seconds in longest)
            say(f"\n{side}, share of the time in each operator: {', '.join(shares)}")
        for connection in self.sides.values():
            connection.send(None)

    def _row(self, side: str, seconds: list[float], *, work: float, peak: float) -> str:
        median, case = statistics.median(seconds), self.case
        rate = case.batch / median
        drawing = statistics.median(self.ask(side, "masks") for _ in range(6))
        activations, whole = (
            "–" if size is None else f"{size / 1e9:.2f}" for size in self.ask(side, "memory")
        )
        share = "–" if side == "ours, shared context" else f"{work * rate / peak:.1%}"  # it does less work
        tokens = rate * (case.image // case.patch) ** 2
        return (
            f"| {side} | {rate:.2f} | {tokens:,.0f} | {share} | {median * 1e3:.0f} ({min(seconds) * 1e3:.0f}–"
            f"{max(seconds) * 1e3:.0f}) | {drawing * 1e3:.1f} | {activations} | {whole} |"
        )


def _ratio(one: str, other: str, steps: dict[str, list[tuple[float, float]]]) -> str:
    """How much faster one side is than the other, turn by turn."""
    pairs = list(zip(steps[one], steps[other], strict=True))
    ratios = sorted(b[0] / a[0] for a, b in pairs[1:])
    apart = max(abs(a[1] / b[1] - 1) for a, b in pairs)
    return (
        f"\n{one} / {other}: {statistics.median(ratios):.2f}× ({ratios[0]:.2f}–{ratios[-1]:.2f}); "
        f"losses of {len(pairs)} steps agree within {apart:.1e}"
    )


def matrix_peak(bfloat16: bool) -> float:
    """FLOP/s of a large product of matrices, the best of ten."""
    matrix = torch.randn(2048, 2048, dtype=torch.bfloat16 if bfloat16 else torch.float32)
    return 2 * 2048**3 / min(timed(lambda: matrix @ matrix)[0] for _ in range(10))
