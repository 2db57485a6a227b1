"""Lines of metrics that a crash broke."""

import logging
from pathlib import Path

import pytest

from openjepa.metrics import read_rows


def test_whole_lines_are_read_and_broken_ones_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + b"\0" * 40 + b'\n[1]\n{"step": 2}\n{"step": 3, "lo')
    with caplog.at_level(logging.WARNING, logger="openjepa"):
        assert read_rows(path) == [{"step": 1}, {"step": 2}]
    assert "3 broken lines" in caplog.text
    caplog.clear()
    path.write_bytes(b'{"step": 1}\n')
    assert read_rows(path) == [{"step": 1}]
    assert not caplog.text
