"""A run's metrics as small charts, each an SVG that a page can hold."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Curve(NamedTuple):
    """One chart: which metric, what to call it, and what it means to a reader."""

    metric: str
    title: str
    meaning: str


CURVES = (
    Curve("loss", "Loss", "How far predictions are from what they should be. Low is not yet good."),
    Curve("knn_top1", "k-NN accuracy", "On labelled images, while training."),
    Curve("rankme", "RankMe", "How many directions the features use. Growing is good, near 1 is collapse."),
    Curve("feature_std", "Feature spread", "How much features differ between images. Zero is collapse."),
    Curve("explained_variance", "Explained variance", "Share of what differs between images that is predicted."),
    Curve("position_gap", "Position gap", "Predictions fit their own image better than others by this. Near zero, "
                                          "features only tell the position."),
    Curve("lr", "Learning rate", "Warm-up, then a cosine."),
    Curve("ema_momentum", "EMA momentum", "How slowly the target encoder follows."),
    Curve("images_per_second", "Images per second", "Speed, without the time of health checks."),
)  # fmt: skip


def draw_curve(rows: Sequence[Mapping[str, Any]], metric: str) -> str | None:
    """A chart of a metric over steps as SVG text; None where fewer than two rows have it.

    Args:
        rows: Lines of metrics.jsonl.
        metric: Their key.
    """
    points = [(row["step"], row[metric]) for row in rows if row.get(metric) is not None]
    if len(points) < 2:
        return None
    import matplotlib as mpl  # half a second: only when something is drawn
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with mpl.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": metric, "font.size": 9, "font.family": "sans-serif"}
    ):
        figure = Figure(figsize=(3.4, 1.9), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(*zip(*points, strict=True), color="#2458a6", linewidth=1.4)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("#999")
        axes.tick_params(color="#999", labelcolor="#555")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlabel("step", color="#555", loc="right")
        axes.margins(x=0)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]  # a page has its own head
