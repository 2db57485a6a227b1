"""Which lines of metrics end a run."""

from typing import Any

import pytest

from openjepa.errors import CollapseError
from openjepa.probes import stop_on_collapse

HEALTHY: dict[str, Any] = {
    "step": 500, "progress": 0.5, "rankme": 9.0, "feature_std": 0.04, "explained_variance": 0.3, "position_gap": 0.5,
}  # fmt: skip


def ends(row: dict[str, Any]) -> bool:
    try:
        stop_on_collapse(row, num_features=128)
    except CollapseError:
        return True
    return False


@pytest.mark.parametrize(
    "changes",
    [{}, {"progress": 1.0}, {"position_gap": 0.0}, {"explained_variance": -1.0, "progress": 1.0}],
    ids=["healthy", "healthy at the end", "position at the start", "hard to predict"],
)
def test_runs_that_go_on(changes: dict[str, float]) -> None:
    assert not ends(HEALTHY | changes)


def test_a_line_without_health_says_nothing() -> None:
    assert not ends({"step": 3, "progress": 1.0, "loss": 0.0, "feature_std": 0.0})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"feature_std": 1e-4}, "step 500: collapsed"),
        ({"rankme": float("nan")}, "broken"),
        ({"position_gap": 0.001, "progress": 1.0}, "position only"),
    ],
)
def test_runs_that_end(changes: dict[str, float], words: str) -> None:
    with pytest.raises(CollapseError, match=words) as error:
        stop_on_collapse(HEALTHY | changes, num_features=128)
    assert error.value.exit_code == 6
