"""A folder of an export: there whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openjepa.errors import UserError


@contextmanager
def whole_folder(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A draft beside ``out`` to write into, which takes its name when the block has ended without an error.

    What a killed process left is removed.

    Args:
        out: The folder.
        overwrite: Replace what is there.

    Raises:
        UserError: Something is there, or it can't be written.
    """
    if out.exists() and not overwrite and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: exists; give --overwrite, or another folder")
    draft = out.with_name(f"{out.name}.partial")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        yield draft
        if out.is_dir():
            shutil.rmtree(out)
        else:
            out.unlink(missing_ok=True)
        os.replace(draft, out)
    except OSError as error:
        raise UserError(f"--out {out}: can't be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
