"""What every component must do, written once. A new component is one line below.

`COMPONENTS` maps a name to (a factory, a use): the use feeds a small batch to the
component and returns arrays by which two of them can be compared.
"""

import functools
import inspect
import json

import keras
import numpy as np
import tensorflow as tf
from small_models import EAGERLY
from tolerances import assert_close

import keras_mixavg
from keras_mixavg.soft_label_table import SoftLabelTable

X = np.linspace(-1, 1, 24, dtype="float32").reshape(6, 4)
Y = np.eye(3, dtype="float32")[[0, 1, 2, 0, 1, 2]]


def arrays(values):
    return [
        np.asarray(keras.ops.convert_to_numpy(v)) for v in keras.tree.flatten(values)
    ]


def use_layer(layer):
    return arrays(layer(X, Y))


def use_loss(loss):
    return [*arrays(loss(Y, 0.1 + np.abs(X[:, :3]))), np.array(loss.weight_at(2))]


def use_metric(metric):
    metric.update_state(Y, X[:, :3])
    return arrays(metric.result())


def trained(callback, loss=None):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.set_weights([X[:4, :3], np.zeros(3)])
    loss = loss or keras_mixavg.SoftLabelCrossentropy(from_logits=True)
    metrics = [keras_mixavg.SoftLabelAccuracy()]
    # Two steps; a fit as Keras compiles it is below.
    model.compile(keras.optimizers.SGD(0.1), loss, metrics=metrics, run_eagerly=EAGERLY)
    model.fit(X, Y, 6, epochs=2, callbacks=[callback], verbose=0, shuffle=False)
    return model


def use_callback(callback):
    model = trained(callback)
    return [callback.table, *model.get_weights()]


def use_epoch(epoch):
    """The pairs of its epoch 2."""
    layer = keras_mixavg.MixAvg(lambda e: 0.3 * e, seed=5)
    data = layer(tf.data.Dataset.from_tensors((X, Y)), epoch=epoch)
    callbacks = keras.callbacks.CallbackList([epoch], epochs=3)
    callbacks.on_train_begin()
    callbacks.on_epoch_begin(2)
    return arrays(list(data))


def use_table(table):
    table.build(3)
    table.switch.turn_on(0.5)
    table.add_batch(Y, np.abs(X[:, :3]), np.ones(6, "float32"))
    return arrays([keras.ops.copy(v) for v in (table.cross, table.gram)])


COMPONENTS = {
    "MixAvg": (
        lambda: keras_mixavg.MixAvg(0.7, num_classes=3, seed=5, name="pairs"),
        use_layer,
    ),
    "SoftLabelCrossentropy": (
        lambda: keras_mixavg.SoftLabelCrossentropy(3, 0.4, reduction="sum", name="ce"),
        use_loss,
    ),
    "SoftLabelAccuracy": (lambda: keras_mixavg.SoftLabelAccuracy("top"), use_metric),
    "SoftLabelTopKAccuracy": (
        lambda: keras_mixavg.SoftLabelTopKAccuracy(2, "top"),
        use_metric,
    ),
    "GlobalSoftLabel": (
        lambda: keras_mixavg.GlobalSoftLabel(2.0, collect="all", fade_out=0.5),
        use_callback,
    ),
    "CurrentEpoch": (lambda: keras_mixavg.CurrentEpoch(), use_epoch),
    "SoftLabelTable": (lambda: SoftLabelTable("all", name="table"), use_table),
}


def assert_alike(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert_close(a, b)


@functools.cache
def as_made(make, use):
    """What a new one does, computed once for the checks that compare with it."""
    return use(make())


def config_is_json_and_round_trips(make, use):
    config = make().get_config()
    assert json.loads(json.dumps(config)) == config
    restored = type(make()).from_config(config)
    assert restored.get_config() == config
    assert_alike(use(restored), as_made(make, use))


def is_registered_for_serialization(make, use):
    registered = keras.saving.get_registered_name(type(make()))
    assert registered == f"keras_mixavg>{type(make()).__name__}"
    serialized = json.loads(json.dumps(keras.saving.serialize_keras_object(make())))
    restored = keras.saving.deserialize_keras_object(serialized, safe_mode=True)
    assert type(restored) is type(make())
    assert_alike(use(restored), as_made(make, use))


def two_of_the_same_arguments_behave_alike(make, use):
    assert_alike(use(make()), as_made(make, use))


def results_are_finite_float32(make, use):
    for array in as_made(make, use):
        assert np.isfinite(array).all()
        assert array.dtype == "float32" or array.shape == ()


def works_under_a_mixed_precision_policy(make, use):
    policy = keras.config.dtype_policy()
    expected = as_made(make, use)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        result = use(make())
    finally:
        keras.config.set_dtype_policy(policy)
    for one, other in zip(result, expected, strict=True):
        assert one.dtype == other.dtype
        assert_close(one, other, "bfloat16")


def has_a_complete_docstring(make, use):
    sections = ["Raises:", "Example:"]
    if inspect.signature(type(make())).parameters:
        sections.append("Args:")
    if type(make()).__name__ in keras_mixavg.__all__:
        for section in sections:
            assert section in type(make()).__doc__


CHECKS = [
    config_is_json_and_round_trips,
    is_registered_for_serialization,
    two_of_the_same_arguments_behave_alike,
    results_are_finite_float32,
    works_under_a_mixed_precision_policy,
    has_a_complete_docstring,
]


def all_of_them_train_together_in_one_fit():
    data = tf.data.Dataset.from_tensor_slices((X, Y.argmax(axis=1))).batch(4)
    data = data.map(COMPONENTS["MixAvg"][0]())
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile(
        "sgd",
        keras_mixavg.SoftLabelCrossentropy(from_logits=True),
        metrics=[keras_mixavg.SoftLabelAccuracy()],
    )
    callback = keras_mixavg.GlobalSoftLabel()
    history = model.fit(data, epochs=2, callbacks=[callback], verbose=0, shuffle=False)
    assert np.isfinite(history.history["loss"]).all()
    assert_close(callback.table.sum(axis=1), 1)
