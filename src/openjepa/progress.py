"""What a person sees while a run trains or images are embedded: a bar with images/s and time left, or plain lines."""

import sys
import time
from types import TracebackType
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

_PLAIN_SECONDS = 30.0  # without a terminal, a plain line this often


_T = TypeVar("_T", bound="_Shown")  # typing.Self came with Python 3.11


class _Shown:
    """A bar that is shown as long as the context lasts, and lines above it."""

    console: Console
    _bar: Progress

    def __enter__(self: _T) -> _T:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)


class TrainingProgress(_Shown):
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

    def _left(self, row: dict[str, Any]) -> str:
        """Time left, from the speed since this process began."""
        position, seconds = row["progress"], row["seconds"]
        if self._first is None:
            self._first = (position, seconds)
        done, spent = position - self._first[0], seconds - self._first[1]
        if done <= 0:
            return "–"
        return _clock(spent / done * max(0.0, 1 - position))


class ImageProgress(_Shown):
    """So many of so many images: a rich progress bar on a terminal, plain lines elsewhere.

    Args:
        total: Images in all.
        done: How many of them an earlier process has done.
        console: Where it is shown; standard error by default.
        quiet: Show nothing.
    """

    def __init__(
        self, total: int, *, done: int = 0, console: Console | None = None, quiet: bool = False
    ) -> None:
        self.console = console or Console(file=sys.stderr, quiet=quiet)
        self._total, self._first, self._done = total, done, done
        self._bar = Progress(
            TextColumn("{task.completed:,} of {task.total:,} images"),
            BarColumn(),
            TextColumn("{task.percentage:>5.1f} %"),
            TextColumn("{task.fields[rate]} images/s"),
            TimeElapsedColumn(),
            TextColumn("left {task.fields[left]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task("images", total=total, completed=done, rate="–", left="–")
        self._start = self._last_line = time.monotonic()

    def advance(self, num: int) -> None:
        """Show that so many more images are done."""
        self.update(self._done + num)

    def update(self, done: int) -> None:
        """Show that ``done`` images of all are done."""
        self._done, now = done, time.monotonic()
        rate = (done - self._first) / max(now - self._start, 1e-9)
        left = _clock((self._total - done) / rate) if rate else "–"
        self._bar.update(self._task, completed=done, rate=f"{rate:,.1f}", left=left)
        if not self.console.is_terminal and now - self._last_line > _PLAIN_SECONDS:
            self._last_line = now
            self.say(f"{done:,} of {self._total:,} images · {rate:,.1f} images/s · left {left}")


def _clock(seconds: float) -> str:
    left = int(seconds)
    return f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}"
