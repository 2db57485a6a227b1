"""What a terminal or a pipe cannot show is replaced; it never ends the work."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from make_images import jpeg


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_names_that_the_output_cannot_hold(tmp_path: Path, encoding: str) -> None:
    for name in ("犬", "кот"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(jpeg())
    path = os.pathsep.join(entry for entry in sys.path if entry)
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "PYTHONPATH": path}
    for arguments, code in ((["scan", str(tmp_path)], 0), (["scan", str(tmp_path / "нет")], 3)):
        done = subprocess.run(
            [sys.executable, "-m", "openjepa", *arguments], env=environment, capture_output=True, check=False
        )
        assert done.returncode == code, done.stderr
        assert b"Traceback" not in done.stderr
        assert code or b"?? 1" in done.stdout or b"? 1" in done.stdout
