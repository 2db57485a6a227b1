"""The machine: device, precision, threads and attention path, chosen by measurement once a run and then kept.

A resumed run takes what the run before it wrote into its configuration, so that both compute the same.
"""

import math
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from openjepa.config import RuntimeConfig
from openjepa.errors import UserError
from openjepa.measured import remembered
from openjepa.models.transformer import Attention, AttentionPath

_BF16_TURNS = 10
_BF16_GAIN = 1.3  # bfloat16 must win by this much on a bare product: casts around it cost the rest


def resolve_runtime(runtime: RuntimeConfig, *, shapes: list[tuple[int, int, int, int]]) -> RuntimeConfig:
    """Replace every ``auto`` by what this machine does best.

    Args:
        runtime: The settings asked for.
        shapes: (batch, tokens, width, heads) of each attention layer that is trained.

    Returns:
        Settings without ``auto`` or None.

    Raises:
        UserError: A device or precision that this machine does not have.
    """
    device = resolve_device(runtime.device)
    threads = runtime.threads or max(1, available_cores() // runtime.devices)  # of each process
    torch.set_num_threads(threads)  # measured with as many as the run will use
    precision = runtime.precision
    if precision == "auto":
        precision = "bfloat16" if bfloat16_pays(device) else "float32"
    attention: str = runtime.attention
    if attention == "auto":
        attention = fastest_attention(
            shapes, device, torch.bfloat16 if precision == "bfloat16" else torch.float32
        )
    return runtime.model_copy(
        update={"device": device, "threads": threads, "precision": precision, "attention": attention}
    )


def resolved_attention(runtime: RuntimeConfig) -> AttentionPath:
    """The attention path of settings that were resolved."""
    assert runtime.attention != "auto", "resolve_runtime comes first"
    return runtime.attention


def available_cores() -> int:
    """CPU cores that this process may use: those it is held to, fewer where a container has a quota of their time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _core_quota(Path("/sys/fs/cgroup"))
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def _core_quota(folder: Path) -> float | None:
    """Cores' worth of time that a control group allows, by version 2 or 1 of Linux's; None where it does not say."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = " ".join((folder / name).read_text(encoding="ascii") for name in names).split()
            if float(quota) > 0 and float(period) > 0:  # version 1 has -1 for no limit
                return float(quota) / float(period)
        except (OSError, ValueError):  # not there, or "max"
            continue
    return None


def fastest_attention(
    shapes: list[tuple[int, int, int, int]], device: str, dtype: torch.dtype, *, repeats: int = 5
) -> AttentionPath:
    """The attention path whose two passes over these shapes take less time, measured once a machine."""
    facts = {
        "shapes": [list(shape) for shape in shapes], "device": device, "dtype": str(dtype),
        "threads": torch.get_num_threads(),
    }  # fmt: skip
    found = remembered("attention", facts, lambda: str(_measured_attention(shapes, device, dtype, repeats)))
    return "matmul" if found == "matmul" else "fused"


def _measured_attention(
    shapes: list[tuple[int, int, int, int]], device: str, dtype: torch.dtype, repeats: int
) -> AttentionPath:
    seconds: dict[AttentionPath, float] = {}
    paths: tuple[AttentionPath, AttentionPath] = ("matmul", "fused")
    for path in paths:
        seconds[path] = 0.0
        for batch, tokens, width, heads in shapes:
            layer = Attention(width, heads).to(device, dtype)
            layer.path = path
            # A small batch keeps the choice quick; the cost of both paths is linear in it.
            inputs = torch.ones(min(batch, 64), tokens, width, device=device, dtype=dtype, requires_grad=True)
            seconds[path] += shortest_seconds(lambda: layer(inputs).sum().backward(), device, repeats)  # noqa: B023
    return min(paths, key=lambda path: seconds[path])


def shortest_seconds(work: Callable[[], object], device: str, repeats: int) -> float:
    """Shortest duration of ``work`` after one warm-up, waiting for the device: what else a machine does only adds."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def environment() -> dict[str, Any]:
    """What a run was made with, for environment.json."""
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "openjepa": version("openjepa"),
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": available_cores(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def resolve_device(wanted: str, *, option: str = "runtime.device") -> str:
    """The device to compute on: `cuda`, `mps` or `cpu`, for `auto` the first of them that is here.

    Raises:
        UserError: It is not here; the message names the option.
    """
    have = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wanted == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if have[name])
    if not have.get(wanted):
        present = ", ".join(name for name, there in have.items() if there)
        raise UserError(f"{option}: {wanted!r} is not available here; available: {present}, or auto")
    return wanted


def bfloat16_pays(device: str) -> bool:
    """Whether a product in bfloat16 is clearly faster; on CPUs without the instructions it is many times slower."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device == "mps":
        return False
    return remembered("bfloat16 pays", {}, _bfloat16_wins)


def _bfloat16_wins() -> bool:
    """The measurement, on the CPU."""
    seconds = dict.fromkeys((torch.float32, torch.bfloat16), math.inf)
    threads = torch.get_num_threads()
    # One thread, both in turns: whatever else is running must not decide. (Two threads wait for each other, and one
    # that shares its core hides what the instructions gain.)
    torch.set_num_threads(1)
    for _ in range(_BF16_TURNS):
        for dtype in seconds:
            matrix = torch.ones(256, 256, dtype=dtype)
            seconds[dtype] = min(seconds[dtype], shortest_seconds(lambda: matrix @ matrix, "cpu", 10))  # noqa: B023
    torch.set_num_threads(threads)
    return seconds[torch.float32] > _BF16_GAIN * seconds[torch.bfloat16]
