"""Workers: too little shared memory, and one that never answers, are errors in words; never a wait for ever."""

import shutil
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from openjepa.data import workers
from openjepa.data.workers import compute_ahead
from openjepa.errors import DataError

MEGABYTE = 10**6
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="shared memory is elsewhere")


class Usage(NamedTuple):
    """What `shutil.disk_usage` gives."""

    total: int
    used: int
    free: int


@pytest.fixture
def with_free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets how much shared memory is free, in bytes."""

    def put(free: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(free, 0, free))

    return put


@pytest.mark.parametrize(
    ("megabytes", "expected"),
    [(1000, (4, 2)), (92, (4, 2)), (80, (4, 1)), (52, (4, 1)), (50, (3, 1)), (22, (1, 1))],
)
def test_as_many_workers_as_fit(
    with_free: Callable[[int], None],
    megabytes: int,
    expected: tuple[int, int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with_free(megabytes * MEGABYTE)
    assert workers._that_fit(4, 10 * MEGABYTE) == expected
    assert ("has room for the batches of" in caplog.text) == (expected[0] < 4)


def test_no_room_is_an_error_that_names_the_way_out(with_free: Callable[[int], None]) -> None:
    with_free(20 * MEGABYTE)
    with pytest.raises(
        DataError, match=r"/dev/shm has 20\.0 MB free.*21\.0 MB.*--shm-size=1g.*data\.num_workers=0"
    ):
        compute_ahead(_never, range(3), num_workers=2, batch_bytes=10 * MEGABYTE)


def test_a_thread_needs_none(with_free: Callable[[int], None]) -> None:
    with_free(0)
    made: Any = compute_ahead(lambda step: step, range(3), num_workers=0, batch_bytes=MEGABYTE)  # type: ignore[arg-type,return-value]
    assert list(made) == [0, 1, 2]


def test_a_worker_that_hangs_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "HANG_SECONDS", 1)
    never: Any = time.sleep  # a step of so many seconds
    batches = compute_ahead(never, range(60, 62), num_workers=1, batch_bytes=1)
    with pytest.raises(DataError, match=r"has given nothing for 1 seconds"):
        next(batches)


def _never(_: int) -> Any:
    raise AssertionError
