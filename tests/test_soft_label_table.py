import numpy as np
import pytest
import reference
from tolerances import assert_close, close

from keras_mixavg.soft_label_table import SoftLabelTable, numpy_of

pytestmark = pytest.mark.numerical


@pytest.fixture
def table():
    table = SoftLabelTable(collect="all")
    table.build(3)
    return table


def test_it_starts_as_the_identity_without_evidence(table):
    np.testing.assert_array_equal(numpy_of(table.table), np.eye(3))
    np.testing.assert_array_equal(numpy_of(table.cross), np.zeros((3, 3)))
    np.testing.assert_array_equal(numpy_of(table.gram), np.zeros((3, 3)))
    np.testing.assert_array_equal(numpy_of(table.switch.variable), [0, 0])


def test_an_epoch_ends_with_equation_8_and_no_evidence(table, rng):
    labels, probabilities = rng.dirichlet(np.ones(3), size=(2, 9)).astype("float32")
    expected = np.eye(3)
    for _ in range(2):
        table.switch.turn_on(0.5)
        table.add_batch(labels, probabilities, np.ones(9, "float32"))
        table.end_epoch(prior_count=2.0)
        n, m = reference.evidence(labels, probabilities, None, "all")
        expected = reference.updated_table(expected, n, m, 2.0)
        assert_close(numpy_of(table.table), expected)
        np.testing.assert_array_equal(numpy_of(table.cross), 0)
        np.testing.assert_array_equal(numpy_of(table.gram), 0)


def test_statistics_are_confidence_and_entropy_in_nats(table):
    table.table.assign(np.array([[1, 0, 0], [0, 0.5, 0.5], [0.25] * 2 + [0.5]], "f4"))
    statistics = table.statistics()
    assert statistics["soft_label_confidence"] == close(2 / 3)
    entropy = (0 + np.log(2) + 1.5 * np.log(2)) / 3
    assert statistics["soft_label_entropy"] == close(entropy)


def test_it_reports_nothing_as_a_metric(table):
    assert table.result() == {}


def test_a_large_table_says_beforehand_what_it_takes(monkeypatch):
    monkeypatch.setattr(SoftLabelTable, "_variable", lambda *args, **kwargs: None)
    SoftLabelTable().build(4999)  # no warning, which would be an error here
    with pytest.warns(UserWarning) as warned:
        SoftLabelTable().build(10_000)
    (message,) = [str(warning.message) for warning in warned]
    assert "10000 classes takes 1.2 GB of memory" in message  # three of 10,000² floats
    assert "takes up to about 70 s on two cores" in message
