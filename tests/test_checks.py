"""When a run is checked, and how much of its time that may take."""

from itertools import pairwise

import pytest

from openjepa.checks import HEALTH_SHARE, Checks


def steps_checked(length: int, batch_size: int) -> list[int]:
    checks = Checks.of_steps(length, batch_size=batch_size)
    return [step for step in range(1, length + 1) if checks.due((step - 1) / length, step / length)]


def seconds_checked(minutes: float, step_seconds: float) -> list[float]:
    checks, total = Checks.of_minutes(minutes), 60 * minutes
    times = [min(total, number * step_seconds) for number in range(int(total / step_seconds) + 2)]
    return [now for before, now in pairwise(times) if checks.due(before / total, now / total)]


@pytest.mark.parametrize(("length", "batch_size"), [(353, 64), (1000, 64), (4321, 32), (10_000, 256)])
def test_a_run_by_steps_has_ten_checks_and_one_soon(length: int, batch_size: int) -> None:
    found = steps_checked(length, batch_size)
    assert found[0] == 10
    assert found[-1] == length
    assert len(found) == 11
    gaps = [later - earlier for earlier, later in pairwise(found[1:])]
    assert max(gaps) - min(gaps) <= 1


def test_long_runs_are_not_left_alone_for_long() -> None:
    assert max(later - earlier for earlier, later in pairwise(steps_checked(123_456, 64))) <= 1000
    assert max(later - earlier for earlier, later in pairwise(seconds_checked(600, 7))) <= 307


def test_a_run_of_few_images_has_few_checks_but_one_at_its_end() -> None:
    assert steps_checked(12, 8) == [12]
    assert steps_checked(100, 32) == [10, 50, 100]


@pytest.mark.parametrize("minutes", [2, 7, 10, 45, 90])
@pytest.mark.parametrize("step_seconds", [0.05, 0.34, 4])
def test_a_run_by_the_clock_has_ten_checks_the_first_within_a_minute(
    minutes: float, step_seconds: float
) -> None:
    found = seconds_checked(minutes, step_seconds)
    assert len(found) >= 10
    assert found[0] <= 60
    assert found[-1] == 60 * minutes


def test_shorter_runs_by_the_clock_have_what_fits() -> None:
    assert seconds_checked(0.03, 0.1) == [pytest.approx(1.8)]
    assert len(seconds_checked(1, 0.1)) == 6


@pytest.mark.parametrize(("seconds_each", "expected"), [(1e-4, 512), (0.01, 150), (0.02, 75), (1.0, 64)])
def test_a_slow_machine_watches_fewer_images(seconds_each: float, expected: int) -> None:
    """Ten minutes: twelve times the images of a check (one for the untrained encoder) in 18 seconds, if 64 can be."""
    checks = Checks.of_minutes(10)
    assert checks.num_images(share=HEALTH_SHARE, least=64, most=512, seconds_each=seconds_each) == expected
    assert expected == 64 or 12 * expected * seconds_each <= 0.03 * 600


@pytest.mark.parametrize(("length", "expected"), [(100, 64), (500, 64), (1000, 114), (10_000, 512)])
def test_by_steps_what_is_watched_follows_from_steps_and_batch_alone(length: int, expected: int) -> None:
    checks = Checks.of_steps(length, batch_size=64)
    for seconds_each in (0.0, 1.0):
        found = checks.num_images(share=HEALTH_SHARE, least=64, most=512, seconds_each=seconds_each)
        assert found == expected
