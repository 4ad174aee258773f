import numpy as np
import pytest
import reference
import tensorflow as tf

from keras_mixavg import MixAvg, averaging

pytestmark = [pytest.mark.once, pytest.mark.numerical]

DTYPES = ["uint8", "int32", "float16", "bfloat16", "float32", "float64"]


def batches(dtype, drop_remainder, samples=21, size=8):
    x = np.random.default_rng(0).integers(0, 256, (samples, 3, 5, 2))
    data = tf.data.Dataset.from_tensor_slices((tf.cast(x, dtype), np.arange(samples)))
    data = data.batch(size, drop_remainder)
    layer = MixAvg(rate=0.7, num_classes=samples, seed=4)
    return layer, data, data.map(layer)


def to_numpy(dataset):
    return [
        [np.asarray(tf.cast(part, "float64")) for part in batch] for batch in dataset
    ]


@pytest.mark.parametrize(
    "dtype, drop_remainder", [("uint8", True), *((dtype, False) for dtype in DTYPES)]
)
def test_compiled_maps_give_what_uncompiled_ones_do(monkeypatch, dtype, drop_remainder):
    """The reference, from the labels, which number the samples."""
    _, data, mapped = batches(dtype, drop_remainder)
    compiled = to_numpy(mapped)
    for (x, y), (mixed, labels) in zip(to_numpy(data), compiled, strict=True):
        own = y.astype(int)
        pairs = [np.flatnonzero(row) for row in labels]
        partners = np.array(
            [
                [p for p in pair if p != i][0] - own[0] if len(pair) == 2 else k
                for k, (i, pair) in enumerate(zip(own, pairs, strict=True))
            ]
        )
        expected = reference.averaged(x, partners)
        if dtype == "uint8":
            expected = np.floor(expected + 0.5)
        np.testing.assert_allclose(mixed, expected, rtol=8e-3 if "16" in dtype else 0)
    monkeypatch.setattr(averaging, "has_xla", lambda: False)
    for one, other in zip(
        compiled, to_numpy(batches(dtype, drop_remainder)[2]), strict=True
    ):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


def is_compiled(layer, spec):
    inputs = (tf.TensorSpec(spec, "uint8"), tf.TensorSpec((spec[0],), "int64"))
    traced = tf.function(lambda x, y: layer((x, y))).get_concrete_function(*inputs)
    names = {
        function.signature.name
        for function in traced.graph.as_graph_def().library.function
        if function.attr["_XlaMustCompile"].b
    }
    return bool(names)


@pytest.mark.parametrize("spec", [(8, 4, 4, 3), (None, 4, 4, 3), (None, 7)])
def test_known_shapes_are_compiled(spec):
    assert is_compiled(MixAvg(num_classes=5), spec)


def test_unknown_shapes_and_a_missing_xla_fall_back(monkeypatch):
    assert not is_compiled(MixAvg(num_classes=5), (None, None, None, 3))
    assert not is_compiled(MixAvg(num_classes=5), (8, None))
    monkeypatch.setattr(averaging, "has_xla", lambda: False)
    assert not is_compiled(MixAvg(num_classes=5), (8, 4, 4, 3))


def test_sequences_of_every_length_are_averaged_without_xla():
    lengths = [3, 5, 4, 3]
    data = tf.data.Dataset.from_generator(
        lambda: ((np.full((2, n), n, "float32"), np.array([0, 1])) for n in lengths),
        output_signature=(tf.TensorSpec((None, None)), tf.TensorSpec((None,), "int64")),
    )
    for n, (x, _) in zip(lengths, data.map(MixAvg(num_classes=2)), strict=True):
        np.testing.assert_array_equal(x, np.full((2, n), n))


def test_xla_counts_as_missing_when_it_fails(monkeypatch):
    def fails(*args, **kwargs):
        raise tf.errors.UnimplementedError(None, None, "no XLA")

    monkeypatch.setattr(tf, "function", fails)
    assert not averaging.has_xla()
    monkeypatch.undo()
    assert averaging.has_xla()


def test_numbers_may_be_checked_from_any_moment_on():
    """`enable_check_numerics` adds operations that XLA lacks."""
    data = tf.data.Dataset.from_tensors((np.ones((4, 3), "float32"), np.arange(4)))
    list(data.apply(MixAvg(num_classes=4)))
    tf.debugging.enable_check_numerics()
    try:
        for mixed in (data.apply, data.map):
            for x, _ in mixed(MixAvg(num_classes=4)):
                np.testing.assert_array_equal(x, np.ones((4, 3)))
        bad = data.map(lambda x, y: (tf.math.log(x - 2), y))
        with pytest.raises(tf.errors.InvalidArgumentError, match="NaN"):
            list(bad.apply(MixAvg(num_classes=4)))
    finally:
        tf.debugging.disable_check_numerics()
    assert averaging.has_xla()


def test_tensorflow_does_not_warn_of_tracing_when_many_datasets_are_mapped(
    caplog, monkeypatch
):
    """It does once five calls out of five of a function have been traced."""
    module = "tensorflow.python.eager.polymorphic_function.polymorphic_function"
    most = "FREQUENT_TRACING_WARNING_MAX_WARNING_PER_DETECTOR"  # in a process
    monkeypatch.setattr(pytest.importorskip(module), most, 1000)
    monkeypatch.setattr(tf.get_logger(), "propagate", True)
    caplog.set_level("WARNING", "tensorflow")
    data = tf.data.Dataset.from_tensors((np.ones((4, 3), "float32"), np.arange(4)))
    for _ in range(8):
        list(MixAvg(num_classes=4)(data))
    assert not caplog.records
