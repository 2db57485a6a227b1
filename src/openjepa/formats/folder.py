"""A folder of an export: there whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openjepa.errors import UserError
from openjepa.overwrite import Sources, check_draft, check_export, mark


@contextmanager
def whole_folder(out: Path, *, overwrite: bool = False, sources: Sources | None = None) -> Iterator[Path]:
    """A draft beside ``out`` to write into, which takes its name when the block has ended without an error.

    What a killed process left is removed.

    Args:
        out: The folder.
        overwrite: Replace an export that is there (`openjepa.overwrite`).
        sources: What the command reads, by option.

    Raises:
        UserError: Something is there that may not be replaced, or it can't be written.
    """
    if overwrite:
        check_export(out, sources=sources or {})
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: exists; give --overwrite, or another folder")
    draft = out.with_name(f"{out.name}.partial")
    check_draft(draft)
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        mark(draft, "draft")
        yield draft
        mark(draft, "export", files=(entry.name for entry in draft.iterdir()))
        if overwrite and out.exists():
            check_export(out, sources=sources or {})  # again: it may have changed in the meantime
            shutil.rmtree(out)
        elif out.exists():
            out.rmdir()
        os.replace(draft, out)
    except OSError as error:
        raise UserError(f"--out {out}: can't be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
