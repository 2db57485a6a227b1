"""The lines of a run's metrics.jsonl, whatever a crash or a full disk left among them."""

import json
import logging
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The lines that are whole, in order; others are skipped with a warning.

    Raises:
        OSError: The file cannot be read.
    """
    rows, broken = [], 0
    for line in path.read_bytes().split(b"\n"):
        try:
            row = json.loads(line)
        except ValueError:  # half a line, or the zeros that a power cut leaves
            broken += bool(line)
            continue
        if isinstance(row, dict) and "step" in row:
            rows.append(row)
        else:
            broken += 1
    if broken:
        _log.warning("%s: %d broken lines are left out", path, broken)
    return rows
