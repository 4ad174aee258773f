"""Equation (8) with many classes, against float64."""

import numpy as np
import pytest
from tolerances import assert_close

from keras_mixavg import equations

pytestmark = [pytest.mark.numerical, pytest.mark.once]


@pytest.mark.parametrize("samples", [0, 300, 3000, 100_000])
@pytest.mark.parametrize("kind", ["pairs and whole", "pairs alone"])
def test_with_many_classes_the_solution_is_that_of_float64(rng, samples, kind):
    """Cholesky in float32, and in float64 for classes that occur only in pairs."""
    num_classes = 600
    first = rng.integers(0, num_classes, samples)
    second = rng.integers(0, num_classes, samples)
    if kind == "pairs and whole":
        second = np.where(rng.random(samples) < 0.5, first, second)
    m = np.zeros((num_classes, num_classes), "float32")
    for a, b in ((first, first), (second, second), (first, second), (second, first)):
        np.add.at(m, (a, b), 0.25)
    table = rng.dirichlet(np.full(num_classes, 0.1), num_classes).astype("float32")
    n = (m @ rng.dirichlet(np.full(num_classes, 0.1), num_classes)).astype("float32")
    result = equations.updated_table(table, n, m, prior_count=1.0)
    k = 1.0 + 1e-6 * np.trace(m) / num_classes
    left = m.astype("float64") + k * np.eye(num_classes)
    expected = np.linalg.solve(left, n + k * table.astype("float64"))
    expected = np.maximum(expected, 0)
    expected /= expected.sum(axis=1, keepdims=True)
    assert_close(result, expected, trained=True)
