"""Equations (2) and (3), for a pairing that is passed in."""

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf
from small_batches import LABELS, PARTNERS
from small_models import to_numpy
from tolerances import assert_close

from keras_mixavg import MixAvg

pytestmark = pytest.mark.numerical


@pytest.mark.parametrize("shape", [(6, 5), (6, 4, 3), (6, 4, 4, 3), (6, 2, 4, 4, 3)])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_float_inputs_keep_their_dtype_and_are_averaged_exactly(rng, dtype, shape):
    x = tf.cast(rng.normal(size=shape), dtype).numpy()
    if dtype == "float64" and keras.backend.backend() == "jax":
        pytest.skip("JAX has float64 only when asked")
    mixed, _ = MixAvg().apply((x, LABELS), PARTNERS)
    assert keras.backend.standardize_dtype(mixed.dtype) == dtype
    if dtype == "bfloat16":
        mixed = keras.ops.cast(mixed, "float32")
    mixed, expected = to_numpy(mixed), reference.averaged(x, PARTNERS)
    assert_close(mixed, expected, dtype)
    np.testing.assert_array_equal(mixed[3], x[3].astype(mixed.dtype))


def test_the_largest_float16_values_do_not_overflow():
    x = np.full((6, 2), 65504, "float16")
    mixed, _ = to_numpy(MixAvg().apply((x, LABELS), PARTNERS))
    np.testing.assert_array_equal(mixed, x)


@pytest.mark.parametrize("shape", [(6, 5), (6, 4, 4, 3)])
def test_uint8_stays_uint8_within_half_a_level(rng, shape):
    x = rng.integers(0, 256, size=shape, dtype="uint8")
    x[:2] = 255
    mixed, _ = to_numpy(MixAvg().apply((x, LABELS), PARTNERS))
    assert mixed.dtype == "uint8"
    error = mixed.astype("float64") - reference.averaged(x, PARTNERS)
    assert np.abs(error).max() <= 0.5
    np.testing.assert_array_equal(mixed[3], x[3])


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "uint16", "bool"])
def test_other_integers_become_float32(rng, dtype):
    x = rng.integers(0, 2, size=(6, 4, 4, 3)).astype(dtype)
    for partners in (PARTNERS, None):
        mixed, _ = to_numpy(MixAvg().apply((x, LABELS), partners))
        assert mixed.dtype == "float32"
        expected = reference.averaged(x, partners if partners is not None else range(6))
        np.testing.assert_array_equal(mixed, expected)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", "float32", "float16"])
@pytest.mark.parametrize("shape", [(6,), (6, 1)])
def test_class_numbers_become_averaged_one_hot_labels(shape, dtype):
    y = np.array([0, 1, 2, 3, 0, 1], dtype).reshape(shape)
    _, mixed = to_numpy(MixAvg(num_classes=4).apply((LABELS, y), PARTNERS))
    assert mixed.dtype == "float32"
    expected = reference.averaged(reference.one_hot(y, 4), PARTNERS)
    np.testing.assert_array_equal(mixed, expected)


@pytest.mark.parametrize("kind", ["one-hot", "soft", "multi-label", "one column"])
@pytest.mark.parametrize("num_classes", [None, "given"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32", "bool"])
def test_encoded_labels_are_averaged_and_never_below_float32(
    rng, kind, num_classes, dtype
):
    if dtype == "float64" and keras.backend.backend() == "jax":
        pytest.skip("JAX has float64 only when asked")
    y = {
        "one-hot": LABELS,
        "soft": rng.dirichlet(np.ones(4), size=6),
        "multi-label": rng.integers(0, 2, size=(6, 4)),
        "one column": 3 * rng.uniform(size=(6, 1)),
    }[kind]
    y = y.astype(dtype)
    if num_classes:
        num_classes = y.shape[1]
    elif kind == "one column":
        pytest.skip("refused, since it may be class numbers")
    layer = MixAvg(num_classes=num_classes)
    _, mixed = to_numpy(layer.apply((LABELS, y), PARTNERS))
    assert mixed.dtype == ("float64" if dtype == "float64" else "float32")
    assert_close(mixed, reference.averaged(y, PARTNERS))


@pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 3)])
@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_sample_weights_are_averaged_likewise(rng, shape, dtype):
    w = rng.integers(0, 9, size=shape).astype(dtype)
    for batch in ((LABELS, LABELS, w), {"images": LABELS, "labels": LABELS}):
        if isinstance(batch, dict):
            batch["sample_weights"] = w
        mixed = to_numpy(MixAvg().apply(batch, PARTNERS))
        mixed = mixed["sample_weights"] if isinstance(batch, dict) else mixed[2]
        assert mixed.dtype == "float32"
        np.testing.assert_array_equal(mixed, reference.averaged(w, PARTNERS))
