"""Schedules: pure functions of the progress of a run, returning Python floats.

A position in a run is a step or a fraction; nothing is replayed on resume.
"""

import math


def warmup_cosine(
    step: float, *, total: float, warmup: float, start: float, peak: float, final: float
) -> float:
    """Linear warm-up from ``start`` to ``peak``, then a half cosine down to ``final`` (learning rate).

    Args:
        step: Position in the run, in the unit of ``total``; past the end it stays at ``final``.
        total: Length of the run.
        warmup: Length of the warm-up, under ``total``.
        start: Value at 0.
        peak: Value at the end of the warm-up.
        final: Value at the end.
    """
    if step < warmup:
        return start + (peak - start) * step / warmup
    return cosine(step - warmup, total=total - warmup, start=peak, final=final)


def cosine(step: float, *, total: float, start: float, final: float) -> float:
    """Half a cosine from ``start`` to ``final`` (weight decay), then constant."""
    progress = min(1.0, step / total) if total > 0 else 1.0
    return final + (start - final) * 0.5 * (1.0 + math.cos(math.pi * progress))


def linear(step: float, *, total: float, start: float, final: float) -> float:
    """A straight line from ``start`` to ``final`` (EMA momentum), then constant."""
    progress = min(1.0, step / total) if total > 0 else 1.0
    return start + (final - start) * progress
