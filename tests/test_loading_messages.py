"""Messages on loading weights are true."""

import keras
import numpy as np
import pytest

from keras_mixavg import GlobalSoftLabel, SoftLabelCrossentropy

X = np.random.default_rng(0).normal(size=(12, 3)).astype("float32")
Y = np.eye(4, dtype="float32")[np.arange(12) % 4]


def compiled(model):
    model.compile("sgd", SoftLabelCrossentropy(from_logits=True))
    return model


def trained(model, **arguments):
    model.fit(X, Y, callbacks=[GlobalSoftLabel(collect="all")], verbose=0, **arguments)
    return model.loss.table.numpy()


@pytest.mark.parametrize("fits_again", [False, True])
def test_weights_with_a_table_load_without_a_word_whatever_came_before(
    tmp_path, fits_again
):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
    trained(compiled(model))
    with pytest.warns(UserWarning, match="table starts anew"):
        table = trained(compiled(model), epochs=2)
    model.save_weights(tmp_path / "best.weights.h5")
    compiled(model)
    if fits_again:
        with pytest.warns(UserWarning, match="table starts anew"):
            trained(model)
    model.load_weights(tmp_path / "best.weights.h5")
    np.testing.assert_array_equal(model.loss.table.numpy(), table)


def test_weights_without_a_table_say_so_and_it_starts_anew(tmp_path):
    plain = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
    plain.compile("sgd", keras.losses.CategoricalCrossentropy(from_logits=True))
    plain.save_weights(tmp_path / "plain.weights.h5")
    model = compiled(keras.models.clone_model(plain))
    trained(model)
    with pytest.warns(UserWarning, match="The file has no soft-label table"):
        model.load_weights(tmp_path / "plain.weights.h5")
    np.testing.assert_array_equal(model.loss.table.numpy(), np.eye(4))
