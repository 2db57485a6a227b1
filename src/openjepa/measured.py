"""What was measured on this machine, kept: the same command makes the same choices, and measures them once.

$OPENJEPA_CACHE/machine.json, or machine.json in the user's cache folder; remove it to measure again
"""

import json
import logging
import os
import platform
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import platformdirs
import torch

from openjepa.writing import write_text

_log = logging.getLogger(__name__)
_Value = TypeVar("_Value", bool, float, str, list[float])
_INSTRUCTIONS = ("ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "ATEN_CPU_CAPABILITY")
"""Environment variables that forbid a processor some of its instructions: with them it is another machine."""


def machine_file() -> Path:
    """Where measurements are kept."""
    folder = os.environ.get("OPENJEPA_CACHE") or platformdirs.user_cache_path("openjepa", appauthor=False)
    return Path(folder) / "machine.json"


def remembered(what: str, facts: Mapping[str, Any], measure: Callable[[], _Value]) -> _Value:
    """A measurement of this machine: the one made earlier, or one made now and kept where that is possible.

    Args:
        what: What is measured.
        facts: What it depends on beside this program, processor, PyTorch and instruction set: JSON values.
        measure: Called where it was not measured before.
    """
    machine = [
        version("openjepa"),
        processor(),
        torch.__version__,
        *(os.environ.get(name, "") for name in _INSTRUCTIONS),
    ]
    key = json.dumps([what, machine, dict(facts)], sort_keys=True)
    kept = _read()
    if key in kept:
        _log.debug("%s: measured earlier; remove %s to measure again", what, machine_file())
        return kept[key]  # JSON keeps booleans, numbers, texts and lists as they are
    value = measure()
    _write({**_read(), key: value})
    return value


def processor() -> str:
    """The processor's model."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _read() -> dict[str, Any]:
    try:
        kept = json.loads(machine_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none, or damaged: measured anew
        return {}
    return kept if isinstance(kept, dict) else {}


def _write(kept: Mapping[str, Any]) -> None:
    path = machine_file()
    try:
        write_text(path, json.dumps(kept, indent=1))
    except OSError as error:
        _log.warning("%s: what was measured is not kept: %s", path, error)
