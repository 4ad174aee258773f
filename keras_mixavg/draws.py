"""Every way to draw a pairing: equation (1), and `rate` of equation (2).

- `from_key`: for a batch of a `tf.data.Dataset`, from the key that came with it.
- `from_generator`: on the host, from a generator of NumPy, the caller's or one of
  `HostGenerators`.
- `from_keras`: on the backend, from Keras' seed generator.

Each returns `(batch,)` integers: the partner of each sample, which is the sample itself
if it is not averaged.
"""

import itertools
import multiprocessing
import os
import sys
import threading
import zlib
from typing import Any, NamedTuple

import numpy as np

from keras_mixavg import equations

Tensor = Any

ONE_AT_A_TIME = threading.Lock()  # a seed generator is read, then written


class Key(NamedTuple):
    """What the pairs of one batch of a dataset are drawn from."""

    numbers: Tensor  # (2,) int64; the same numbers give the same pairs
    rate: Tensor  # a scalar


def from_key(key: Key, size: Any) -> Tensor:
    """In a graph of TensorFlow, in as few operations as possible."""
    import tensorflow as tf

    samples = tf.range(size)
    uniform = tf.raw_ops.StatelessRandomUniform(shape=[2, size], seed=key.numbers)
    by_value, chance = tf.unstack(uniform)
    order = tf.raw_ops.TopKV2(input=by_value, k=size, sorted=True).indices
    # equations.pairing: partners[order[i]] = order[i + 1]
    partners = tf.dynamic_stitch([order], [tf.roll(order, -1, axis=0)])
    partners = tf.where(chance < key.rate, partners, samples)
    return tf.ensure_shape(partners, samples.shape)


def from_generator(rng: np.random.Generator, size: int, rate: float) -> np.ndarray:
    order = rng.permutation(size).astype("int32")
    chance = rng.random(size)
    samples = np.arange(size, dtype="int32")
    return np.where(chance < rate, equations.pairing(order), samples)


def from_keras(ops: Any, seed: Any, size: Any, rate: float) -> Tensor:
    samples = ops.numpy.arange(size, dtype="int32")
    with ONE_AT_A_TIME:
        order = ops.random.shuffle(samples, seed=seed)
        chance = ops.random.uniform((size,), seed=seed)
    return ops.numpy.where(chance < rate, equations.pairing(order, ops.numpy), samples)


# --- Threads and processes ------------------------------------------------------------


class HostGenerators:
    """A generator for each call of a layer, from its seed, process and call number.

    So threads never share one, worker processes that hold copies of a layer draw
    different pairs, and a run that is repeated draws the same.
    """

    forks = 0  # of this process, so far

    def __init__(self, seed: int) -> None:
        self.seed = seed % 2**64
        self.numbers = itertools.count()  # `next` of it is one step for all threads
        self.copies = itertools.count(1)
        self.pid, self.forks_before = os.getpid(), HostGenerators.forks
        self.copy = 0

    def next(self) -> np.random.Generator:
        forked = os.getpid() != self.pid
        fork = HostGenerators.forks - self.forks_before if forked else 0
        worker = _number_of_this_worker() if self.copy else 0
        place = [self.copy, worker, fork, next(self.numbers)]
        return np.random.default_rng([self.seed, *place])

    def new_copy(self) -> tuple[int, int]:
        """What a copy of the layer must know, which may go to another process."""
        return os.getpid(), next(self.copies)

    def become(self, copy: tuple[int, int]) -> None:
        """Draw other pairs than the original, unless it is in this process too."""
        pid, number = copy
        if pid != os.getpid():
            self.copy = number


def data_loader_worker() -> Any:
    """torch's information on this process if it is a `DataLoader` worker, or None."""
    if "torch" not in sys.modules:
        return None
    from torch.utils import data

    return data.get_worker_info()


def _number_of_this_worker() -> int:
    """torch's number of a worker, or one from the name of a process."""
    worker = data_loader_worker()
    if worker is not None:
        return worker.id
    return zlib.crc32(multiprocessing.current_process().name.encode())


def _count_fork() -> None:
    HostGenerators.forks += 1


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(before=_count_fork)
