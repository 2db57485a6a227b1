"""Images that cannot be used: counted by kind, listed once, and the end of a run when they are many."""

import json
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from openjepa.errors import DataError


class BadFile(NamedTuple):
    """An image that could not be used, and why: a kind of fault, then perhaps ": " and details."""

    path: str
    reason: str

    @property
    def kind(self) -> str:
        """The reason without its details."""
        return self.reason.partition(":")[0]


class BadFiles:
    """The bad images that a run meets.

    Args:
        log: The list, ``{"path", "reason"}`` a line; what it holds already is kept. None: no list.
        max_fraction: The run ends when more than this fraction of the images read are bad ...
        after: ... but not before this many have been read.
        option: What the user changes ``max_fraction`` with, for the message.

    Attributes:
        kinds: How often each kind of fault was met.
    """

    def __init__(
        self,
        log: Path | None = None,
        *,
        max_fraction: float = 0.01,
        after: int = 100,
        option: str = "data.max_bad_fraction",
    ) -> None:
        self.kinds: Counter[str] = Counter()
        self._log = log
        self._max_fraction = max_fraction
        self._after = after
        self._option = option
        self._num_read = 0
        self._listed: set[str] = set()
        if log is not None and log.exists():
            whole_lines, newline, rest = log.read_bytes().rpartition(b"\n")
            if rest:  # a kill in the middle of a line
                log.write_bytes(whole_lines + newline)
            self._listed = {json.loads(line)["path"] for line in whole_lines.splitlines()}

    def add(self, *, num_good: int, bad: Collection[BadFile]) -> None:
        """Count the images of a batch, and list those not listed yet.

        Raises:
            DataError: Too many images are bad.
        """
        self._num_read += num_good + len(bad)
        self.kinds.update(file.kind for file in bad)
        self.note(bad)
        num_bad = sum(self.kinds.values())
        if self._num_read >= self._after and num_bad > self._max_fraction * self._num_read:
            raise DataError(
                f"{num_bad} of the {self._num_read} images read are bad: {count_kinds(self.kinds)}. That is "
                f"{num_bad / self._num_read:.1%}, and {self._option} allows {self._max_fraction:.1%}. "
                + ("" if self._log is None else f"They are listed in {self._log}. ")
                + f"Repair or remove them, or raise {self._option}."
            )

    def note(self, bad: Iterable[BadFile]) -> None:
        """List what is not listed yet, without counting it: folders that cannot be read, parts of tars."""
        new = {file.path: file for file in bad if file.path not in self._listed}
        self._listed |= new.keys()
        if self._log is not None and new:
            with self._log.open("a", encoding="ascii") as log:  # json escapes all that is not
                log.writelines(json.dumps(file._asdict()) + "\n" for file in new.values())


def count_kinds(kinds: Counter[str]) -> str:
    """The three most common kinds of fault with their numbers, for a message."""
    return ", ".join(f"{kind} ({count})" for kind, count in kinds.most_common(3))
