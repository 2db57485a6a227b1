"""Files that are there whole or not at all: written beside their place, then moved to it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A file to write to, which takes the place of ``path`` at the end of the block; its folder is made.

    Where the block raises, what was at ``path`` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a whole text file in UTF-8; a reader sees the old one or the new one."""
    with written_whole(path) as draft:
        draft.write_text(text, encoding="utf-8")
