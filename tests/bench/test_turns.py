"""Sides live in processes of their own, take turns, and hand a user's error over."""

import os
from functools import partial

import pytest

from openjepa.bench.step import bench_step
from openjepa.bench.turns import Sides, ratio, timed
from openjepa.errors import UserError


def test_sides_take_turns_in_their_own_processes() -> None:
    makers = {
        name: partial(dict, more=iter(range(start, start + 9)).__next__, process=os.getpid)
        for name, start in (("low", 0), ("high", 10))
    }
    with Sides(makers) as sides:
        assert sides.take_turns("more", repeats=2) == {"low": [1, 2], "high": [11, 12]}
        assert len({os.getpid(), sides.ask("low", "process"), sides.ask("high", "process")}) == 3


def test_a_side_that_cannot_be_made() -> None:
    broken = partial(bench_step, cases=["giant"], say=print)
    with Sides({"one": broken}) as sides, pytest.raises(UserError, match="--case giant: unknown"):
        sides.ask("one", "anything")


def test_seconds_and_ratios() -> None:
    seconds, result = timed(lambda: 7)
    assert seconds >= 0
    assert result == 7
    assert ratio([2.0, 3.0, 8.0], [1.0, 1.0, 2.0]) == "3.00× (2.00–4.00)"
