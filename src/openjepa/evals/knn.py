"""Weighted k-nearest-neighbour classification of frozen features: no training, nothing to tune.

The protocol of Wu et al. 2018 (arXiv 1805.01978, section 3.4) that DINO made customary: cosine
similarity s to every training image, the k = 20 nearest vote for their class with weight exp(s / 0.07).
"""

import logging

import torch
from torch import Tensor
from torch.nn import functional as F

from openjepa.evals.features import Result, accuracy

log = logging.getLogger(__name__)

_SIMILARITIES = 2**25  # elements of one block of the similarity matrix: 128 MiB in float32


@torch.no_grad()
def knn(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> Result:
    """Classifies each test image by the vote of its k nearest training images.

    Args:
        train_x: Training features (N, D).
        train_y: Training labels (N,) int64, from 0.
        test_x: Test features (T, D).
        test_y: Test labels (T,); used for the accuracy alone.
        k: Number of neighbours; with fewer training images all of them vote, with a warning.
        temperature: A neighbour with similarity s counts exp(s / temperature).

    Returns:
        Accuracy, predictions (T,) and settings. Equal votes go to the lower class.
    """
    if k > len(train_x):
        log.warning("k-NN: k=%d, but there are only %d training images: all of them vote", k, len(train_x))
        k = len(train_x)
    bank = F.normalize(train_x.float(), dim=1).T  # (D, N)
    num_classes = int(train_y.max()) + 1
    predictions = []
    for queries in F.normalize(test_x.float(), dim=1).split(max(1, _SIMILARITIES // len(train_x))):
        similarity, index = (queries @ bank).topk(k, dim=1)  # (b, k)
        # Dividing all votes of an image by the largest leaves the winner as it is and cannot overflow.
        weight = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = weight.new_zeros(len(queries), num_classes).scatter_add_(1, train_y[index], weight)
        predictions.append(votes.argmax(dim=1))
    predicted = torch.cat(predictions)
    return Result(accuracy(predicted, test_y), predicted, {"k": k, "temperature": temperature})
