"""How many cores a process may use."""

from pathlib import Path

import pytest

from openjepa import runtime
from openjepa.config import RuntimeConfig


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_the_quota_of_a_control_group_is_read(
    tmp_path: Path, files: dict[str, str], cores: float | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert runtime._core_quota(tmp_path) == cores


@pytest.mark.parametrize(("quota", "expected"), [(None, 8), (0.3, 1), (1.5, 2), (64.0, 8)])
def test_as_many_cores_as_the_quota_pays_for(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, expected: int
) -> None:
    monkeypatch.setattr(runtime.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(runtime, "_core_quota", lambda _: quota)
    assert runtime.available_cores() == expected


@pytest.mark.parametrize(
    ("devices", "asked", "expected"), [(1, None, 8), (3, None, 2), (16, None, 1), (2, 5, 5)]
)
def test_processes_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, devices: int, asked: int | None, expected: int
) -> None:
    set_to: list[int] = []
    monkeypatch.setattr(runtime, "available_cores", lambda: 8)
    monkeypatch.setattr(runtime.torch, "set_num_threads", set_to.append)
    wanted = RuntimeConfig(
        device="cpu", devices=devices, threads=asked, precision="float32", attention="matmul"
    )
    assert runtime.resolve_runtime(wanted, shapes=[]).threads == expected
    assert set_to == [expected]
