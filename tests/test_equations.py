import itertools

import keras
import numpy as np
import pytest
import reference
from tolerances import assert_close, close

from keras_mixavg import equations

pytestmark = pytest.mark.numerical


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7])
def test_pairing_walks_around_the_circle(rng, batch_size):
    order = rng.permutation(batch_size)
    expected = reference.partners_of(order)
    np.testing.assert_array_equal(equations.pairing(order), expected)


def test_every_circle_of_four_comes_from_four_orders():
    circles = [
        tuple(equations.pairing(np.array(order)))
        for order in itertools.permutations(range(4))
    ]
    assert sorted(circles.count(circle) for circle in set(circles)) == [4] * 6


def test_average_is_the_midpoint_and_leaves_a_sample_with_itself_alone(rng):
    values = rng.normal(size=(4, 3)).astype("float32")
    partners = [1, 0, 2, 3]
    result = equations.average(values, values[partners])
    assert_close(result, reference.averaged(values, partners))
    np.testing.assert_array_equal(result[2:], values[2:])


@pytest.mark.parametrize("leading", [(), (5,), (2, 3)])
def test_targets_combine_local_and_global_labels(rng, leading):
    labels = rng.dirichlet(np.ones(4), size=leading)
    table = rng.dirichlet(np.ones(4), size=4)
    result = equations.targets(labels, equations.global_soft_labels(labels, table), 0.3)
    expected = np.reshape(
        [reference.target(y, table, 0.3) for y in labels.reshape(-1, 4)], labels.shape
    )
    assert_close(result, expected, "float64")


@pytest.mark.parametrize("fade_out", [0.0, 0.05, 0.25, 0.3, 1.0])
@pytest.mark.parametrize("epochs", [1, 3, 10])
def test_the_weight_falls_linearly_over_the_last_epochs(epochs, fade_out):
    for epoch in range(epochs + 2):
        expected = 1.0
        if fade_out > 0:
            expected = reference.fading(min(epoch, epochs), epochs, fade_out)
        assert equations.fading(epoch, epochs, fade_out) == close(expected, "float64")


def test_evidence_sums_weighted_outer_products(rng):
    labels = rng.dirichlet(np.ones(3), size=6)
    probabilities = rng.dirichlet(np.ones(3), size=6)
    weights = rng.uniform(size=6)
    expected = reference.evidence(labels, probabilities, weights, collect="all")
    for values, total in zip((probabilities, labels), expected, strict=True):
        arguments = [array.astype("float32") for array in (labels, values, weights)]
        result = keras.ops.convert_to_numpy(equations.evidence(*arguments))
        assert_close(result, total)


def test_a_sample_with_a_negative_weight_is_left_out_and_counted(rng):
    labels = rng.dirichlet(np.ones(3), size=2).astype("float32")
    probabilities = rng.dirichlet(np.ones(3), size=2).astype("float32")
    weights = np.array([1, -1], "float32")
    batch = map(keras.ops.convert_to_tensor, (labels, probabilities, weights))
    found = equations.batch_evidence(*batch, "all")
    n, m, _, left_out, _ = map(keras.ops.convert_to_numpy, found)
    expected = reference.evidence(labels[:1], probabilities[:1], None, "all")
    assert_close(n, expected[0])
    assert_close(m, expected[1])
    assert left_out == 1


@pytest.mark.parametrize("prior_count", [0.0, 1.0, 50.0])
def test_updated_table_solves_equation_8(rng, prior_count):
    labels = rng.dirichlet(np.ones(5), size=40)
    n, m = reference.evidence(labels, rng.dirichlet(np.ones(5), size=40), None, "all")
    table = rng.dirichlet(np.ones(5), size=5)
    result = equations.updated_table(table, n, m, prior_count)
    expected = reference.updated_table(table, n.copy(), m.copy(), prior_count)
    assert_close(result, expected)
    np.testing.assert_allclose(result.sum(axis=1), 1.0)
    assert (result >= 0).all()


def test_updated_table_is_the_class_mean_for_one_hot_labels(rng):
    labels = reference.one_hot([0, 0, 0, 1, 2, 2], 3)
    probabilities = rng.dirichlet(np.ones(3), size=6)
    n, m = reference.evidence(labels, probabilities, None, "all")
    result = equations.updated_table(np.eye(3), n, m, prior_count=2.0)
    k = 2.0 + 1e-6 * 6 / 3
    for c, rows in enumerate(([0, 1, 2], [3], [4, 5])):
        mean = (probabilities[rows].sum(axis=0) + k * np.eye(3)[c]) / (len(rows) + k)
        assert_close(result[c], mean, "float64")


def test_updated_table_finds_the_table_behind_the_predictions_of_pairs(rng):
    truth = rng.dirichlet(np.ones(4), size=4)
    pairs = itertools.permutations(range(4), 2)
    labels = np.array([(np.eye(4)[a] + np.eye(4)[b]) / 2 for a, b in pairs])
    n, m = reference.evidence(labels, labels @ truth, None, "all")
    result = equations.updated_table(np.eye(4), n, m, prior_count=0.0)
    assert_close(result, truth, trained=True)
    rows_divided_by_their_mass = n / n.sum(axis=1, keepdims=True)
    assert np.abs(rows_divided_by_their_mass - truth).max() > 0.1


@pytest.mark.parametrize("prior_count", [0.0, 1.0])
def test_a_class_without_evidence_keeps_its_row(rng, prior_count):
    table = rng.dirichlet(np.ones(3), size=3)
    n, m = np.zeros((2, 3, 3))
    n[0], m[0, 0] = [2.0, 1.0, 1.0], 4.0
    result = equations.updated_table(table, n, m, prior_count)
    assert_close(result[1:], table[1:], "float64")
    assert not np.allclose(result[0], table[0])


def test_without_any_evidence_or_prior_the_table_stays(rng):
    table = rng.dirichlet(np.ones(3), size=3)
    zeros = np.zeros((3, 3))
    np.testing.assert_array_equal(
        equations.updated_table(table, zeros, zeros, 0.0), table
    )


def test_a_row_without_a_positive_entry_keeps_its_old_values():
    table = np.array([[0.7, 0.3], [0.4, 0.6]])
    n = np.array([[-5.0, -5.0], [3.0, 1.0]])
    result = equations.updated_table(table, n, np.diag([4.0, 4.0]), 0.0)
    assert_close(result, [[0.7, 0.3], [0.75, 0.25]], trained=True)


def test_top_label_mass_is_the_label_of_the_largest_prediction():
    labels = np.array([[0.5, 0, 0.5], [0.5, 0, 0.5], [0.2, 0.8, 0], [0, 1, 0], [0] * 3])
    logits = np.array([[3, 1, 2], [1, 2, 3], [2, 1, 0], [0, 0, 1], [1, 2, 3]])
    result = keras.ops.convert_to_numpy(equations.top_label_mass(labels, logits))
    assert_close(result, [0.5, 0.5, 0.2, 0, 0])


def test_the_average_of_bytes_is_right_for_every_pair_of_bytes():
    a, b = np.meshgrid(np.arange(256), np.arange(256))
    expected = np.floor((a + b) / 2 + 0.5)  # halves up
    result = equations.average_of_bytes(a.astype("uint8"), b.astype("uint8"))
    assert result.dtype == "uint8"
    np.testing.assert_array_equal(result, expected)
