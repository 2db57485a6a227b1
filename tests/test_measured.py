"""Measurements of a machine: made once, kept by what they depend on, and made anew where the file is of no use."""

from pathlib import Path

import pytest

from openjepa.measured import machine_file, processor, remembered


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OPENJEPA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Stopwatch:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> float:
        self.calls += 1
        return 0.5 * self.calls


def test_what_was_measured_is_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Stopwatch()
    assert remembered("a step", {"threads": 1}, watch) == 0.5
    assert remembered("a step", {"threads": 1}, watch) == 0.5
    assert remembered("a step", {"threads": 2}, watch) == 1.0
    assert remembered("another", {"threads": 1}, watch) == 1.5
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")  # fewer instructions: another machine
    assert remembered("a step", {"threads": 1}, watch) == 2.0
    machine_file().unlink()
    assert remembered("a step", {"threads": 1}, watch) == 2.5
    assert remembered("yes or no", {}, lambda: True) is remembered("yes or no", {}, lambda: False) is True


def test_a_damaged_file_is_measured_over(folder: Path) -> None:
    watch = Stopwatch()
    for text in ("{ half", "[1, 2]"):
        folder.mkdir(exist_ok=True)
        machine_file().write_text(text)
        calls = watch.calls
        remembered("a step", {}, watch)
        remembered("a step", {}, watch)
        assert watch.calls == calls + 1


def test_a_folder_that_cannot_be_written_is_no_error(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder.write_text("a file in the way")
    watch = Stopwatch()
    assert [remembered("a step", {}, watch), remembered("a step", {}, watch)] == [0.5, 1.0]
    assert "what was measured is not kept" in caplog.text


def test_the_processor_has_a_name() -> None:
    assert processor()
