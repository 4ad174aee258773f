"""Two rows instead of products: the same figures, wherever the choice is made."""

import inspect

import keras
import numpy as np
import pytest
import reference

from keras_mixavg import two_rows
from keras_mixavg.soft_label_table import SoftLabelTable, numpy_of

pytestmark = pytest.mark.skipif(
    "reduction" not in inspect.signature(keras.ops.scatter_update).parameters,
    reason="this Keras cannot add in scatter_update, and multiplies always",
)
CLASSES = 6


def labels_of(kind, rng):
    first, second = reference.one_hot(rng.integers(0, CLASSES, 2 * 7), CLASSES).reshape(
        2, 7, CLASSES
    )
    if kind == "one-hot":
        return first
    if kind == "pairs":  # some of one class twice, and of unequal shares
        share = rng.choice([0.5, 0.25, 1.0], size=(7, 1))
        return share * first + (1 - share) * second
    if kind == "one of three classes":
        first[3] = [0.2, 0.0, 0.5, 0.0, 0.0, 0.3]
        return first
    first[2:4] = 0.0  # "empty"
    return first


@pytest.fixture
def chosen(monkeypatch):
    """Has any number of classes look for pairs, on any backend, and counts the rows."""
    taken = []
    two_classes = two_rows._two_classes

    def counted(*args):
        taken.append(1)
        return two_classes(*args)

    monkeypatch.setattr(two_rows, "_two_classes", counted)
    monkeypatch.setattr(two_rows, "pay", lambda num_classes: True)
    return taken


KINDS = ["one-hot", "pairs", "one of three classes", "empty"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(7,), (1, 7), (7, 1)])
def test_global_soft_labels_are_those_of_the_reference(rng, chosen, kind, shape):
    labels = labels_of(kind, rng)
    table = rng.dirichlet(np.ones(CLASSES), size=CLASSES)
    result = two_rows.global_soft_labels(
        keras.ops.convert_to_tensor(labels.reshape(*shape, CLASSES), "float32"),
        keras.ops.convert_to_tensor(table, "float32"),
    )
    assert tuple(result.shape) == (*shape, CLASSES)
    expected = [reference.target(label, table, 1.0) for label in labels]
    result = keras.ops.convert_to_numpy(result).reshape(7, CLASSES)
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("collect", ["all", "correct"])
def test_the_evidence_is_that_of_the_reference(rng, chosen, kind, collect):
    table = SoftLabelTable(collect)
    table.build(CLASSES)
    table.arm(0.5)
    n, m = np.zeros((2, CLASSES, CLASSES))
    for _ in range(2):  # it adds up, also where two samples share a class
        labels = labels_of(kind, rng)
        probabilities = rng.dirichlet(np.ones(CLASSES), size=7)
        weights = rng.uniform(size=7)
        batch = labels, probabilities, weights
        table.update_state(*(values.astype("float32") for values in batch))
        more_n, more_m = reference.evidence(*batch, collect)
        n, m = n + more_n, m + more_m
    np.testing.assert_allclose(numpy_of(table.evidence), n, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(numpy_of(table.mass), m, rtol=1e-5, atol=1e-6)


def test_evidence_at_positions_goes_on_beyond_what_single_additions_can(chosen):
    """At 2**24, where float32 has no next whole number, a batch's sum still counts."""
    table = SoftLabelTable("all")
    table.build(CLASSES)
    table.arm(0.5)
    table.evidence.assign(np.full((CLASSES, CLASSES), 2.0**24))
    table.mass.assign(np.full((CLASSES, CLASSES), 2.0**24))
    labels = np.zeros((10, 100, CLASSES), "float32")
    labels[..., 0] = 1.0
    table.update_state(labels, labels, np.ones((10, 100), "float32"))
    for variable in (table.evidence, table.mass):
        assert numpy_of(variable)[0, 0] == 2**24 + 1000
    assert not chosen


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="traces both branches")
@pytest.mark.parametrize(
    ("kind", "rows"), [("pairs", 1), ("one-hot", 1), ("one of three classes", 0)]
)
def test_the_labels_decide(rng, chosen, kind, rows):
    labels = keras.ops.convert_to_tensor(labels_of(kind, rng), "float32")
    two_rows.global_soft_labels(labels, keras.ops.eye(CLASSES))
    assert len(chosen) == rows


def test_few_classes_multiply_and_many_look_for_pairs():
    assert not two_rows.pay(two_rows.MANY_CLASSES - 1)
    assert two_rows.pay(1000) == (keras.backend.backend() != "torch")


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="always products")
def test_training_with_many_classes_gives_the_table_of_the_products(rng, monkeypatch):
    """The whole way, compiled, with weights and with the (8) of two epochs."""
    from keras_mixavg import GlobalSoftLabel, SoftLabelCrossentropy

    num_classes = two_rows.MANY_CLASSES
    images = rng.normal(size=(32, 4)).astype("float32")
    pairs = rng.integers(0, num_classes, size=(2, 32))
    labels = np.eye(num_classes, dtype="float32")[pairs].mean(axis=0)
    found = []
    for pays in (True, False):
        if not pays:
            monkeypatch.setattr(two_rows, "pay", lambda num_classes: False)
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.layers.Dense(num_classes)])
        loss = SoftLabelCrossentropy(global_weight=0.5, from_logits=True)
        model.compile("adam", loss=loss)
        callback = GlobalSoftLabel(collect="all")
        history = model.fit(
            *(images, labels),
            batch_size=16,
            epochs=3,
            shuffle=False,
            callbacks=[callback],
            verbose=0,
        )
        found.append((callback.table, history.history["loss"]))
    assert np.abs(found[0][0] - np.eye(num_classes)).max() > 0.1
    np.testing.assert_allclose(found[0][0], found[1][0], atol=1e-5)
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-5)
