"""However a step runs, tables and weights equal those of reference.py."""

import functools

import keras
import numpy as np
import pytest
import reference
from small_models import Tables, averaged_batches, dataset_of, linear_model
from tolerances import assert_close

from keras_mixavg import GlobalSoftLabel, SoftLabelAccuracy, SoftLabelCrossentropy
from keras_mixavg.soft_label_table import numpy_of

pytestmark = pytest.mark.numerical

FEATURES, CLASSES = 5, 4
SIZES = (8,) * 6 + (5,)  # seven batches


def expected_training(kernel, batches, epochs=3, training=reference.Training, **kwargs):
    expected = training(np.array(kernel, "float32"), 0.1, **kwargs)
    tables = []
    for _ in range(epochs):
        expected.epoch(batches)
        tables.append(expected.table)
    return expected, tables


def trained(model, batches, epochs=3, optimizer=None, validation=None, **compile_args):
    model.compile(
        optimizer or keras.optimizers.SGD(0.1),
        SoftLabelCrossentropy(from_logits=True),
        **compile_args,
    )
    callback = GlobalSoftLabel()
    tables = Tables(callback)
    model.fit(
        dataset_of(batches),
        epochs=epochs,
        verbose=0,
        shuffle=False,
        callbacks=[callback, tables],
        validation_data=validation,
    )
    return tables.seen


# Beside what Keras chooses on a CPU, which all other tests have: no XLA on TensorFlow,
# a compiled step on JAX, an eager one on torch.
WAYS = {
    "tensorflow": [
        {"run_eagerly": True},
        {"jit_compile": True},
        {"steps_per_execution": 4},
        {"steps_per_execution": 4, "jit_compile": True},
    ],
    "jax": [{"run_eagerly": True}, {"steps_per_execution": 4}],
    "torch": [{"jit_compile": True}],  # it refuses steps_per_execution
}


@pytest.mark.parametrize("mode", WAYS[keras.backend.backend()], ids=str)
def test_ways_to_compile_the_step(rng, mode, monkeypatch):
    batches = averaged_batches(rng, sizes=SIZES, weighted=True)
    metrics = [SoftLabelAccuracy()]
    if keras.backend.backend() == "torch":
        # What can depend on this package is what torch traces. It traces anew for
        # another size and for a metric, and would compile C++ of it for minutes.
        import torch

        traced = functools.partial(torch.compile, backend="aot_eager")
        monkeypatch.setattr(torch, "compile", traced)
        batches, metrics = batches[:-1], []
    kernel = rng.normal(size=(FEATURES, CLASSES)) * 0.3
    model = linear_model(kernel)
    validation = dataset_of(batches[:1])  # must leave no trace
    tables = trained(model, batches, validation=validation, metrics=metrics, **mode)
    expected, expected_tables = expected_training(kernel, batches)
    assert_close(tables, expected_tables, trained=True)
    assert_close(model.get_weights()[0], expected.kernel, trained=True)


class Accumulating(reference.Training):
    """SGD on the mean gradient of each two steps."""

    pending = None

    def step(self, x, labels, sample_weight=None):
        before = self.kernel.copy()
        value = super().step(x, labels, sample_weight)
        change, self.kernel = self.kernel - before, before
        if self.pending is None:
            self.pending = change
        else:
            self.kernel = self.kernel + (self.pending + change) / 2
            self.pending = None
        return value


def test_gradient_accumulation_counts_every_step_in_the_table(rng):
    batches = averaged_batches(rng, sizes=SIZES)
    kernel = rng.normal(size=(FEATURES, CLASSES)) * 0.3
    model = linear_model(kernel)
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    tables = trained(model, batches, optimizer=optimizer)
    expected, expected_tables = expected_training(
        kernel, batches, training=Accumulating
    )
    assert_close(tables, expected_tables, trained=True)
    assert_close(model.get_weights()[0], expected.kernel, trained=True)


@pytest.fixture(params=["mixed_float16", "mixed_bfloat16"])
def mixed_precision(request):
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy(policy)


def test_mixed_precision_keeps_the_table_in_float32(rng, mixed_precision):
    """Kernel and inputs are multiples of 1/8, and the learning rate is 0. So only the
    logits are rounded, and a softmax in float32."""
    batches = [
        (np.round(4 * x) / 8, y, w)
        for x, y, w in averaged_batches(rng, sizes=SIZES, weighted=True)
    ]
    kernel = np.round(8 * rng.normal(size=(FEATURES, CLASSES))) / 8
    model = linear_model(kernel)
    optimizer = keras.optimizers.SGD(0.0)
    tables = trained(model, batches, optimizer=optimizer)
    expected = reference.Training(kernel, 0.0)
    for table in tables:
        expected.epoch(batches)
        half = mixed_precision.removeprefix("mixed_")
        assert_close(table, expected.table, half)
        assert table.dtype == "float32"
        assert_close(table.sum(axis=1), 1)
    for variable in model.loss.table.variables:
        assert variable.dtype == "float32"


@pytest.mark.once
def test_mixed_precision_with_huge_logits_stays_finite(rng, mixed_precision):
    batches = averaged_batches(rng, sizes=(16,))
    batches = [(np.sign(x), y, w) for x, y, w in batches]
    signs = np.sign(rng.normal(size=(FEATURES, CLASSES)))
    model = linear_model(signs * 1e4 / FEATURES)
    loss = SoftLabelCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.0), loss)
    callback = GlobalSoftLabel(collect="all")
    history = model.fit(
        dataset_of(batches), epochs=3, verbose=0, shuffle=False, callbacks=[callback]
    )
    assert np.isfinite(history.history["loss"]).all()
    assert np.isfinite(callback.table).all()
    assert_close(callback.table.sum(axis=1), 1)


@pytest.mark.parametrize("structure, names", [(list, ("a", "b", "c")), (dict, "ab")])
def test_several_outputs_have_a_table_each(rng, structure, names):
    """Linear heads on one input; each trains as if it were alone."""
    soft = [n for n in names if n != "b"]
    kernels = {n: rng.normal(size=(FEATURES, CLASSES)) * 0.3 for n in names}
    heads = {n: averaged_batches(rng, sizes=(12, 12, 6)) for n in names}
    x = [batch[0] for batch in heads["a"]]
    inputs = keras.Input((FEATURES,))
    layers = {n: keras.layers.Dense(CLASSES, use_bias=False, name=n) for n in names}
    outputs = {n: layers[n](inputs) for n in names}
    losses = {
        n: SoftLabelCrossentropy(from_logits=True)
        if n in soft
        else keras.losses.CategoricalCrossentropy(from_logits=True)
        for n in names
    }

    def structured(values):
        return values if structure is dict else [values[n] for n in names]

    model = keras.Model(inputs, structured(outputs))
    for n in names:
        layers[n].set_weights([kernels[n]])
    model.compile(keras.optimizers.SGD(0.1), structured(losses))
    callback = GlobalSoftLabel()
    labels = {n: np.concatenate([batch[1] for batch in heads[n]]) for n in names}
    history = model.fit(
        np.concatenate(x),
        structured(labels),
        batch_size=12,
        epochs=3,
        verbose=0,
        shuffle=False,
        callbacks=[callback],
    )
    assert isinstance(callback.table, dict) and set(callback.table) == set(soft)
    for n in names:
        batches = [(xs, heads[n][i][1], None) for i, xs in enumerate(x)]
        weight = 0.5 if n in soft else 0.0
        expected, tables = expected_training(kernels[n], batches, global_weight=weight)
        assert_close(layers[n].get_weights()[0], expected.kernel, trained=True)
        if n in soft:
            assert_close(callback.table[n], tables[-1], trained=True)
            assert len(history.history[f"{n}_soft_label_confidence"]) == 3


def test_labels_at_each_position(rng):
    """Inputs (batch, time, features) and labels (batch, time, classes)."""
    time = 3
    flat = averaged_batches(rng, sizes=(8 * time, 8 * time, 5 * time))
    kernel = rng.normal(size=(FEATURES, CLASSES)) * 0.3
    model = keras.Sequential(
        [keras.Input((time, FEATURES)), keras.layers.Dense(CLASSES, use_bias=False)]
    )
    model.set_weights([kernel])
    batches = [
        (x.reshape(-1, time, FEATURES), y.reshape(-1, time, CLASSES), None)
        for x, y, _ in flat
    ]
    tables = trained(model, batches)
    expected, expected_tables = expected_training(kernel, flat)
    assert_close(tables, expected_tables, trained=True)
    assert_close(model.get_weights()[0], expected.kernel, trained=True)


def test_a_frozen_pretrained_backbone(rng):
    backbone = keras.Sequential(
        [
            keras.Input((FEATURES,)),
            keras.layers.Dense(7, "tanh"),
            keras.layers.BatchNormalization(),
        ]
    )
    backbone.trainable = False
    head = keras.layers.Dense(CLASSES, use_bias=False)
    model = keras.Sequential([keras.Input((FEATURES,)), backbone, head])
    kernel = rng.normal(size=(7, CLASSES)) * 0.3
    head.set_weights([kernel])
    before = backbone.get_weights()
    batches = averaged_batches(rng, sizes=SIZES)
    tables = trained(model, batches)
    features = [
        (keras.ops.convert_to_numpy(backbone(x)).astype("float64"), y, w)
        for x, y, w in batches
    ]
    expected, expected_tables = expected_training(kernel, features)
    assert_close(tables, expected_tables, trained=True)
    assert_close(head.get_weights()[0], expected.kernel, trained=True)
    for one, other in zip(before, backbone.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.once
@pytest.mark.parametrize("num_classes", [2, 100])  # and of 600 in test_equations.py
def test_few_and_many_classes(rng, num_classes):
    batches = []
    for size in (8, 5):
        x = rng.normal(size=(size, FEATURES)).astype("float32")
        y = reference.one_hot(rng.integers(0, num_classes, size), num_classes)
        y[: size // 2] = (y[: size // 2] + np.roll(y[: size // 2], 1, axis=0)) / 2
        batches.append((x, y.astype("float32"), None))
    kernel = rng.normal(size=(FEATURES, num_classes)) * 0.3
    model = keras.Sequential(
        [keras.Input((FEATURES,)), keras.layers.Dense(num_classes, use_bias=False)]
    )
    model.set_weights([kernel])
    loss = SoftLabelCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss)
    callback = GlobalSoftLabel(collect="all")
    model.fit(
        dataset_of(batches), epochs=2, verbose=0, shuffle=False, callbacks=[callback]
    )
    expected, tables = expected_training(kernel, batches, epochs=2, collect="all")
    assert_close(callback.table, tables[-1], trained=True)
    assert_close(model.get_weights()[0], expected.kernel, trained=True)
    assert numpy_of(model.loss.table.table).shape == (num_classes,) * 2
