"""A run's folder: its lock, configuration, environment, metrics and log.

What lies in it:

    DIR/config.yaml · environment.json · metrics.jsonl · train.log · tensorboard/ · checkpoints/ · bad_files.jsonl
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from openjepa.config import Config
from openjepa.errors import UserError
from openjepa.metrics import read_rows
from openjepa.overwrite import is_run, mark, remove_run
from openjepa.runtime import environment
from openjepa.settings import dump_config
from openjepa.writing import write_text

_LOCK = ".lock"


class RunFolder:
    """The only writer of a folder; a context manager that holds its lock (which a kill releases).

    Args:
        path: The folder; made if missing.
        resume: Go on with what is there.
        overwrite: Remove what an earlier run wrote there (`openjepa.overwrite`).

    Raises:
        UserError: The folder is not empty and neither was asked for, holds no run that could be overwritten, or another
            process writes to it.
    """

    def __init__(self, path: Path, *, resume: bool = False, overwrite: bool = False) -> None:
        self.path = path.absolute()
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--out {self.path}: is a file, expected a folder")
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.path / _LOCK, timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            raise UserError(
                f"--out {self.path}: another process is writing to this folder; wait or use another"
            ) from None
        content = sorted(entry for entry in self.path.iterdir() if entry.name != _LOCK)
        if overwrite:
            remove_run(self.path)
        elif content and not resume:
            self._lock.release()
            raise UserError(
                f"--out {self.path}: the folder is not empty ({content[0].name}, …): go on with --resume, "
                "start afresh with --overwrite, or name another folder"
            )
        if overwrite or not content or is_run(self.path):
            mark(self.path, "run")
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self.bad_files = self.path / "bad_files.jsonl"
        self._log_handler: logging.Handler | None = None
        self._events: Any = None

    def __enter__(self) -> "RunFolder":
        self._log_handler = logging.FileHandler(
            self.path / "train.log", encoding="utf-8", errors="backslashreplace"
        )
        self._log_handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logging.getLogger("openjepa").addHandler(self._log_handler)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._events is not None:
            self._events.close()
        if self._log_handler is not None:
            logging.getLogger("openjepa").removeHandler(self._log_handler)
            self._log_handler.close()
        self._lock.release()

    def describe(self, config: Config, **facts: Any) -> None:
        """Write the resolved configuration, and what the run is made with and of."""
        write_text(self.path / "config.yaml", dump_config(config))
        write_text(self.path / "environment.json", json.dumps({**environment(), **facts}, indent=1))

    def cut_metrics(self, step: int) -> None:
        """Drop the lines after a step, and those that a kill or a crash broke."""
        if not self.metrics.exists():
            return
        kept = [json.dumps(row) + "\n" for row in read_rows(self.metrics) if row["step"] <= step]
        write_text(self.metrics, "".join(kept))

    def write(self, row: Mapping[str, Any], *, tensorboard: bool) -> None:
        """Append a line of metrics."""
        with self.metrics.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(dict(row)) + "\n")
        if not tensorboard:
            return
        if self._events is None:
            from torch.utils.tensorboard import SummaryWriter  # half a second: only when used

            self._events = SummaryWriter(str(self.path / "tensorboard"), purge_step=row["step"])
        for name, value in row.items():
            if name != "step":
                self._events.add_scalar(name, value, row["step"])
