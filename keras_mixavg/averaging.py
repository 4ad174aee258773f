"""Equations (2) and (3) on any backend, on the host, and compiled by XLA in `tf.data`.

`ops` is a Keras backend, or `OnHost` for NumPy arrays and the tensors of a library that
is not Keras' backend. The workers of a data loader then need no backend, no device and
no graph.
"""

import types
from collections.abc import Callable
from typing import Any

import numpy as np

from keras_mixavg import equations
from keras_mixavg._keras import in_tf_graph
from keras_mixavg.batch import (
    as_numpy,
    dtype_of,
    holds_class_numbers,
    is_float,
    map_entries,
)

Tensor = Any


def average_entries(
    entries: Any, partners: Tensor | None, num_classes: Any, ops: Any
) -> Any:
    """The entries of a batch, each leaf averaged with its partners.

    Args:
        entries: a tuple or dict, as from `batch.entries`.
        partners: `(batch,)` integers, or None to average nothing.
        num_classes: as of MixAvg.
        ops: a Keras backend, or `OnHost`.

    Returns:
        The entries in their structure, each leaf as a tensor of its own library.
    """
    if partners is not None:
        partners = ops.convert_to_tensor(partners)

    def of_leaf(leaf: Any, role: str, classes: Any) -> Tensor:
        tensor = ops.convert_to_tensor(leaf)
        if role == "images":
            result = average_images(tensor, partners, ops)
        elif role == "labels":
            result = average_labels(tensor, partners, ops, classes)
        else:
            result = average_weights(tensor, partners, ops)
        return _of_library(leaf, result) if ops is OnHost else result

    return map_entries(of_leaf, entries, num_classes)


def average_images(x: Tensor, partners: Tensor | None, ops: Any) -> Tensor:
    """Equation (2). Floats and uint8 keep their dtype, other integers become float32.

    There is one rounding and no overflow: narrow floats are averaged in float32.
    """
    dtype = dtype_of(x)
    if partners is None:
        return x if dtype == "uint8" or is_float(dtype) else ops.cast(x, "float32")

    def midpoint(x: Tensor, partners: Tensor) -> Tensor:
        if dtype == "uint8":
            partner_values = ops.numpy.take(x, partners, axis=0)
            return equations.average_of_bytes(x, partner_values, ops.numpy)
        wide = ops.cast(x, dtype if dtype in ("float32", "float64") else "float32")
        mean = equations.average(wide, ops.numpy.take(wide, partners, axis=0))
        return ops.cast(mean, x.dtype) if is_float(dtype) else mean

    if ops.name == "tensorflow" and in_tf_graph():
        return _compiled(midpoint, x, partners)
    return midpoint(x, partners)


def average_labels(
    y: Tensor, partners: Tensor | None, ops: Any, num_classes: Any
) -> Tensor:
    """Equation (3), in float32 at least. Class numbers are made one-hot first."""
    if num_classes == 1:
        y = ops.numpy.reshape(y, (-1, 1))
    elif holds_class_numbers(y, num_classes):
        y = ops.cast(ops.numpy.reshape(y, (-1,)), "int32")
        y = ops.nn.one_hot(y, num_classes, dtype="float32")
    y = _at_least_float32(y, ops)
    if partners is None:
        return y
    return equations.average(y, ops.numpy.take(y, partners, axis=0))


def average_weights(w: Tensor, partners: Tensor | None, ops: Any) -> Tensor:
    """Equation (3), in float32 at least."""
    w = _at_least_float32(w, ops)
    if partners is None:
        return w
    return equations.average(w, ops.numpy.take(w, partners, axis=0))


def _at_least_float32(values: Tensor, ops: Any) -> Tensor:
    return ops.cast(values, "float64" if dtype_of(values) == "float64" else "float32")


# --- On the host ----------------------------------------------------------------------


class OnHost:
    """The part of a Keras backend that MixAvg uses, on NumPy arrays."""

    name = "numpy"
    numpy = np
    convert_to_tensor = staticmethod(as_numpy)

    @staticmethod
    def cast(x: np.ndarray, dtype: Any) -> np.ndarray:
        return x.astype(dtype, copy=False)

    @staticmethod
    def _one_hot(x: np.ndarray, num_classes: int, dtype: Any) -> np.ndarray:
        return (x[:, None] == np.arange(num_classes)).astype(dtype)

    nn = types.SimpleNamespace(one_hot=_one_hot)


def _of_library(leaf: Any, array: np.ndarray) -> Tensor:
    """`array` as a tensor of the library that `leaf` came from."""
    libraries = {cls.__module__.partition(".")[0] for cls in type(leaf).__mro__}
    if "torch" in libraries:
        import torch

        return torch.from_numpy(np.ascontiguousarray(array))
    if "tensorflow" in libraries:
        import tensorflow as tf

        return tf.convert_to_tensor(array)
    if libraries & {"jax", "jaxlib"}:
        import jax

        return jax.numpy.asarray(array)
    return array


# --- Under XLA ------------------------------------------------------------------------


def _compiled(
    function: Callable[[Tensor, Tensor], Tensor], x: Tensor, partners: Tensor
) -> Tensor:
    """`function(x, partners)` in a graph, compiled where that is faster.

    Compiled, it gathers the partners and averages in one pass over the memory instead
    of four or more, as benchmarks/speed/input_pipeline.py of the repository shows.

    XLA compiles for every shape: once for whole batches and once for the last batch of
    an epoch. Where samples differ in shape it would compile for every batch, so these
    are averaged without it.
    """
    if None in tuple(x.shape)[1:] or not has_xla():
        return function(x, partners)
    import tensorflow as tf

    compiled = tf.function(function, jit_compile=True, autograph=False)
    return tf.ensure_shape(compiled(x, partners), x.shape)


def has_xla() -> bool:
    """Whether XLA compiles for the CPU, which `tf.data` runs on.

    Tried for each graph: `tf.debugging.enable_check_numerics` adds operations that XLA
    does not have. Traced by hand, since TensorFlow warns of a function that it has to
    trace in five calls out of five.
    """
    import tensorflow as tf

    try:
        with tf.init_scope(), tf.device("CPU"):
            plus_one = tf.function(lambda x: x + 1, jit_compile=True)
            plus_one.get_concrete_function(tf.TensorSpec(()))(tf.zeros(()))
    except (tf.errors.OpError, ValueError, NotImplementedError):
        return False
    return True
