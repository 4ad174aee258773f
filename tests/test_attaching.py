"""Which losses of a model get tables, and which models are refused."""

import keras
import numpy as np
import pytest
import reference
from small_models import CLASSES, EAGERLY, FEATURES, averaged_batches, fit, linear_model
from tolerances import assert_close, close

from keras_mixavg import GlobalSoftLabel, SoftLabelCrossentropy

pytestmark = pytest.mark.core


@pytest.mark.once
def test_outputs_of_several_widths_have_tables_of_their_own(rng):
    inputs = keras.Input((FEATURES,))
    outputs = {
        name: keras.layers.Dense(units, name=name, use_bias=False)(inputs)
        for name, units in (("kind", CLASSES), ("size", 1), ("colour", 3))
    }
    model = keras.Model(inputs, outputs)
    loss = {
        "kind": SoftLabelCrossentropy(from_logits=True),
        "size": keras.losses.MeanSquaredError(),
        "colour": SoftLabelCrossentropy(from_logits=True, global_weight=0.5),
    }
    x = rng.normal(size=(12, FEATURES)).astype("float32")
    y = {
        "kind": rng.dirichlet(np.ones(CLASSES), size=12).astype("float32"),
        "size": np.zeros((12, 1)),
        "colour": rng.dirichlet(np.ones(3), size=12).astype("float32"),
    }
    model.compile(keras.optimizers.SGD(0.0), loss, run_eagerly=EAGERLY)
    callback = GlobalSoftLabel(collect="all")
    history = model.fit(
        x, y, batch_size=12, epochs=2, verbose=0, callbacks=[callback], shuffle=False
    )
    assert list(callback.table) == ["kind", "colour"]
    for name, units in (("kind", CLASSES), ("colour", 3)):
        kernel = model.get_layer(name).get_weights()[0]
        expected = reference.Training(kernel, collect="all")
        for _ in range(2):
            expected.epoch([(x, y[name], None)])
        assert_close(callback.table[name], expected.table, trained=True)
        confidence = history.history[f"{name}_soft_label_confidence"][-1]
        assert confidence == close(np.trace(expected.table) / units, trained=True)
    assert len(model.evaluate(x, y, verbose=0)) == len(
        [name for name in history.history if "soft_label" not in name]
    )


def test_a_table_belongs_to_the_key_of_the_output_not_to_a_layer_of_that_name(rng):
    x = keras.Input((FEATURES,))
    wide = keras.layers.Dense(CLASSES + 3, name="kind")(x)
    logits = keras.layers.Dense(CLASSES, name="logits")(wide)
    model = keras.Model(x, {"kind": logits, "features": wide})
    loss = SoftLabelCrossentropy(from_logits=True)
    model.compile("sgd", {"kind": loss}, run_eagerly=EAGERLY)
    (batch,) = averaged_batches(rng, sizes=(8,))
    callback = GlobalSoftLabel()
    model.fit(batch[0], {"kind": batch[1]}, callbacks=[callback], verbose=0)
    assert np.asarray(loss.table).shape == (CLASSES, CLASSES)


def test_a_model_without_the_loss_is_refused(rng):
    model = linear_model(np.eye(FEATURES, CLASSES))
    model.compile("sgd", "categorical_crossentropy")
    message = (
        "needs a model compiled with a SoftLabelCrossentropy.*"
        "model.loss='categorical_crossentropy'. Compile the model with"
    )
    with pytest.raises(ValueError, match=message):
        fit(model, averaged_batches(rng), 1, [GlobalSoftLabel()])


def two_headed_model():
    inputs = keras.Input((FEATURES,))
    heads = [keras.layers.Dense(CLASSES, name=name)(inputs) for name in ("a", "b")]
    return keras.Model(inputs, heads)


@pytest.mark.parametrize("single", [True, False])
def test_one_loss_for_two_outputs_is_refused(single):
    model = two_headed_model()
    loss = SoftLabelCrossentropy(from_logits=True)
    model.compile("sgd", loss if single else [loss, loss])
    x, y = np.zeros((4, FEATURES)), np.eye(CLASSES)
    with pytest.raises(ValueError, match="Each output needs its own SoftLabel"):
        model.fit(x, [y, y], callbacks=[GlobalSoftLabel()], verbose=0)
