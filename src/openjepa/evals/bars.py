"""How far an evaluation is, told to whoever shows it: `openjepa.progress.ImageProgress` is such a bar."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Bar(Protocol):
    """Images done so far."""

    def advance(self, num: int) -> None:
        """So many more are done."""


Bars = Callable[[int], AbstractContextManager[Bar]]
"""A bar for so many images, shown as long as the context lasts."""


class _Nobody:
    def advance(self, num: int) -> None: ...


def no_bar(total: int) -> AbstractContextManager[Bar]:
    """Nothing is shown."""
    return nullcontext(_Nobody())
