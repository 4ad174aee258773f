"""Models that Keras loads without their loss, and how to restore the table."""

import keras
import numpy as np
import pytest
from tolerances import assert_close

from keras_mixavg import GlobalSoftLabel, SoftLabelCrossentropy


@keras.saving.register_keras_serializable(package="tests")
class OwnCompile(keras.Sequential):
    """Its `compile` has a default loss, with which Keras loads it, as in KerasHub."""

    def compile(self, optimizer="sgd", loss="mse", **options):
        super().compile(optimizer, loss, **options)


def trained(make):
    model = make([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile(optimizer="sgd", loss=SoftLabelCrossentropy(from_logits=True))
    x, y = np.random.default_rng(0).normal(size=(30, 4)), np.arange(30) % 3
    callback = GlobalSoftLabel(collect="all")
    model.fit(x, y, epochs=2, callbacks=[callback], verbose=0)
    assert not np.allclose(callback.table, np.eye(3), atol=0.1)
    return model, (x, y), callback.table


# Keras': of the loading; and of an optimizer that has not trained yet.
@pytest.mark.filterwarnings("ignore:`compile\\(\\)` was not called")
@pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer")
@pytest.mark.parametrize(
    "make, options",
    [(OwnCompile, {}), (keras.Sequential, {"compile": False})],
    ids=["its compile is its own", "compile=False"],
)
def test_weights_loaded_after_compile_bring_the_table_back(make, options, tmp_path):
    model, (x, y), table = trained(make)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", **options)
    again.compile(optimizer="sgd", loss=SoftLabelCrossentropy(from_logits=True))
    again.load_weights(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.loss.table.numpy(), table)
    callback = GlobalSoftLabel(prior_count=1e9)  # the old table outweighs all evidence
    again.fit(x, y, callbacks=[callback], verbose=0)
    assert_close(callback.table, table, trained=True)
