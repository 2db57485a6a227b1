"""Images that cannot be used: counted by kind, listed once, and the end of a run when they are many.

The fraction of bad images is looked at after every batch, so a threshold on the fraction itself would sooner or later
be crossed by luck: at a limit of 1 %, in a third of all passes over 20,000 images of which 0.5 % are bad. `too_many` is
a test that holds over all looks together (Ville's inequality, Robbins 1970).
"""

import json
import math
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from openjepa.errors import DataError

_ERROR = 1e-3
"""Most probability, over all looks, of stopping on images of which no more than the allowed fraction are bad."""
_ALTERNATIVES = 12


class BadImage(Exception):
    """What gives no image. Its text is the reason, one line: a kind, then ": " and details."""


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
        max_fraction: The run ends when it is certain that more than this fraction of the images are bad ...
        after: ... but not before this many have been read, unless more of at least so many are known to be bad.
        num_images: How many there are, where it is known: more different bad ones than allowed of these are certainty.
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
        num_images: int | None = None,
        option: str = "data.max_bad_fraction",
    ) -> None:
        self.kinds: Counter[str] = Counter()
        self._log = log
        self._max_fraction = max_fraction
        self._after = after
        self._num_images = num_images
        self._met: set[str] = set()
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
        if not bad and self._num_read - num_good >= self._after:
            return  # good images are no reason to stop
        self._met.update(file.path for file in bad)
        num_bad = sum(self.kinds.values())
        counted = self._num_images is not None and len(self._met) > self._max_fraction * self._num_images
        enough = self._num_read >= self._after or (counted and (self._num_images or 0) >= self._after)
        if enough and (counted or too_many(num_bad, self._num_read, allowed=self._max_fraction)):
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


def too_many(num_bad: int, num_read: int, *, allowed: float) -> bool:
    """Whether so many bad images prove that more than the allowed fraction are bad, whenever and how often it is asked.

    While no more than ``allowed`` are bad, the likelihood of what was read under a larger fraction p, over that under
    ``allowed``, is a non-negative supermartingale that starts at 1, and so is its mean over several p: the probability
    that it ever reaches 1 / α is at most α. Some p lie near ``allowed``, so that a small excess shows too, only later.

    Args:
        num_bad: Bad images so far.
        num_read: Images so far.
        allowed: Fraction of bad images that is no reason to stop, in [0, 1].
    """
    if allowed <= 0 or allowed >= 1:
        return allowed <= 0 < num_bad
    larger = (allowed + (1 - allowed) * 0.5**power for power in range(1, _ALTERNATIVES + 1))
    ratios = [
        num_bad * math.log(p / allowed) + (num_read - num_bad) * math.log((1 - p) / (1 - allowed))
        for p in larger
    ]
    most = max(ratios)
    mean = most + math.log(sum(math.exp(ratio - most) for ratio in ratios) / len(ratios))
    return mean >= -math.log(_ERROR)


def count_kinds(kinds: Counter[str]) -> str:
    """The three most common kinds of fault with their numbers, for a message."""
    return ", ".join(f"{kind} ({count})" for kind, count in kinds.most_common(3))
