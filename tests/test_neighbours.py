"""Search among embeddings, against direct computations."""

import numpy as np
import pytest

from openjepa import neighbours


def bank(num: int = 200, width: int = 8, *, seed: int = 0) -> neighbours.Floats:
    return neighbours.unit(np.random.default_rng(seed).normal(size=(num, width)).astype(np.float32))


@pytest.fixture(autouse=True, params=[2**25, 1000])
def _blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the size of a block."""
    monkeypatch.setattr(neighbours, "_BLOCK", request.param)


def test_the_nearest_are_the_nearest() -> None:
    images, queries = bank(), bank(7, seed=1)
    scores, places = neighbours.nearest(images, queries, 5)
    expected = np.argsort(-(queries @ images.T), axis=1)[:, :5]
    np.testing.assert_array_equal(places, expected)
    np.testing.assert_allclose(scores, np.take_along_axis(queries @ images.T, expected, axis=1), rtol=1e-6)
    assert neighbours.nearest(images, images[[3]], len(images))[1][0, 0] == 3


def test_duplicates_are_grouped_also_over_steps_between() -> None:
    images = bank(width=32)  # so many directions that none are alike by chance
    angle = np.arccos(0.995)
    chain = np.zeros((3, 32), np.float32)
    for place in range(3):
        chain[place, :2] = np.cos(place * angle), np.sin(place * angle)
    images[[20, 90, 150]] = chain
    images[7] = images[130]
    assert neighbours.duplicates(images, threshold=0.99) == [[7, 130], [20, 90, 150]]
    assert neighbours.duplicates(images, threshold=0.9999) == [[7, 130]]


def test_outliers_are_far_from_all_others() -> None:
    images = neighbours.unit(np.ones((60, 16), np.float32) + 0.1 * bank(60, 16))
    images[[11, 40]] = neighbours.unit(-np.ones((2, 16), np.float32) + np.eye(2, 16, dtype=np.float32))
    scores, places = neighbours.outliers(images, k=3)
    assert set(places[:2].tolist()) == {11, 40}
    assert scores[1] < scores[2]
    one = images[:1]
    assert neighbours.outliers(one, k=1)[1].tolist() == [0]


def test_a_selection_covers_all_clusters_before_it_repeats_one() -> None:
    centres = np.eye(6, dtype=np.float32)
    labels = np.random.default_rng(0).integers(0, 6, 120)
    images = neighbours.unit(centres[labels] + 0.02 * bank(120, 6))
    chosen = neighbours.select(images, 6)
    assert sorted(labels[chosen].tolist()) == list(range(6))
    assert len(set(neighbours.select(images, 120).tolist())) == 120


def test_a_large_bank_is_searched_by_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    images = bank(4000, 8)
    exact = neighbours.nearest(images, images[:50], 5)[1]
    monkeypatch.setattr(neighbours, "EXACT_UP_TO", 100)
    found = neighbours.nearest(images, images[:50], 5)[1]
    assert (found[:, 0] == np.arange(50)).all()
    assert np.mean(found == exact) > 0.6


def test_what_faiss_does_not_find_is_looked_for_among_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the cells it looks in hold fewer than k images, it answers -1, which would be the last image."""

    class Index:
        nprobe = 0

        def train(self, images: neighbours.Floats) -> None: ...

        def add(self, images: neighbours.Floats) -> None:
            self.images = images

        def search(self, queries: neighbours.Floats, k: int) -> tuple[neighbours.Floats, neighbours.Ints]:
            scores, places = neighbours._nearest_of_all(self.images, queries, k)
            places[1, 2:] = -1
            return scores, places

    class Faiss:
        METRIC_INNER_PRODUCT = 0

        @staticmethod
        def index_factory(*_: object) -> Index:
            return Index()

    images = bank()
    exact = neighbours.nearest(images, images[:3], 5)
    monkeypatch.setattr(neighbours, "_import_faiss", Faiss)
    monkeypatch.setattr(neighbours, "EXACT_UP_TO", 100)
    scores, places = neighbours.nearest(images, images[:3], 5)
    np.testing.assert_array_equal(places, exact[1])
    np.testing.assert_allclose(scores, exact[0], rtol=1e-6)
