"""Equation (1), and the rate of equation (2): which samples are averaged."""

import collections

import keras
import numpy as np
import pytest
from small_batches import unique_batch
from small_models import to_numpy

from keras_mixavg import MixAvg


def drawn(layer, batch_size):
    return keras.ops.convert_to_numpy(layer.draw(batch_size))


@pytest.mark.parametrize("seed", [-1, 2**31, 2**32, 1_764_000_000_000, 2**63])
def test_any_integer_is_a_seed(seed):
    images, labels = np.zeros((8, 2), "float32"), np.arange(8) % 3
    one, again = (MixAvg(1.0, 3, seed=seed) for _ in range(2))
    np.testing.assert_array_equal(
        *(to_numpy(layer(images, labels))[1] for layer in (one, again))
    )
    assert sorted(drawn(one, 8)) == list(range(8))


@pytest.mark.parametrize("batch_size", [2, 3, 7, 128])
def test_over_many_draws_nobody_meets_itself_and_everyone_is_partner_once(batch_size):
    layer = MixAvg(rate=1.0, seed=1)
    for _ in range(40):
        partners = drawn(layer, batch_size)
        assert not np.any(partners == np.arange(batch_size))
        np.testing.assert_array_equal(np.sort(partners), np.arange(batch_size))


def test_a_pairing_is_one_circle():
    partners = drawn(MixAvg(rate=1.0, seed=1), 128)
    visited, sample = [], 0
    for _ in range(128):
        visited.append(sample)
        sample = partners[sample]
    assert sample == 0 and len(set(visited)) == 128


def test_all_cyclic_orders_of_four_are_about_equally_often():
    layer = MixAvg(rate=1.0, seed=1)
    counts = collections.Counter(tuple(drawn(layer, 4)) for _ in range(240))
    assert len(counts) == 6  # (4 - 1)!
    chi_square = sum((count - 40) ** 2 / 40 for count in counts.values())
    assert chi_square < 20.5  # five degrees of freedom, p = 0.001


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_the_averaged_share_is_the_rate_within_binomial_bounds(rate):
    layer = MixAvg(rate=rate, seed=1)
    draws = 20 * 640
    averaged = sum(np.sum(drawn(layer, 640) != np.arange(640)) for _ in range(20))
    assert abs(averaged - draws * rate) <= 4 * np.sqrt(draws * rate * (1 - rate))


def test_each_sample_is_averaged_or_not_on_its_own():
    layer = MixAvg(rate=0.5, seed=1)
    first, second = np.array([drawn(layer, 2) != [0, 1] for _ in range(200)]).T
    for one in (True, False):
        for other in (True, False):
            share = np.mean((first == one) & (second == other))
            assert abs(share - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 200)


def test_images_labels_and_weights_share_one_pairing():
    images, labels, weights = unique_batch(32)
    x, y, w = to_numpy(MixAvg(rate=0.5, seed=1)(images, labels, weights))
    for i in range(32):
        members = np.flatnonzero(y[i])
        assert i in members and 1 <= len(members) <= 2
        np.testing.assert_allclose(y[i, members], 1 / len(members))
        np.testing.assert_allclose(x[i], images[members].mean(axis=0))
        np.testing.assert_allclose(w[i], weights[members].mean())
    sizes = (y > 0).sum(axis=1)
    assert {1, 2} == set(sizes)
