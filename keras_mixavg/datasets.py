"""MixAvg on a `tf.data.Dataset`: a number beside each batch says which pairs it gets.

The number is `epoch * 2**32 + batch`. Pairs are computed from it and the seed alone, so
they are the same in any order, at any parallelism and in any process. No variable is
needed: the dataset can be serialized, and its iterators can be saved.
"""

import functools
import numbers
from collections.abc import Callable
from typing import Any

Tensor = Any
Dataset = Any

COUNTED = 1024  # the epochs that a dataset can count, and a rate can differ in
BATCHES = 2**32  # of one epoch
AUTOTUNE = -1  # `tf.data.AUTOTUNE`, where TensorFlow is not imported yet


def with_pairs(
    dataset: Dataset,
    average: Callable[[Any, Any], Any],
    seed: int | None,
    rate: float | list[float],
    epoch: Any,
) -> Dataset:
    """Zip a dataset with numbers, and map `average(batch, draw)` over both.

    Args:
        dataset: of batches.
        average: called with a batch and a function that draws the partners of so many
            samples, or None to average nothing.
        seed: int, or None for pairs that differ in each iteration of each process.
        rate: float, or a list: one for each epoch.
        epoch: as of `MixAvg`'s call.
    """
    import tensorflow as tf

    if rate == 0:
        whole = tf.data.Dataset.zip((dataset,))
        return mapped(whole, lambda batch: average(batch, None))
    streams = [dataset, _numbers(epoch)]
    if seed is None:
        streams.append(tf.data.Dataset.random(rerandomize_each_iteration=True))

    def averaged(batch: Any, number: Tensor, seed: Any = seed) -> Any:
        seed = _as_int64(seed) if isinstance(seed, int) else seed
        key = tf.stack([tf.cast(seed, "int64"), number])
        return average(batch, lambda size: draw(key, size, _rate_of(rate, number)))

    return mapped(tf.data.Dataset.zip(*streams), averaged)


def mapped(
    dataset: Dataset, function: Callable, parallel_calls: Any = AUTOTUNE
) -> Dataset:
    """A map in order, parallel by default; AutoGraph need not read the function."""
    import tensorflow as tf

    function = tf.autograph.experimental.do_not_convert(function)
    return dataset.map(function, num_parallel_calls=parallel_calls)


def draw(key: Tensor, size: Any, rate: Any) -> Tensor:
    """Equation (1), and `rate` of equation (2), in as few operations as it takes.

    Args:
        key: `(2,)` int64. The same key gives the same pairs.
        size: int, or a scalar integer tensor: the samples of the batch.
        rate: float, or a scalar tensor.

    Returns:
        `(size,)` int32: the partner of each sample, itself if it is not averaged.
    """
    import tensorflow as tf

    samples = tf.range(size)
    uniform = tf.raw_ops.StatelessRandomUniform(shape=[2, size], seed=key)
    by_value, chance = tf.unstack(uniform)
    order = tf.raw_ops.TopKV2(input=by_value, k=size, sorted=True).indices
    # partners[order[i]] = order[i + 1]
    partners = tf.dynamic_stitch([order], [tf.roll(order, -1, axis=0)])
    return tf.ensure_shape(tf.where(chance < rate, partners, samples), samples.shape)


def _numbers(epoch: Any) -> Dataset:
    """The numbers of the batches of one epoch, or of the next one each time."""
    import tensorflow as tf

    if isinstance(epoch, numbers.Integral) and epoch < 0:
        raise ValueError(
            "`epoch` must be the number of an epoch, counted from 0, or an integer "
            f"tensor that holds it. Received: epoch={epoch}"
        )
    count = epoch is None or isinstance(epoch, numbers.Integral)
    if epoch is None and not tf.executing_eagerly():
        raise ValueError(
            "Inside a function of a dataset, such as that of `flat_map`, MixAvg cannot "
            "count epochs. Received: epoch=None. Pass the epoch, an integer tensor: "
            "layer(dataset, epoch=...)."
        )
    if count and tf.executing_eagerly():
        once, first, known = _one_number_each_time(), int(epoch or 0), _known()
    else:
        once, first, known = tf.data.Dataset.from_tensors(0), epoch, None

    def of_one_epoch(number: Tensor) -> Dataset:
        this = tf.cast(first, "int64")
        if known is not None:
            this += _iteration(number, known)
        return tf.data.Dataset.range(this * BATCHES, (this + 1) * BATCHES)

    endless = once.flat_map(tf.autograph.experimental.do_not_convert(of_one_epoch))
    return endless.repeat()  # never does, but tells `zip` that it will not be short


def _iteration(number: Tensor, known: Any) -> Tensor:
    """How often `_one_number_each_time` was iterated before it gave `number`.

    `tf.data` keeps no such count, but `rerandomize_each_iteration` gives another number
    each time, always in the same order. So this looks up which one it is. An iteration
    past the last that is known gets a number of its own, above all others.
    """
    import tensorflow as tf

    found = tf.equal(known, number)
    unknown = COUNTED + number % 2**30
    return tf.where(tf.reduce_any(found), tf.argmax(found), unknown)


@functools.cache
def _known() -> Any:
    import tensorflow as tf

    with tf.init_scope():
        numbers = _one_number_each_time()
        each_time = tf.data.Dataset.range(COUNTED).flat_map(
            tf.autograph.experimental.do_not_convert(lambda _: numbers)
        )
        return next(iter(each_time.batch(COUNTED))).numpy()


def _one_number_each_time() -> Dataset:
    """`Dataset.random(..., rerandomize_each_iteration=True).take(1)` of fixed seeds.

    By the operation, since the method would mix in TensorFlow's global seed.
    """
    import tensorflow as tf

    random = tf.raw_ops.RandomDatasetV2(
        seed=1,
        seed2=2,
        seed_generator=tf.raw_ops.DummySeedGenerator(),
        rerandomize_each_iteration=True,
        output_types=[tf.int64],
        output_shapes=[[]],
    )
    return tf.data.experimental.from_variant(random, tf.TensorSpec((), "int64")).take(1)


def _rate_of(rates: Any, number: Tensor) -> Any:
    import tensorflow as tf

    if not isinstance(rates, list):
        return rates
    epoch = number // BATCHES
    message = f"`rate` is known for {len(rates)} epochs only. Received: epoch ="
    known = tf.debugging.Assert(epoch < len(rates), [message, epoch])
    with tf.control_dependencies([known]):
        return tf.gather(tf.constant(rates, "float32"), epoch)


def _as_int64(seed: int) -> int:
    """The number of the same lowest 64 bits."""
    return (seed + 2**63) % 2**64 - 2**63
