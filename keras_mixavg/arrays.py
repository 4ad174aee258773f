"""Averaging on the host: NumPy arrays, and the tensors of a library that is not Keras'.

The workers of a data loader need no backend, no device and no graph for this.
"""

import itertools
import multiprocessing
import os
import sys
import types
import zlib
from typing import Any

import numpy as np

Tensor = Any


class OnHost:
    """The part of a Keras backend that MixAvg uses, on NumPy arrays."""

    name = "numpy"
    numpy = np

    @staticmethod
    def convert_to_tensor(x: Any) -> np.ndarray:
        if hasattr(x, "detach"):  # torch's
            x = x.detach().cpu()
        return np.asarray(x)

    @staticmethod
    def cast(x: np.ndarray, dtype: Any) -> np.ndarray:
        return x.astype(dtype, copy=False)

    @staticmethod
    def _one_hot(x: np.ndarray, num_classes: int, dtype: Any) -> np.ndarray:
        return (x[:, None] == np.arange(num_classes)).astype(dtype)

    nn = types.SimpleNamespace(one_hot=_one_hot)


def as_before(leaf: Any, array: np.ndarray) -> Tensor:
    """`array` as a tensor of the library that `leaf` came from; NumPy's stay."""
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


class Draws:
    """A generator for each call of a layer: of its seed, its process and its number.

    So threads never share one, worker processes that hold copies of a layer draw
    different pairs, and a run that is made again draws the same.
    """

    forks = 0  # of this process, so far

    def __init__(self, seed: int) -> None:
        self.seed = seed % 2**64
        self.numbers = itertools.count()  # `next` of it is one step for all threads
        self.copies = itertools.count(1)
        self.pid, self.forks_before = os.getpid(), Draws.forks
        self.copy = 0

    def next(self) -> np.random.Generator:
        forked = os.getpid() != self.pid
        fork = Draws.forks - self.forks_before if forked else 0
        worker = _number_of_this_worker() if self.copy else 0
        place = [self.copy, worker, fork, next(self.numbers)]
        return np.random.default_rng([self.seed, *place])

    def of_a_copy(self) -> tuple[int, int]:
        """What a copy must know that another process may get."""
        return os.getpid(), next(self.copies)

    def become(self, copy: tuple[int, int]) -> None:
        """Draw other pairs than the original, unless it is in this process too."""
        pid, number = copy
        if pid != os.getpid():
            self.copy = number


def data_loader_worker() -> Any:
    """What torch says of this process, if it is a worker of a `DataLoader`, or None."""
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
    Draws.forks += 1


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(before=_count_fork)
