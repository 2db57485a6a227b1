"""Cosine similarity among embeddings: nearest neighbours, near duplicates, outliers, and images to label first.

Shapes: N images, Q queries, D width, k neighbours. Embeddings are rows of unit length (`unit`).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

EXACT_UP_TO = 1_000_000
"""Images up to which all similarities are computed; beyond, faiss looks in a part of its cells, where installed."""
_BLOCK = 2**25  # elements of one block of similarities: 128 MiB


def unit(embeddings: Floats) -> Floats:
    """Rows divided by their length (N, D); what is zero stays zero."""
    length = np.linalg.norm(embeddings, axis=1, keepdims=True)
    rows: Floats = (embeddings / np.maximum(length, 1e-12)).astype(np.float32)
    return rows


def nearest(bank: Floats, queries: Floats, k: int) -> tuple[Floats, Ints]:
    """The k most similar images of each query, best first: similarities and places, both (Q, k).

    Args:
        bank: (N, D).
        queries: (Q, D).
        k: At most N.
    """
    if len(bank) > EXACT_UP_TO and (faiss := _import_faiss()) is not None:
        cells = 4 * int(len(bank) ** 0.5)
        index = faiss.index_factory(bank.shape[1], f"IVF{cells},Flat", faiss.METRIC_INNER_PRODUCT)
        index.train(bank[:: max(1, len(bank) // (64 * cells))])
        index.add(bank)
        index.nprobe = max(8, cells // 64)
        scores, places = index.search(queries, k)
        few = (places < 0).any(axis=1)  # its cells held fewer than k
        if few.any():
            scores[few], places[few] = _nearest_of_all(bank, queries[few], k)
        return scores, places
    return _nearest_of_all(bank, queries, k)


def _nearest_of_all(bank: Floats, queries: Floats, k: int) -> tuple[Floats, Ints]:
    """As `nearest`, every similarity computed."""
    found = [_best(queries[rows] @ bank.T, k) for rows in _blocks(len(queries), len(bank))]
    return np.concatenate([scores for scores, _ in found]), np.concatenate([places for _, places in found])


def _best(similarity: Floats, k: int) -> tuple[Floats, Ints]:
    """The k largest of each row, largest first; of equals the earlier place."""
    places = np.sort(np.argpartition(-similarity, k - 1, axis=1)[:, :k], axis=1)
    scores = np.take_along_axis(similarity, places, axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(places, order, axis=1)


def duplicates(bank: Floats, *, threshold: float) -> list[list[int]]:
    """Groups of two and more images, each as similar as ``threshold`` to another of its group; rising places."""
    parent = np.arange(len(bank))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = int(parent[place])
        return place

    for rows in _blocks(len(bank), len(bank)):
        found = np.argwhere(bank[rows] @ bank[rows.start :].T >= threshold) + rows.start
        for first, second in found[found[:, 0] < found[:, 1]].tolist():
            a, b = root(first), root(second)
            parent[max(a, b)] = min(a, b)
    groups: dict[int, list[int]] = {}
    for place in range(len(bank)):
        groups.setdefault(root(place), []).append(place)
    return [group for group in groups.values() if len(group) > 1]


def outliers(bank: Floats, *, k: int, neighbours: int = 10) -> tuple[Floats, Ints]:
    """The k images least like their nearest others: mean similarity to these, and places; oddest first, both (k,)."""
    others = min(neighbours, len(bank) - 1)
    likeness = np.ones(len(bank), np.float32)
    for rows in _blocks(len(bank), len(bank)) if others else ():
        similarity = bank[rows] @ bank.T
        similarity[np.arange(len(similarity)), np.arange(len(bank))[rows]] = -np.inf
        likeness[rows] = np.partition(similarity, -others, axis=1)[:, -others:].mean(axis=1)
    order = np.argsort(likeness, kind="stable")[:k]
    return likeness[order], order


def select(bank: Floats, num: int) -> Ints:
    """Images that stand for all, to label first: each is the one least like those before (farthest point).

    The first is the one nearest to the mean of all. No other ``num`` images bring the farthest image nearer than half
    as far as these do (Gonzalez 1985).

    Args:
        bank: (N, D).
        num: At most N.

    Returns:
        Places (num,) in the order of choice.
    """
    chosen = [int((bank @ bank.mean(axis=0)).argmax())]
    likeness = bank @ bank[chosen[0]]
    while len(chosen) < num:
        likeness[chosen] = np.inf
        chosen.append(int(likeness.argmin()))
        np.maximum(likeness, bank @ bank[chosen[-1]], out=likeness)
    return np.array(chosen)


def _blocks(num: int, width: int) -> Iterator[slice]:
    """Rows of a matrix so many columns wide, in parts that are small enough."""
    size = max(1, _BLOCK // max(width, 1))
    return (slice(start, min(start + size, num)) for start in range(0, num, size))


def _import_faiss() -> Any | None:
    try:
        import faiss
    except ImportError:
        return None
    return faiss
