"""When a run's features are checked and on how many images, from the length of the run.

Checks come at equal parts of a run, so that a short run on a slow machine is seen as often as a long one; how many
images each of them watches follows from what it may cost. For runs by steps or epochs both are pure functions of the
number of steps and the batch size: the same run has the same rows on every machine and after a resume.
"""

from dataclasses import dataclass

HEALTH_SHARE = 0.03
"""Of a run's time, what all health checks together may take."""
KNN_SHARE = 0.10
"""Of a run's time, what all measurements of the k-NN on labelled images together may take."""

_FEWEST = 10  # checks of a run of two minutes or more
_SECONDS_EACH = 12.0  # shorter runs by the clock have one check for so many seconds
_MOST_STEPS_APART = 1000
_MOST_SECONDS_APART = 300.0
_FIRST_STEPS = 10  # of runs by steps: the first check comes after so many
_FIRST_SHARE = 1 / 40  # of runs by the clock: the first check comes at this share of the budget ...
_FIRST_SECONDS = 45.0  # ... or after so many seconds, whichever is sooner
_MOST_COSTLY = 0.05  # of the images that a run by steps trains on: where even the fewest watched are more ...
_FEWEST_WATCHED = 64  # ... there are fewer checks
_COST = 1.4  # of an image in a check, over that of training on it: measured 1.1 to 1.35 (docs/log.md)


@dataclass(frozen=True)
class Checks:
    """When one run is checked; `Checks.of_steps` and `Checks.of_minutes` make it.

    Attributes:
        num: Checks at equal parts of the run, the last at its end.
        first: Progress at which one more comes before them; 1 for none.
        images: Images that the run trains on; None for runs by the clock.
        seconds: Seconds that the run takes; None for runs by steps.
    """

    num: int
    first: float
    images: int | None = None
    seconds: float | None = None

    @staticmethod
    def of_steps(length: int, *, batch_size: int) -> "Checks":
        """Of a run of ``length`` steps. Where it trains on few images, it has fewer checks."""
        affordable = int(_MOST_COSTLY * length * batch_size / _FEWEST_WATCHED)
        num = max(1, min(affordable, max(_FEWEST, -(-length // _MOST_STEPS_APART))))
        return Checks(num, min(1.0, _FIRST_STEPS / length) if num > 1 else 1.0, images=length * batch_size)

    @staticmethod
    def of_minutes(minutes: float) -> "Checks":
        """Of a run that ends by the clock."""
        seconds = 60 * minutes
        num = max(1, min(_FEWEST, int(seconds / _SECONDS_EACH)), int(-(-seconds // _MOST_SECONDS_APART)))
        first = min(_FIRST_SHARE, _FIRST_SECONDS / seconds) if num > 1 else 1.0
        return Checks(num, first, seconds=seconds)

    def due(self, before: float, now: float) -> bool:
        """Whether a check comes after a step that brought the run from one progress to another, both in [0, 1]."""
        return before < self.first <= now or int(self.num * before) < int(self.num * now)

    def num_images(self, *, share: float, least: int, most: int, seconds_each: float) -> int:
        """How many images each check may use.

        Args:
            share: Of the run's time, what all checks together may take.
            least: Fewer images say nothing.
            most: More say no more.
            seconds_each: Measured seconds of one image; used only where the run ends by the clock. Elsewhere an image
                is taken to cost 1.4 times as much as training on it.
        """
        if self.seconds is None:
            assert self.images is not None
            affordable = self.images / _COST
        else:
            affordable = self.seconds / max(seconds_each, 1e-9)
        each = int(share * affordable / (self.num + 2))  # the first one, and the untrained encoder's
        return min(most, max(least, each))
