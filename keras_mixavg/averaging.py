"""Each entry of a batch averaged with its partners, on any backend or on the host.

`ops` is a Keras backend, or `OnHost` for NumPy arrays.
"""

from typing import Any

from keras_mixavg import checks, equations, xla
from keras_mixavg._keras import in_tf_graph
from keras_mixavg.batch import AS_IS, dtype_of, holds_class_numbers, is_float

Tensor = Any


def average_images(x: Tensor, partners: Tensor | None, ops: Any, _: Any) -> Tensor:
    """Equation (2). Floats and uint8 keep their dtype, other integers do not."""
    dtype = dtype_of(x)
    if partners is None:
        keeps_dtype = dtype == "uint8" or is_float(dtype)
        return x if keeps_dtype else ops.cast(x, "float32")

    def average(x: Tensor, partners: Tensor) -> Tensor:
        return _average_with_partners(x, partners, ops)

    if ops.name == "tensorflow" and in_tf_graph():
        return xla.average(average, x, partners)
    return average(x, partners)


def _average_with_partners(x: Tensor, partners: Tensor, ops: Any) -> Tensor:
    """One rounding, and no overflow: narrow floats are averaged in float32."""
    dtype = dtype_of(x)
    if dtype == "uint8":
        partner_values = ops.numpy.take(x, partners, axis=0)
        return equations.average_of_bytes(x, partner_values, ops.numpy)
    wide = dtype if dtype in ("float32", "float64") else "float32"
    mean = _average(ops.cast(x, wide), partners, ops)
    return ops.cast(mean, x.dtype) if is_float(dtype) else mean


def average_labels(
    y: Tensor, partners: Tensor | None, ops: Any, num_classes: Any
) -> Tensor:
    """Equation (3). Class numbers are made one-hot first."""
    checked = ops.name == "tensorflow" and in_tf_graph()
    if num_classes == 1:
        y = ops.numpy.reshape(y, (-1, 1))
    elif holds_class_numbers(y, num_classes):
        if checked:
            checks.assert_values(y, num_classes)
        y = ops.cast(ops.numpy.reshape(y, (-1,)), "int32")
        y = ops.nn.one_hot(y, num_classes, dtype="float32")
    elif checked and num_classes is not AS_IS and "int" in dtype_of(y):
        checks.assert_values(y, None)
    return average_weights(y, partners, ops)


def average_weights(
    w: Tensor, partners: Tensor | None, ops: Any, _: Any = None
) -> Tensor:
    """Equation (3), in float32 at least."""
    w = ops.cast(w, "float64" if dtype_of(w) == "float64" else "float32")
    return w if partners is None else _average(w, partners, ops)


def _average(values: Tensor, partners: Tensor, ops: Any) -> Tensor:
    return equations.average(values, ops.numpy.take(values, partners, axis=0))


AVERAGE = {
    "images": average_images,
    "labels": average_labels,
    "weights": average_weights,
}
