"""Several processes as one. (Real ones: tests/apps/test_pretrain.py, slow.)"""

from typing import Any, cast

import pytest
from lightning_fabric import Fabric

from openjepa.errors import FirstProcessFailed
from openjepa.processes import by_first


class Rank:
    """A process as Fabric shows it; what the first one says is given."""

    def __init__(self, number: int, first_says: bool = True) -> None:
        self.global_rank, self.first_says = number, first_says
        self.told: list[bool] = []

    def broadcast(self, value: bool) -> bool:
        self.told.append(value)
        return value if self.global_rank == 0 else self.first_says


def as_fabric(rank: Rank) -> Fabric:
    return cast(Fabric, rank)


def test_the_first_works_and_the_others_wait() -> None:
    done: list[int] = []
    for number in (0, 1):
        by_first(as_fabric(Rank(number)), lambda number=number: done.append(number))
    assert done == [0]


def test_the_first_tells_its_error_and_the_others_end() -> None:
    def fails() -> Any:
        raise OSError("disk full")

    first = Rank(0)
    with pytest.raises(OSError, match="disk full"):
        by_first(as_fabric(first), fails)
    assert first.told == [False]
    with pytest.raises(FirstProcessFailed):
        by_first(as_fabric(Rank(1, first_says=False)), fails)
