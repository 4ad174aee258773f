import keras
import numpy as np
import pytest
import reference
from tolerances import close

from keras_mixavg import SoftLabelAccuracy, SoftLabelTopKAccuracy

pytestmark = pytest.mark.numerical

PREDICTIONS = np.array([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7], [0.2, 0.7, 0.1]], "float32")


def value_of(*arguments):
    metric = SoftLabelAccuracy()
    metric.update_state(*arguments)
    return float(metric.result())


def test_either_class_of_a_pair_counts_as_right():
    labels = np.array([[0.5, 0, 0.5], [0.5, 0, 0.5], [0.5, 0, 0.5]])
    assert value_of(labels, PREDICTIONS) == close(2 / 3)
    keras_own = keras.metrics.CategoricalAccuracy()
    keras_own.update_state(labels, PREDICTIONS)
    assert float(keras_own.result()) == close(1 / 3)  # ties go to class 0


def test_on_one_hot_labels_it_is_accuracy(rng):
    labels = np.eye(5)[rng.integers(0, 5, size=40)]
    logits = rng.normal(size=(40, 5))
    expected = np.mean(labels.argmax(axis=1) == logits.argmax(axis=1))
    assert value_of(labels, logits) == close(expected)


def test_it_equals_the_reference_on_soft_labels_of_any_rank(rng):
    labels = rng.dirichlet(np.ones(4), size=(3, 2))
    logits = rng.normal(size=(3, 2, 4))
    expected = [
        label[z.argmax()] / label.max()
        for label, z in zip(labels.reshape(-1, 4), logits.reshape(-1, 4), strict=True)
    ]
    assert value_of(labels, logits) == close(np.mean(expected))


def test_sample_weights_weigh_it():
    labels = reference.one_hot([0, 0, 0], 3)
    assert value_of(labels, PREDICTIONS, [3.0, 1.0, 0.0]) == close(0.75)


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_class_numbers_count_as_one_hot_labels(shape):
    numbers = np.array([0, 1, 1])
    expected = np.mean(PREDICTIONS.argmax(axis=1) == numbers)
    assert value_of(numbers.reshape(shape), PREDICTIONS) == close(expected)


def test_labels_of_other_classes_are_refused():
    with pytest.raises(ValueError, match=r"y_true.shape=\(3, 2\).*One-hot encode"):
        value_of(np.ones((3, 2)), PREDICTIONS)


def test_its_default_name_is_accuracy_and_the_config_round_trips():
    metric = SoftLabelAccuracy(name="top")
    restored = SoftLabelAccuracy.from_config(metric.get_config())
    assert restored.get_config() == metric.get_config()
    assert SoftLabelAccuracy().name == "accuracy"


# --- Among the top k -----------------------------------------------------------------


def value_of_top(k, *arguments):
    metric = SoftLabelTopKAccuracy(k)
    metric.update_state(*arguments)
    return float(metric.result())


def test_either_class_of_a_pair_among_the_top_k_counts_as_right():
    pairs = np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    assert value_of_top(1, pairs, PREDICTIONS) == close(2 / 3)
    assert value_of_top(2, pairs, PREDICTIONS) == 1
    lower_only = keras.metrics.TopKCategoricalAccuracy(2)
    lower_only.update_state(pairs, PREDICTIONS)
    assert float(lower_only.result()) == close(2 / 3)  # misses [0.5, 0, 0.5]


@pytest.mark.parametrize("k", [1, 3])
def test_top_k_on_one_hot_labels_and_on_class_numbers_is_that_of_keras(rng, k):
    numbers = rng.integers(0, 6, size=50)
    logits = rng.normal(size=(50, 6)).astype("float32")
    expected = np.mean(
        [n in np.argsort(-z)[:k] for n, z in zip(numbers, logits, strict=True)]
    )
    own = keras.metrics.SparseTopKCategoricalAccuracy(k)
    own.update_state(numbers, logits)
    assert float(own.result()) == close(expected)
    for labels in (numbers, numbers[:, None], np.eye(6)[numbers]):
        assert value_of_top(k, labels, logits) == close(expected)


def test_top_k_equals_the_reference_on_soft_labels_of_any_rank(rng):
    labels = rng.dirichlet(np.ones(4), size=(3, 2))
    logits = rng.normal(size=(3, 2, 4))
    weights = rng.uniform(size=(3, 2))
    expected = [
        max(label[c] for c in np.argsort(-z)[:2]) / label.max()
        for label, z in zip(labels.reshape(-1, 4), logits.reshape(-1, 4), strict=True)
    ]
    assert value_of_top(2, labels, logits, weights) == close(
        np.average(expected, weights=weights.ravel())
    )
    assert value_of_top(1, labels, logits) == close(value_of(labels, logits))


@pytest.mark.parametrize("k", [0, 2.5, True, "five"])
def test_a_k_that_is_no_positive_integer_is_refused(k):
    with pytest.raises(ValueError, match=f"`k` must be an integer.*Received: k={k!r}"):
        SoftLabelTopKAccuracy(k)


def test_a_k_beyond_the_number_of_classes_is_refused():
    with pytest.raises(ValueError, match="at most the number of classes, 3.*k=5. Pass"):
        value_of_top(5, np.eye(3), PREDICTIONS)
