"""The recipe of docs/seeds.md: a killed run resumes as if it had never stopped."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from tolerances import assert_close

pytestmark = pytest.mark.once

PAGE = Path(__file__).parent.parent / "docs/seeds.md"
EPOCHS = 3


class Killed(Exception):
    pass


def kill(epoch, logs):
    if epoch == 1:
        raise Killed


def recipe():
    """The names that the code of the page defines before its model."""
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[-1]
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(30, 4, 4, 3)).astype("float32")
    train = tf.data.Dataset.from_tensor_slices((images, np.arange(30) % 10))
    names = {"train": train}
    exec(code.partition("model.compile")[0], names)
    return names


def new_model():
    keras.utils.set_random_seed(1)
    layers = [keras.Input((4, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(10)]
    model = keras.Sequential([*layers, keras.layers.Softmax()])
    optimizer, loss = keras.optimizers.SGD(0.1, 0.9), "categorical_crossentropy"
    model.compile(optimizer, loss)
    return model


def fit(names, *callbacks):
    model = new_model()
    callbacks = [*callbacks, names["tell"]]
    data = names["data"]  # which shuffles
    model.fit(data, epochs=EPOCHS, callbacks=callbacks, verbose=0, shuffle=False)
    return model.get_weights()


@pytest.mark.once
def test_a_run_resumes_as_if_it_had_never_stopped(tmp_path):
    names = recipe()
    expected = fit(names)
    backup = tmp_path / "backup"
    killer = keras.callbacks.LambdaCallback(on_epoch_begin=kill)
    with pytest.raises(Killed):
        fit(names, keras.callbacks.BackupAndRestore(backup), killer)
    # As in a new process: the dataset is made before the epoch is known.
    weights = fit(recipe(), keras.callbacks.BackupAndRestore(backup))
    for one, other in zip(weights, expected, strict=True):
        assert_close(one, other, trained=True)


def test_each_epoch_has_its_own_order_flips_and_pairs():
    names = recipe()

    def seen(epoch):
        names["epoch"].assign(epoch)
        return np.concatenate([x for x, _ in names["data"].as_numpy_iterator()])

    one, other = seen(1), seen(2)
    assert np.any(one != other)
    np.testing.assert_array_equal(seen(1), one)
