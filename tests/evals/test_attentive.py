"""The attentive probe: the attention that it says it is, what it learns, and what never leaks."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from openjepa.evals.attentive import Probes, attentive
from openjepa.evals.features import accuracy
from openjepa.evals.linear import linear
from openjepa.evals.splits import part_of_each

NUM_PATCHES, WIDTH = 16, 12


def needles(num: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Patches of noise, in one of which, anywhere, lies one of three things; the same in all other patches' sum."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (num,), generator=generator)
    patches = torch.randn(num, NUM_PATCHES, WIDTH, generator=generator)
    patches[..., :4] *= 0.1
    places = torch.randint(0, NUM_PATCHES, (num,), generator=generator)
    patches[torch.arange(num), places, 0] = 5.0  # "look here"
    things = 3 * torch.eye(WIDTH)[4:7]
    patches[torch.arange(num), places] += things[labels]
    return patches.half(), labels


def test_it_finds_a_small_thing_that_the_mean_drowns() -> None:
    (train_x, train_y), (test_x, test_y) = needles(600, seed=1), needles(600, seed=2)
    probe, settings = attentive(train_x, train_y, min_steps=150, batch_size=128)
    attended = accuracy(probe.classify(test_x)[:, 0], test_y)
    averaged = linear(train_x.float().mean(1), train_y, test_x.float().mean(1), test_y, min_steps=150).top1
    assert attended > 0.9 > averaged + 0.1
    assert settings["validation_top1"] == max(settings["learning_rates"].values())
    assert settings["learning_rates"][str(settings["lr"])] == settings["validation_top1"]


def test_it_is_cross_attention_with_keys_and_values() -> None:
    """The short way of computing it, against torch's attention on projected patches."""
    draw = torch.Generator().manual_seed(0)
    num_heads, width = 3, 4
    shapes = [(2, num_heads, width), (2, num_heads, width, 10), (2, num_heads, width, 10), (2, 5, 12), (2, 5)]
    query, key, value, weight, bias = (torch.randn(shape, generator=draw) for shape in shapes)
    shift, scale = torch.randn(10, generator=draw), torch.rand(10, generator=draw) + 0.5
    patches = torch.randn(7, 20, 10, generator=draw)
    probes = Probes(query, key, value, weight, bias, shift, scale)
    x = (patches - shift) / scale
    for place in range(2):
        keys, values = (torch.einsum("bpd,hed->bhpe", x, projection[place]) for projection in (key, value))
        asked = query[place][None, :, None].expand(7, -1, -1, -1)  # (B, H, 1, E)
        found = F.scaled_dot_product_attention(asked, keys, values)[:, :, 0].flatten(1)
        expected = found @ weight[place].T + bias[place]
        torch.testing.assert_close(probes(patches)[:, place], expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(probes.one(place)(patches)[:, 0], expected, rtol=1e-4, atol=1e-4)


def test_probes_side_by_side_are_those_trained_alone() -> None:
    patches, labels = needles(200, seed=1)
    rates = (1e-3, 1e-2)
    _, together = attentive(patches, labels, learning_rates=rates, epochs=3, min_steps=1, batch_size=64)
    for rate in rates:
        _, alone = attentive(patches, labels, learning_rates=(rate,), epochs=3, min_steps=1, batch_size=64)
        assert together["learning_rates"][str(rate)] == alone["validation_top1"]


def test_it_is_a_function_of_its_seed_and_draws_nothing_global() -> None:
    patches, labels = needles(100, seed=1)
    state = torch.get_rng_state()
    first, again, other = (
        attentive(patches, labels, epochs=2, min_steps=1, batch_size=32, seed=seed)[0] for seed in (0, 0, 1)
    )
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.weight, other.weight)


def test_the_scale_of_features_does_not_matter() -> None:
    patches, labels = needles(100, seed=1)
    probe, _ = attentive(patches.float(), labels, epochs=2, min_steps=1, batch_size=32)
    other, _ = attentive(1000 * patches.float() + 50, labels, epochs=2, min_steps=1, batch_size=32)
    torch.testing.assert_close(probe(patches), other(1000 * patches.float() + 50), rtol=1e-2, atol=1e-3)


def test_labels_without_relation_give_chance() -> None:
    patches, _ = needles(600, seed=1)
    labels = torch.randint(0, 3, (600,), generator=torch.Generator().manual_seed(3))
    probe, _ = attentive(patches[:300], labels[:300], min_steps=60, batch_size=64)
    found = accuracy(probe.classify(patches[300:])[:, 0], labels[300:])
    assert found == pytest.approx(1 / 3, abs=3 * math.sqrt(2 / 9 / 300))


def test_a_part_of_each_class_keeps_rare_ones() -> None:
    labels = torch.tensor([0] * 900 + [1] * 95 + [2] * 4 + [3])
    rows = part_of_each(labels, 100, seed=0)
    assert torch.bincount(labels[rows]).tolist() == [90, 9, 2, 1]
    assert torch.equal(rows, part_of_each(labels, 100, seed=0).unique())
    assert not torch.equal(rows, part_of_each(labels, 100, seed=1))
    assert torch.equal(part_of_each(labels, 1000, seed=0), torch.arange(1000))
    assert torch.equal(part_of_each(labels, 5000, seed=0), torch.arange(1000))
