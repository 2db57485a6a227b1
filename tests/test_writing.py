"""Files that are there whole or not at all."""

from pathlib import Path

import pytest

from openjepa.writing import write_text, written_whole


def test_a_file_is_written_with_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "result.json"
    write_text(path, "größer")
    assert path.read_text(encoding="utf-8") == "größer"
    write_text(path, "again")
    assert [file.name for file in path.parent.iterdir()] == ["result.json"]
    assert path.read_text() == "again"


def test_what_fails_half_way_leaves_the_old_file_and_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_text(path, "old")

    def half() -> None:
        with written_whole(path) as draft:
            draft.write_text("hal")
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        half()
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]
    assert path.read_text() == "old"
