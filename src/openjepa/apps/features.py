"""The encoder as a scikit-learn transformer: images in, features out, in a pipeline.

from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

model = make_pipeline(OpenJEPAFeatures("runs/photos"), LogisticRegression()).fit(paths, labels)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin

from openjepa.apps.embed import embed
from openjepa.data.decode import Picture
from openjepa.evals.features import pooled_size
from openjepa.hub import load


class OpenJEPAFeatures(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no annotations
    """Frozen features of images: the encoder's patches, pooled. Nothing is fitted.

    Args:
        checkpoint: What `openjepa.load` takes.
        encoder: `target`, as the paper, or `context`.
        pool: `mean`, `max`, `mean+max`, `grid2` or `grid3`, see `openjepa.embed`.
        device: `cuda`, `mps`, `cpu`, or `auto`.
        batch_size: Images a forward pass; None chooses.
        num_heads: Attention heads, where the checkpoint does not say.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        *,
        encoder: str = "target",
        pool: str = "mean",
        device: str = "auto",
        batch_size: int | None = None,
        num_heads: int | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.encoder = encoder
        self.pool = pool
        self.device = device
        self.batch_size = batch_size
        self.num_heads = num_heads

    def fit(self, X: Any, y: Any = None) -> "OpenJEPAFeatures":  # noqa: N803 (scikit-learn's names)
        """Load the encoder; the images are not looked at."""
        self.model_ = load(self.checkpoint, num_heads=self.num_heads)
        self.n_features_out_ = pooled_size(self.pool, self.model_.shape.embed_dim)
        return self

    def transform(
        self,
        X: Sequence[str | Path | Picture] | NDArray[Any],  # noqa: N803
    ) -> NDArray[np.float32]:
        """Features (N, D) of paths and pictures, or of arrays (N, H, W) or (N, H, W, C); see `Preprocess`.

        Raises:
            DataError: One of them can't be read, or has numbers on an unknown scale.
        """
        if not hasattr(self, "model_"):
            self.fit(X)
        found = embed(
            self.model_, list(X), encoder=self.encoder, pool=self.pool, device=self.device,
            batch_size=self.batch_size,
        )  # fmt: skip
        return found.numpy()

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.str_]:
        """`openjepa0` ….."""
        return np.array([f"openjepa{number}" for number in range(self.n_features_out_)])

    def __sklearn_is_fitted__(self) -> bool:
        """It needs no fit."""
        return True
