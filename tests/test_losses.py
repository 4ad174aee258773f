import keras
import numpy as np
import pytest
import reference
from tolerances import assert_close, close

from keras_mixavg import SoftLabelCrossentropy
from keras_mixavg.soft_label_table import SoftLabelTable, numpy_of

pytestmark = [pytest.mark.core, pytest.mark.numerical]


def attached_table(table, weight, collect="all"):
    """An enabled table with these values, attached to some model."""
    result = SoftLabelTable(collect=collect)
    result.build(len(table))
    result.table.assign(np.asarray(table, "float32"))
    result.switch.claim(keras.Model())
    result.switch.turn_on(weight)
    return result


def example(rng, leading=(6,), num_classes=4):
    logits = rng.normal(size=(*leading, num_classes)).astype("float32")
    labels = rng.dirichlet(np.ones(num_classes), size=leading).astype("float32")
    table = rng.dirichlet(np.ones(num_classes), size=num_classes)
    flat = [reference.softmax(z) for z in logits.reshape(-1, num_classes)]
    probabilities = np.reshape(flat, logits.shape).astype("float32")
    return labels, logits, probabilities, table


@pytest.mark.parametrize("from_logits", [True, False])
@pytest.mark.parametrize(
    "leading, weight", [((1,), 1.0), ((6,), 0.0), ((2, 3), 0.25), ((2, 2, 3), 0.25)]
)
def test_the_loss_equals_the_reference_for_any_table(rng, leading, weight, from_logits):
    labels, logits, probabilities, table = example(rng, leading)
    sample_weight = rng.uniform(size=leading).astype("float32")
    loss = SoftLabelCrossentropy(from_logits=from_logits)
    loss.table = attached_table(table, weight)
    predictions = logits if from_logits else probabilities
    for w in (None, sample_weight):
        expected = reference.loss(labels, probabilities, table, weight, w)
        assert float(loss(labels, predictions, w)) == close(expected)


@pytest.mark.parametrize("from_logits", [True, False])
def test_without_a_table_it_is_keras_categorical_crossentropy(rng, from_logits):
    labels, logits, probabilities, _ = example(rng)
    predictions = logits if from_logits else probabilities
    ours = SoftLabelCrossentropy(from_logits=from_logits)
    keras_own = keras.losses.CategoricalCrossentropy(from_logits=from_logits)
    result, expected = ours(labels, predictions), keras_own(labels, predictions)
    assert float(result) == close(float(expected))


@pytest.mark.parametrize("reduction", ["sum", "mean_with_sample_weight", None])
def test_every_reduction_is_keras_own(rng, reduction):
    labels, logits, _, _ = example(rng)
    weights = rng.uniform(size=6).astype("float32")
    ours = SoftLabelCrossentropy(from_logits=True, reduction=reduction)
    keras_own = keras.losses.CategoricalCrossentropy(
        from_logits=True, reduction=reduction
    )
    for w in (None, weights):
        result, expected = ours(labels, logits, w), keras_own(labels, logits, w)
        assert_close(*map(keras.ops.convert_to_numpy, (result, expected)))


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_the_loss_computes_in_its_dtype_and_the_evidence_in_float32(rng, dtype):
    if dtype == "float64" and keras.backend.backend() == "jax":
        pytest.skip("JAX has no float64 unless it is told to")
    labels, logits, probabilities, table = example(rng)
    loss = SoftLabelCrossentropy(from_logits=True, dtype=dtype)
    loss.table = attached_table(table, 0.25)
    value = loss(labels, logits)
    expected = reference.loss(labels, probabilities, table, 0.25)
    assert float(value) == pytest.approx(expected, rel=5e-3)
    if dtype != "float64" or keras.backend.backend() == "tensorflow":  # as Keras' own
        assert keras.backend.standardize_dtype(value.dtype) == dtype
    n, _ = reference.evidence(labels, probabilities, None, "all")
    assert_close(numpy_of(loss.table.cross), n, trained=True)


@pytest.mark.parametrize("collect, from_logits", [("all", False), ("correct", True)])
@pytest.mark.parametrize("weights", ["none", "per sample", "column", "mask", "both"])
def test_evidence_equals_the_reference(rng, weights, from_logits, collect):
    labels, logits, probabilities, table = example(rng, (8,))
    labels[:4] = reference.averaged(np.eye(4), [1, 2, 3, 0])  # ties for "correct"
    w = rng.uniform(size=8).astype("float32")
    mask = rng.uniform(size=8) < 0.5
    loss = SoftLabelCrossentropy(from_logits=from_logits)
    loss.table = attached_table(table, 0.25, collect)
    predictions = logits if from_logits else probabilities
    predictions = keras.ops.convert_to_tensor(predictions)
    if weights in ("mask", "both"):
        predictions._keras_mask = keras.ops.convert_to_tensor(mask)
    sample_weight = {"per sample": w, "both": w, "column": w[:, None]}.get(weights)
    loss(labels, predictions, sample_weight)
    counted = {
        "none": None,
        "per sample": w,
        "column": w,
        "mask": mask.astype("float32"),
        "both": w * mask,
    }[weights]
    expected = reference.evidence(labels, probabilities, counted, collect)
    for variable, value in zip(
        (loss.table.cross, loss.table.gram), expected, strict=True
    ):
        assert_close(numpy_of(variable), value, trained=True)


def test_evidence_adds_up_over_batches_and_positions(rng):
    loss = SoftLabelCrossentropy(from_logits=True)
    loss.table = attached_table(np.eye(4), 0.25)
    n, m = np.zeros((2, 4, 4))
    for leading in ((6,), (2, 3), (5, 1)):
        labels, logits, probabilities, _ = example(rng, leading)
        loss(labels, logits)
        more = reference.evidence(labels, probabilities, None, "all")
        n, m = n + more[0], m + more[1]
    for variable, value in ((loss.table.cross, n), (loss.table.gram, m)):
        assert_close(numpy_of(variable), value, trained=True)


@pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 1, 1)])
def test_sample_weights_of_every_rank_weigh_single_positions(rng, shape):
    labels, logits, probabilities, table = example(rng, (6, 1))
    w = rng.uniform(size=6).astype("float32")
    loss = SoftLabelCrossentropy(from_logits=True)
    loss.table = attached_table(table, 0.25)
    value = float(loss(labels, logits, w.reshape(shape)))
    expected = reference.loss(labels, probabilities, table, 0.25, w)
    assert value == close(expected)
    n, _ = reference.evidence(labels, probabilities, w, "all")
    assert_close(numpy_of(loss.table.cross), n, trained=True)


def test_a_disabled_table_is_not_touched_by_weights_that_overflow(rng):
    labels, logits, _, table = example(rng)
    loss = SoftLabelCrossentropy(from_logits=True)
    loss.table = attached_table(table, 0.5)
    loss.table.switch.turn_off()
    loss(100 * labels, logits, np.full(labels.shape[:-1], 3e38, "float32"))
    for variable in (loss.table.cross, loss.table.gram):
        np.testing.assert_array_equal(numpy_of(variable), 0)


def test_a_disabled_table_neither_weighs_in_nor_collects(rng):
    labels, logits, probabilities, table = example(rng)
    loss = SoftLabelCrossentropy(from_logits=True)
    loss.table = attached_table(table, 0.5)
    loss.table.switch.turn_off()
    expected = reference.loss(labels, probabilities)
    assert float(loss(labels, logits)) == close(expected)
    loss(labels, np.full_like(logits, np.nan))
    for variable in (loss.table.cross, loss.table.gram):
        np.testing.assert_array_equal(numpy_of(variable), 0)


def gradient(function, values, variables=()):
    """The gradient of `function` at `values`; on JAX no other `variables` change."""
    values = keras.ops.convert_to_tensor(values)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(values)
            result = function(values)
        return tape.gradient(result, values).numpy()
    if keras.backend.backend() == "jax":
        import jax

        def stateless(values):
            with keras.StatelessScope([(v, v.value) for v in variables]):
                return function(values)

        return np.asarray(jax.grad(stateless)(values))
    values = values.clone().detach().requires_grad_(True)
    function(values).backward()
    return values.grad.cpu().numpy()


@pytest.mark.parametrize("collect", ["all", "correct"])
def test_the_gradient_is_that_of_the_loss_alone(rng, collect):
    labels, logits, _, table = example(rng, (3,))
    weights = rng.uniform(size=3).astype("float32")
    loss = SoftLabelCrossentropy(from_logits=True)
    loss.table = attached_table(table, 0.4, collect)
    variables = loss.table.variables
    result = gradient(lambda z: loss(labels, z, weights), logits, variables)

    def value(logits):
        probabilities = [reference.softmax(z) for z in logits]
        return reference.loss(labels, probabilities, table, 0.4, weights)

    step, expected = 1e-5, np.empty_like(logits)
    for index in np.ndindex(logits.shape):
        change = np.zeros(logits.shape)
        change[index] = step
        expected[index] = value(logits + change) - value(logits - change)
    np.testing.assert_allclose(result, expected / (2 * step), rtol=1e-4, atol=1e-6)


def test_nothing_flows_back_through_the_evidence(rng):
    labels, logits, _, _ = example(rng)
    table = attached_table(np.eye(4), 0.4)

    def evidence_sum(predictions):
        table.add_batch(labels, keras.ops.softmax(predictions), np.ones(6, "f4"))
        evidence = keras.ops.convert_to_tensor(table.cross)
        return keras.ops.sum(evidence) + 0.0 * keras.ops.sum(predictions)

    np.testing.assert_array_equal(gradient(evidence_sum, logits), 0)


def test_the_weight_may_follow_the_epoch():
    assert SoftLabelCrossentropy(global_weight=0.5).weight_at(7) == 0.5
    assert SoftLabelCrossentropy(global_weight=lambda e: e / 10).weight_at(7) == 0.7
    schedule = keras.optimizers.schedules.PolynomialDecay(0.0, 10, 0.5)
    assert SoftLabelCrossentropy(global_weight=schedule).weight_at(5) == close(0.25)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"global_weight": -0.1}, r"`global_weight` must be a float in \[0, 1\].*-0.1"),
        ({"global_weight": 2}, r"`global_weight` must be a float in \[0, 1\].*2"),
        ({"global_weight": "big"}, "`global_weight` must be a float.*'big'"),
        ({"global_weight": float("nan")}, "`global_weight` must be a float.*nan"),
        ({"num_classes": 1}, "`num_classes` must be an integer.*num_classes=1"),
        ({"num_classes": 2.5}, "`num_classes` must be an integer.*num_classes=2.5"),
        ({"reduction": "average"}, "reduction"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SoftLabelCrossentropy(**arguments)


@pytest.mark.parametrize(
    "y_true, y_pred, message",
    [
        ((6, 3), (6, 4), r"same shape.*y_true.shape=\(6, 3\), y_pred.shape=\(6, 4\)"),
        ((2, 6, 4), (6, 4), r"must have the same shape.*y_true.shape=\(2, 6, 4\)"),
        ((6, 1), (6, 1), r"at least two classes.*y_pred.shape=\(6, 1\). Give the"),
        ((6, 5), (6, 5), r"must have 4 entries, as many as num_classes of this loss"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(y_true, y_pred, message):
    loss = SoftLabelCrossentropy(num_classes=4)
    with pytest.raises(ValueError, match=message):
        loss(np.zeros(y_true, "float32"), np.zeros(y_pred, "float32"))


def test_predictions_of_another_width_than_the_table_are_refused():
    loss = SoftLabelCrossentropy()
    loss.table = attached_table(np.eye(3), 0.5)
    message = r"must have 3 entries, as many as its soft-label table.*\(6, 4\)"
    with pytest.raises(ValueError, match=message):
        loss(np.zeros((6, 4)), np.zeros((6, 4)))


@keras.saving.register_keras_serializable(package="tests")
def a_tenth_an_epoch(epoch):
    return epoch / 10


@pytest.mark.parametrize(
    "weight", [0.5, a_tenth_an_epoch, keras.optimizers.schedules.CosineDecay(1.0, 10)]
)
def test_the_config_keeps_every_argument(weight):
    loss = SoftLabelCrossentropy(
        4, weight, from_logits=True, name="x", reduction="sum", dtype="float64"
    )
    restored = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(loss)
    )
    assert restored.get_config() == loss.get_config()
    assert restored.weight_at(3) == loss.weight_at(3)


@keras.saving.register_keras_serializable(package="tests")
class NoWayBack:
    """Keras saves it, but cannot load it without `from_config`."""

    def __call__(self, epoch):
        return 0.5

    def get_config(self):
        return {}


@keras.saving.register_keras_serializable(package="tests")
class ThereAndBack(NoWayBack):
    @classmethod
    def from_config(cls, config):
        return cls(**config)


def test_a_callable_weight_that_cannot_be_loaded_again_is_refused():
    with pytest.raises(ValueError, match="cannot be saved and loaded.*`from_config`"):
        SoftLabelCrossentropy(global_weight=NoWayBack())
    loss = SoftLabelCrossentropy(global_weight=ThereAndBack())
    copy = SoftLabelCrossentropy.from_config(loss.get_config())
    assert copy.weight_at(3) == 0.5


def test_a_function_that_a_user_must_name_when_loading_is_taken():
    def weight(epoch):
        return 0.25

    class Weight(ThereAndBack):
        pass

    for kind in (weight, Weight(), lambda epoch: 0.5):
        SoftLabelCrossentropy(global_weight=kind)
