"""The shape of an I-JEPA: every number that its tensors depend on, and nothing else."""

from dataclasses import asdict, dataclass
from difflib import get_close_matches
from typing import Any

import torch

from openjepa.config import Config
from openjepa.errors import UserError
from openjepa.models.predictor import Predictor
from openjepa.models.vit import SIZES, VisionTransformer


@dataclass(frozen=True)
class Architecture:
    """Sizes of encoder and predictor; lengths in pixels are (height, width)."""

    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    in_channels: int
    embed_dim: int
    depth: int
    num_heads: int
    mlp_ratio: float
    predictor_dim: int
    predictor_depth: int
    predictor_heads: int
    shared_context: bool = False

    def __post_init__(self) -> None:
        for name, heads, width in (
            ("model.num_heads", self.num_heads, self.embed_dim),
            ("model.predictor_heads", self.predictor_heads, self.predictor_dim),
        ):
            if width % heads:
                divisors = [number for number in range(1, width + 1) if width % number == 0]
                nearest = min(divisors, key=lambda number: abs(number - heads))
                raise UserError(
                    f"{name}: {heads} heads do not divide width {width}; nearest that do: {nearest}"
                )
        for name, width in (("model.embed_dim", self.embed_dim), ("model.predictor_dim", self.predictor_dim)):
            if width % 4:
                raise UserError(
                    f"{name}: {width} is not a multiple of 4; nearest: {max(4, round(width / 4) * 4)}"
                )

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches."""
        return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]

    def build(self, *, seed: int, predicted_dim: int | None = None) -> tuple[VisionTransformer, Predictor]:
        """A new encoder and predictor, weights drawn from the seed (the global generator is left as it was).

        Args:
            seed: Of the weights.
            predicted_dim: Numbers that the predictor predicts of a patch; by default the encoder's width.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder = VisionTransformer(
                self.image_size,
                self.patch_size,
                in_channels=self.in_channels,
                embed_dim=self.embed_dim,
                depth=self.depth,
                num_heads=self.num_heads,
                mlp_ratio=self.mlp_ratio,
            )
            predictor = Predictor(
                self.grid,
                embed_dim=self.embed_dim,
                predictor_dim=self.predictor_dim,
                depth=self.predictor_depth,
                num_heads=self.predictor_heads,
                shared_context=self.shared_context,
                predicted_dim=predicted_dim,
            )
        return encoder, predictor

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def architecture_of(config: Config) -> Architecture:
    """The architecture that a configuration describes: its named size, with the fields that override it.

    Raises:
        UserError: An unknown model name, or heads that do not divide a width.
    """
    model = config.model
    if model.name not in SIZES:
        close = get_close_matches(model.name, SIZES, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(f"model.name: {model.name!r} is unknown; {hint}Known: {', '.join(SIZES)}")
    size = SIZES[model.name]
    num_heads = model.num_heads or size.num_heads
    return Architecture(
        image_size=config.data.image_size,
        patch_size=model.patch_size,
        in_channels=config.data.channels,
        embed_dim=model.embed_dim or size.embed_dim,
        depth=model.depth or size.depth,
        num_heads=num_heads,
        mlp_ratio=model.mlp_ratio or size.mlp_ratio,
        predictor_dim=model.predictor_dim or size.predictor_dim,
        predictor_depth=model.predictor_depth or size.predictor_depth,
        predictor_heads=model.predictor_heads or num_heads,
        shared_context=model.shared_context,
    )
