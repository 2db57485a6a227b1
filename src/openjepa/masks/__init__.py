"""Masks: which patches of an image the context encoder sees, and which the predictor must fill in.

    sampler = make_masks("multiblock", grid=(8, 8))
    masks = sampler(seed=0, step=7, epochs=epochs, samples=samples)  # .context (B, C, Nc), .target (B, M, Nt)

`multiblock` is what the I-JEPA paper describes (arXiv 2301.08243, section 3): four target blocks of
15-20 % of the image, and a context block of 85-100 % less the targets. `reference` is what the
authors' code does instead. `rasterized`, `block` and `random` are the paper's ablation (table 6).

No sampler has a state: sizes, which a batch shares, are a function of (seed, step), and positions
of (seed, epoch, sample). All images of a batch are drawn at once, in NumPy.
"""

from dataclasses import fields
from difflib import get_close_matches
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from openjepa.errors import UserError
from openjepa.masks.ablations import Block, Random, Rasterized
from openjepa.masks.blocks import Masks, MaskSampler
from openjepa.masks.multiblock import MultiBlock
from openjepa.masks.reference import Reference

__all__ = ["Block", "MaskSampler", "Masks", "MultiBlock", "Random", "Rasterized", "Reference", "make_masks"]

_SAMPLERS = {
    "multiblock": MultiBlock,
    "reference": Reference,
    "rasterized": Rasterized,
    "block": Block,
    "random": Random,
}


def make_masks(name: str, *, grid: tuple[int, int], **settings: Any) -> MaskSampler:
    """The mask sampler of this name.

    Args:
        name: `multiblock`, `reference`, `rasterized`, `block` or `random`.
        grid: Patches (down, across).
        settings: Fields of that sampler's class, as a configuration file holds them: a list will do for
            a tuple, and a number for its text.

    Raises:
        UserError: An unknown name or setting, a value of the wrong type, or settings that this grid
            cannot meet.
    """
    _check_known("masks.name", name, list(_SAMPLERS))
    sampler = _SAMPLERS[name]
    types = get_type_hints(sampler)
    values = {}
    for key, value in settings.items():
        _check_known(
            f"setting of masks.name={name}", key, [f.name for f in fields(sampler) if f.name != "grid"]
        )
        try:
            values[key] = TypeAdapter(types[key]).validate_python(value)
        except ValidationError as error:
            raise UserError(f"masks.{key}={value!r}: {error.errors()[0]['msg']}") from None
    made: MaskSampler = sampler(grid, **values)
    return made


def _check_known(what: str, value: str, allowed: list[str]) -> None:
    if value not in allowed:
        near = get_close_matches(value, allowed, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"unknown {what}: {value!r}; {hint}allowed: {', '.join(allowed) or 'none'}")
