"""A key for each batch of a `tf.data.Dataset`, from which its pairs are drawn.

Pairs are computed from the key alone, so they are the same in any order, at any
parallelism and in any process. Unless the epoch is given, no variable is needed: the
dataset can be serialized, and its iterators can be saved.
"""

import numbers
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from keras_mixavg import checks
from keras_mixavg.current_epoch import ENDLESS, CurrentEpoch

Tensor = Any
Dataset = Any

MAX_EPOCHS = 2**31 - 1
AUTOTUNE = -1  # `tf.data.AUTOTUNE`, where TensorFlow is not imported yet


def is_dataset(batch: Any) -> bool:
    tf = sys.modules.get("tensorflow")  # without it there is none
    return tf is not None and isinstance(batch, tf.data.Dataset)


def with_keys(dataset: Dataset, seed: int | None, rate: Any, epoch: Any) -> Dataset:
    """Elements `(batch, key)`, one for each batch of a dataset.

    Args:
        dataset: of batches.
        seed: int, or None for keys that differ in each run.
        rate: float, or a function of the epoch. With 0 nothing is drawn, and the
            elements are `(batch,)`.
        epoch: as of `MixAvg`'s call. With None each iteration has other keys.

    Returns:
        A dataset of the same length. Each key is `(numbers, rate)`, see `draws.Key`.
    """
    import tensorflow as tf

    if not callable(rate) and rate == 0:
        return tf.data.Dataset.zip((dataset,))
    if epoch is None:
        _check_none_is_needed(rate)
        rates = tf.data.Dataset.from_tensors(np.float32(rate)).repeat()
        keys = tf.data.Dataset.zip(_random_numbers(seed), rates)
    else:
        keys = _keys_of_epochs(seed, _epochs(dataset, rate, epoch))
    return tf.data.Dataset.zip(dataset, keys)


def mapped(
    dataset: Dataset, function: Callable, parallel_calls: Any = AUTOTUNE
) -> Dataset:
    """A map in order, parallel by default, without AutoGraph."""
    import tensorflow as tf

    function = tf.autograph.experimental.do_not_convert(function)
    return dataset.map(function, num_parallel_calls=parallel_calls)


def _check_none_is_needed(rate: Any) -> None:
    """Raise where the epoch is needed."""
    import tensorflow as tf

    if callable(rate):
        raise ValueError(
            "A `rate` that is a function of the epoch needs the epoch, which only "
            "`fit` knows. Received: epoch=None. Make a callback, epoch = "
            "keras_mixavg.CurrentEpoch(), call the layer with it, data = "
            "layer(dataset, epoch=epoch), and pass it to `fit`, "
            "model.fit(data, callbacks=[epoch])."
        )
    if not tf.executing_eagerly():
        raise ValueError(
            "Inside a function of a dataset, such as that of `flat_map`, MixAvg would "
            "draw the same pairs each time. Received: epoch=None. Pass the epoch, an "
            "integer tensor: layer(dataset, epoch=...)."
        )


def _random_numbers(seed: int | None) -> Dataset:
    """Endless: other numbers in each iteration; with a seed, the same in each run."""
    import tensorflow as tf

    if seed is None:
        random = tf.data.Dataset.random(rerandomize_each_iteration=True)
        return random.batch(2, drop_remainder=True)
    # The operation, since the method would mix in TensorFlow's global seed.
    variant = tf.raw_ops.RandomDatasetV2(
        seed=_as_int64(seed),
        seed2=1,  # two zeros would mean no seed
        seed_generator=tf.raw_ops.DummySeedGenerator(),
        rerandomize_each_iteration=True,
        output_types=[tf.int64],
        output_shapes=[[]],
    )
    random = tf.data.experimental.from_variant(variant, tf.TensorSpec((), "int64"))
    return random.batch(2, drop_remainder=True)


def _keys_of_epochs(seed: int | None, epochs: Dataset) -> Dataset:
    """`(key, rate)` of each batch, for elements `(epoch, rate, batches)`."""
    import tensorflow as tf

    def of_one(epoch: Tensor, rate: Tensor, batches: Tensor) -> Dataset:
        first = epoch * ENDLESS
        return mapped(
            tf.data.Dataset.range(first, first + batches),
            lambda number: (tf.stack([_as_int64(seed or 0), number]), rate),
            None,
        )

    keys = epochs.flat_map(tf.autograph.experimental.do_not_convert(of_one))
    keys = keys.repeat()  # endless before, but `zip` does not know the length of that
    if seed is not None:
        return keys
    both = tf.data.Dataset.zip(_random_numbers(None), keys)
    return mapped(both, lambda numbers, key: (numbers, key[1]), None)


def _epochs(dataset: Dataset, rate: Any, epoch: Any) -> Dataset:
    """`(epoch, rate, batches)` of each epoch of an iteration.

    The first epoch is read when the iteration begins.
    """
    import tensorflow as tf

    begin = _iterations(dataset, rate, epoch)
    one = tf.data.Dataset.from_tensors(0)

    def from_the_first(_: Tensor) -> Dataset:
        first, batches = begin()
        epochs = tf.data.Dataset.range(first, MAX_EPOCHS)
        return mapped(epochs, lambda e: (e, _rate_of(rate, e), batches), None)

    return one.flat_map(tf.autograph.experimental.do_not_convert(from_the_first))


def _iterations(
    dataset: Dataset, rate: Any, epoch: Any
) -> Callable[[], tuple[Tensor, Tensor]]:
    """A function that returns, in a graph, the first epoch of an iteration, and how
    many batches belong to each epoch."""
    import tensorflow as tf

    if isinstance(epoch, CurrentEpoch):
        length = int(dataset.cardinality()) if tf.executing_eagerly() else -1
        begin = epoch.iterations(length)

        def begin_on_host() -> tuple[np.int64, np.int64]:
            first, batches, epochs = begin()
            if callable(rate):
                for number in range(first, epochs):
                    checks.checked_rate_of(rate, number)
            return np.int64(first), np.int64(batches)

        def begin_in_graph() -> tuple[Tensor, Tensor]:
            first, batches = tf.numpy_function(begin_on_host, [], ["int64", "int64"])
            return tf.ensure_shape(first, ()), tf.ensure_shape(batches, ())

        return begin_in_graph
    if isinstance(epoch, numbers.Number) or not hasattr(epoch, "dtype"):
        raise ValueError(
            "`epoch` must be a keras_mixavg.CurrentEpoch that `fit` gets too, or an "
            "integer tensor or variable that holds the epoch when an iteration begins. "
            f"Received: epoch={checks.brief(epoch)}. In a loop of your own assign the "
            "number to tf.Variable(0)."
        )
    return lambda: (tf.cast(epoch, "int64"), tf.constant(ENDLESS, "int64"))


def _rate_of(rate: Any, epoch: Tensor) -> Tensor:
    import tensorflow as tf

    if not callable(rate):
        return tf.constant(rate, "float32")

    def of_number(epoch: np.int64) -> np.float32:
        return np.float32(checks.checked_rate_of(rate, int(epoch)))

    return tf.ensure_shape(tf.numpy_function(of_number, [epoch], "float32"), ())


def _as_int64(seed: int) -> int:
    """The signed number with the same lowest 64 bits."""
    return (seed + 2**63) % 2**64 - 2**63
