"""XLA inside `tf.data`, where it is there and the shape is known.

Gathering the partners and averaging are then one pass over the memory instead of four
and more. benchmarks/input_pipeline.py decided this.
"""

import functools
from collections.abc import Callable
from typing import Any

Tensor = Any


class Compiled:
    """`function(x, partners)`, compiled where that pays; to be called in a graph.

    XLA compiles anew for every shape. Of a batch size that is not known beforehand,
    the first that comes is compiled, and others, such as the rest of an epoch, are
    computed as ever: no batch waits for a compilation but the first.
    """

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.function = function
        self.sizes: dict[Any, Any] = {}  # the compiled batch size, by shape and dtype

    def __call__(self, x: Tensor, partners: Tensor) -> Tensor:
        if None in tuple(x.shape)[1:] or not is_there():
            return self.function(x, partners)
        import tensorflow as tf

        compiled = tf.function(self.function, jit_compile=True)
        if x.shape[0] is not None:
            return compiled(x, partners)
        key = (tuple(x.shape), x.dtype)
        if key not in self.sizes:
            with tf.init_scope(), tf.device("CPU"):
                self.sizes[key] = tf.Variable(-1, trainable=False, dtype="int32")
        size = tf.shape(x)[0]
        known = self.sizes[key].value()
        known = tf.where(known < 0, size, known)
        self.sizes[key].assign(known)
        result = tf.cond(
            size == known,
            lambda: compiled(x, partners),
            lambda: self.function(x, partners),
        )
        return tf.ensure_shape(result, x.shape)


@functools.cache
def is_there() -> bool:
    """Whether this TensorFlow has XLA for the CPU, which `tf.data` runs on."""
    import tensorflow as tf

    try:
        with tf.init_scope(), tf.device("CPU"):
            tf.function(lambda x: x + 1, jit_compile=True)(tf.zeros(()))
    except (tf.errors.OpError, ValueError, NotImplementedError):
        return False
    return True
