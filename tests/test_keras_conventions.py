"""MixAvg passes Keras' test harness and the tests of its MixUp and CutMix."""

import json

import keras
import numpy as np
import pytest

from keras_mixavg import MixAvg

pytestmark = pytest.mark.core

X = np.arange(24, dtype="float32").reshape(6, 4)
NUMBERS = np.array([0, 1, 2, 0, 1, 2])
ONE_HOT = np.eye(3, dtype="float32")[NUMBERS]


def assert_averaged(x, y):
    """A row of X encodes its number, so a row of `x` encodes the sum over its pair."""
    x, y = (keras.ops.convert_to_numpy(part) for part in (x, y))
    assert x.shape == (6, 4) and y.shape == (6, 3)
    sums = x[:, 0] / 2  # the rows i and j of X begin with 4 i and 4 j
    for row, label, total in zip(x, y, sums, strict=True):
        np.testing.assert_allclose(row, row[0] + np.arange(4))
        members = [
            (i, j) for i in range(6) for j in range(6) if i != j and i + j == total
        ]
        assert any(
            np.allclose(label, (ONE_HOT[i] + ONE_HOT[j]) / 2) for i, j in members
        )


def test_the_layer_test_of_keras():
    testing = pytest.importorskip("keras.src.testing")
    testing.TestCase().run_layer_test(
        MixAvg,
        init_kwargs={"rate": 0.7, "num_classes": 3, "seed": 1},
        input_shape=((6, 4), (6, 3)),
        input_dtype=("float32", "float32"),
        expected_output_shape=((6, 4), (6, 3)),
        expected_output_dtype=("float32", "float32"),
        expected_num_trainable_weights=0,
        expected_num_non_trainable_weights=0,
        expected_num_seed_generators=1,
        supports_masking=False,
        run_training_check=False,  # it would train on the pair of outputs
    )


@pytest.mark.parametrize("labels", [(6, 3), (6,)], ids=["one-hot", "class numbers"])
@pytest.mark.parametrize("batch_size", [None, 6])
def test_a_symbolic_call_tells_the_shapes(batch_size, labels):
    dtype = "float32" if len(labels) == 2 else "int32"
    x = keras.Input((4,), batch_size)
    y = keras.Input(labels[1:], batch_size, dtype=dtype)
    mixed, soft = MixAvg(num_classes=3)((x, y))
    assert (mixed.shape, soft.shape) == ((batch_size, 4), (batch_size, 3))
    assert (mixed.dtype, soft.dtype) == ("float32", "float32")


def test_a_functional_model_on_a_pair_is_built_and_called():
    inputs = (keras.Input((4,)), keras.Input((3,)))
    model = keras.Model(inputs, MixAvg(1.0, seed=1)(inputs))
    assert_averaged(*model((X, ONE_HOT), training=True))
    same, _ = model.predict((X, ONE_HOT), verbose=0)  # no training
    np.testing.assert_array_equal(same, X)


@pytest.mark.parametrize(
    ("rate", "num_classes"),
    [(np.float32(0.25), np.int64(3)), (1, {"a": np.int32(3), "b": None})],
)
def test_the_config_is_json_whatever_numbers_came(rate, num_classes):
    layer = MixAvg(rate, num_classes, seed=np.int64(5))
    config = json.loads(json.dumps(layer.get_config()))
    again = MixAvg.from_config(config)
    assert again.get_config() == layer.get_config() == config
    assert config["seed"] == 5 and config["rate"] == float(rate)


def test_a_grain_pipeline_averages_on_the_cpu(monkeypatch):
    """Where arrays of the backend are read, its accelerator must not be taken."""
    grain = pytest.importorskip("grain")
    layer, scopes = MixAvg(1.0), []
    scope = keras.src.backend.device_scope

    def noted(device):
        scopes.append(device)
        return scope(device)

    monkeypatch.setattr(keras.src.backend, "device_scope", noted)
    data = grain.MapDataset.source([(X, ONE_HOT)]).map(
        lambda batch: tuple(map(keras.ops.convert_to_tensor, batch))
    )
    assert data[0] and not scopes
    assert_averaged(*data.map(layer)[0])
    assert "cpu" in scopes
