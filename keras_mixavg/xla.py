"""XLA inside `tf.data`, where it is there and the shape of a sample is known.

Gathering the partners and averaging are then one pass over the memory instead of four
and more. benchmarks/input_pipeline.py decided this.
"""

from collections.abc import Callable
from typing import Any

Tensor = Any


def average(
    function: Callable[[Tensor, Tensor], Tensor], x: Tensor, partners: Tensor
) -> Tensor:
    """`function(x, partners)` in a graph, compiled where that pays.

    XLA compiles anew for every shape: once for whole batches and once for the rest of
    an epoch. Where samples differ in shape it would do so for every batch, so these
    are computed as ever.
    """
    if None in tuple(x.shape)[1:] or not is_there():
        return function(x, partners)
    import tensorflow as tf

    return tf.ensure_shape(
        tf.function(function, jit_compile=True, autograph=False)(x, partners), x.shape
    )


def is_there() -> bool:
    """Whether XLA compiles for the CPU, which `tf.data` runs on.

    Tried anew for each graph: `tf.debugging.enable_check_numerics` adds operations that
    XLA does not have.
    """
    import tensorflow as tf

    try:
        with tf.init_scope(), tf.device("CPU"):
            tf.function(lambda x: x + 1, jit_compile=True)(tf.zeros(()))
    except (tf.errors.OpError, ValueError, NotImplementedError):
        return False
    return True
