"""What a person sees while a run trains: a bar with images/s and time left, and the health in words."""

import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

_PLAIN_SECONDS = 30.0  # without a terminal, a plain line this often


class TrainingProgress:
    """A rich progress bar on a terminal; plain lines elsewhere. Fed with the rows of metrics.jsonl."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(file=sys.stderr)
        self._bar = Progress(
            TextColumn("{task.fields[position]}"),
            BarColumn(),
            TextColumn("{task.percentage:>5.1f} %"),
            TextColumn("{task.fields[rate]} images/s"),
            TextColumn("loss {task.fields[loss]}"),
            TimeElapsedColumn(),
            TextColumn("left {task.fields[left]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task("train", total=1.0, position="starting", rate="–", loss="–", left="–")
        self._first: tuple[float, float] | None = None
        self._last_line = 0.0

    def __enter__(self) -> "TrainingProgress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, row: dict[str, Any]) -> None:
        """Show a row of metrics."""
        shown: dict[str, Any] = {
            "position": f"step {row['step']:,}",
            "rate": f"{row['images_per_second']:,.0f}",
            "loss": f"{row['loss']:.4f}",
            "left": self._left(row),
        }
        self._bar.update(self._task, completed=row["progress"], **shown)
        now = time.monotonic()
        if not self.console.is_terminal and (now - self._last_line > _PLAIN_SECONDS or row["progress"] >= 1):
            self._last_line = now
            self.say(
                f"{shown['position']} · {row['progress']:.1%} · {shown['rate']} images/s · loss {shown['loss']} · "
                f"left {shown['left']}"
            )

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)

    def _left(self, row: dict[str, Any]) -> str:
        """Time left, from the speed since this process began."""
        position, seconds = row["progress"], row["seconds"]
        if self._first is None:
            self._first = (position, seconds)
        done, spent = position - self._first[0], seconds - self._first[1]
        if done <= 0:
            return "–"
        left = int(spent / done * max(0.0, 1 - position))
        return f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}"
