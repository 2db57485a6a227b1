"""`openjepa scan DATA`: what is in there, what is broken, what preset fits.

openjepa scan photos --test photos-held-out
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from openjepa.apps.plan import in_words
from openjepa.data.scenes.source import TARGETS
from openjepa.data.sources import Source, open_source
from openjepa.data.statistics import shared_channels
from openjepa.data.survey import Numbers, Survey, look_at, overlap
from openjepa.presets import Images, choose_preset
from openjepa.runtime import resolve_device
from openjepa.settings import load_config

_SHOWN = 8
_LITTLE = 0.3  # of the scale: less than that is dark throughout
_OUT = 0.01  # of the scale: more than that beyond it is worth a word
_SPLITS = ("train", "training", "test", "testing", "val", "valid", "validation")


def scan(data: str | Path, *, test: str | Path | None = None, channels: int = 3) -> str:
    """Look at every image of a data set; print and return what was found.

    Args:
        data: What `pretrain` takes.
        test: Other images, looked for in the first; by default the test split of a built-in.
        channels: Channels that the images are decoded to.

    Raises:
        DataError: The data cannot be opened.
    """
    source = open_source(data)
    built_in = source.name.endswith(":train")
    other = open_source(test or data, split="test") if test or built_in else None
    survey = _look(source, channels)
    lines = [*_contents(survey), *_values(survey), *_classes(source), *_copies(survey)]
    lines += _between_folders(survey)
    if other is not None:
        lines += _overlap(survey, _look(other, channels))
    if survey.sizes:
        accelerated = resolve_device("auto") != "cpu"
        images = Images(
            side=int(median(survey.shorter_sides)),
            number=len(source),
            channels=channels if channels != 3 else shared_channels(survey.modes),
        )
        choice = choose_preset(images, accelerated=accelerated)
        words = in_words(choice, load_config(choice.settings))
        lines.append(
            f"preset      {words} (openjepa pretrain DATA --max-minutes M --dry-run tells what time buys)"
        )
    text = "\n".join(lines)
    Console().print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)
    return text


def _look(source: Source, channels: int) -> Survey:
    console = Console(stderr=True)

    def shown(work: Iterable[None]) -> Iterable[None]:
        return track(work, f"Reading {source.name}", -(-len(source) // 64), console=console, transient=True)

    return look_at(source, channels=channels, progress=shown)


def _contents(survey: Survey) -> list[str]:
    source = survey.source
    lines = [
        f"data        {source.name}: {len(source):,} images",
        f"formats     {_counts(survey.formats)}",
        f"modes       {_counts(survey.modes)}",
    ]
    if sides := survey.shorter_sides:
        sizes = Counter({f"{width}×{height}": count for (width, height), count in survey.sizes.items()})
        spread = f"shorter side {sides[0]} to {sides[-1]}, median {median(sides):g} px"
        lines.append(f"sizes       {_counts(sizes)}; {spread}")
    if source.unread:
        lines.append(f"left out    {source.unread}")
    if not survey.broken:
        return [*lines, "broken      none"]
    kinds = Counter(bad.kind for bad in survey.broken)
    lines.append(f"broken      {len(survey.broken):,}: {_counts(kinds)}")
    lines += [f"            {bad.path}: {bad.reason}" for bad in survey.broken[:_SHOWN]]
    return lines + _more(survey.broken)


def _values(survey: Survey) -> list[str]:
    """For each type of numbers wider than 8 bits: where they lie, what is taken for black and white, what is odd."""
    lines = []
    by_type: dict[str, dict[int, Numbers]] = defaultdict(dict)
    for index, numbers in survey.numbers.items():
        by_type[numbers.type][index] = numbers
    for kind, images in by_type.items():
        low, high = min(one.low for one in images.values()), max(one.high for one in images.values())
        declared = next(iter(images.values())).white
        black, white = (0.0, declared) if declared is not None else survey.value_range or (low, high)
        lines.append(
            f"values      {kind} {len(images):,}: {low:.5g} to {high:.5g}, scaled so that {black:g} is black and "
            f"{white:g} is white (data.value_range sets another range)"
        )
        if high - black < _LITTLE * (white - black):
            lines.append(
                f"            they fill {(high - black) / (white - black):.1%} of that, so all are dark: of 12 bits, "
                "say, set data.value_range=[0,4095]"
            )
        span = white - black
        odd = [
            i for i, one in images.items() if one.low < black - _OUT * span or one.high > white + _OUT * span
        ]
        if odd:
            lines.append(
                f"            {len(odd):,} are scaled alike but reach beyond that range, and are clipped there:"
            )
            lines += [
                f"            {survey.source.path(i)}: {images[i].low:.5g} to {images[i].high:.5g}"
                for i in odd[:_SHOWN]
            ]
            lines += _more(odd)
    return lines


def _classes(source: Source) -> list[str]:
    """A line for each label of the source, with the accuracy of always saying its most frequent class."""
    if source.name.startswith("scenes:"):
        return [_class_line(name, open_source(source.name, target=name)) for name in TARGETS]
    return [_class_line("classes", source)] if source.labels is not None else ["classes     none: no labels"]


def _class_line(name: str, source: Source) -> str:
    assert source.labels is not None
    counts = np.bincount(source.labels[source.labels >= 0], minlength=len(source.classes))
    shown = Counter({source.classes[i]: int(count) for i, count in enumerate(counts) if count})
    share = counts.max(initial=0) / max(1, counts.sum())
    return f"{name:<11} {len(shown)}: {_counts(shown)}; the most frequent is {share:.1%}"


def _copies(survey: Survey) -> list[str]:
    groups = survey.copies()
    if not groups:
        return ["duplicates  none"]
    surplus = sum(len(group) - 1 for group in groups)
    path = survey.source.path
    lines = [f"duplicates  {surplus:,} with the pixels of another image"]
    lines += [f"            {' = '.join(path(i) for i in group[:4])}" for group in groups[:_SHOWN]]
    return lines + _more(groups)


def _between_folders(survey: Survey) -> list[str]:
    """Copies across first-level folders that are named like splits."""
    source = survey.source
    if source.labels is None or sum(name.lower() in _SPLITS for name in source.classes) < 2:
        return []
    crossing = [g for g in survey.copies() if len({int(source.labels[i]) for i in g}) > 1]
    lines = [f"overlap     {len(crossing):,} pictures in more than one of {', '.join(source.classes)}"]
    lines += [f"            {' = '.join(source.path(i) for i in group[:4])}" for group in crossing[:_SHOWN]]
    return lines + _more(crossing)


def _overlap(survey: Survey, other: Survey) -> list[str]:
    pairs = overlap(survey, other)
    one, two = survey.source, other.source
    lines = [f"overlap     {len(pairs):,} of {len(two):,} images of {two.name} are in {one.name} too"]
    lines += [f"            {one.path(i)} = {two.path(j)}" for i, j in pairs[:_SHOWN]]
    return lines + _more(pairs)


def _counts(counter: Counter[str]) -> str:
    common = [f"{name} {count:,}" for name, count in counter.most_common(_SHOWN + 2)]
    rest = len(counter) - len(common)
    return ", ".join(common) + (f", {rest:,} others" if rest else "")


def _more(found: Sequence[Any]) -> list[str]:
    return [f"            and {len(found) - _SHOWN:,} more"] if len(found) > _SHOWN else []
