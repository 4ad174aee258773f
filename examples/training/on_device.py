"""Batches made on the device that trains: on JAX, without TensorFlow.

The images stay on the device. One compiled function selects, crops, flips and mixes
those of a batch; only the number of the batch is sent. As in batches.py, every draw
comes from `--seed` and the numbers of the epoch and the batch, but the draws differ.
"""

import functools

import jax
import jax.numpy as jnp
import keras
import numpy as np

from training.methods import Draws


class Epoch(keras.callbacks.Callback):
    """Tell the batches which epoch of `fit` begins."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def on_epoch_begin(self, epoch, logs=None):
        self.number = epoch


class TrainingBatches(keras.utils.PyDataset):
    """`(images, soft labels)` of each batch, on the device."""

    def __init__(self, images, labels, method, args, epoch):
        super().__init__()
        self.images, self.labels = jnp.asarray(images), jnp.asarray(labels, "int32")
        self.method, self.size, self.epoch = method, args.batch_size, epoch
        self.key, self.shift, self.flip = (
            jax.random.key(args.seed),
            args.shift,
            args.flip,
        )
        self.of_epoch = functools.lru_cache(1)(self.of_epoch)
        self.of_rate = functools.cache(self.of_rate)

    def __len__(self):
        return len(self.labels) // self.size

    def __getitem__(self, index):
        key, order, batch = self.of_epoch(self.epoch.number)
        return batch(self.images, self.labels, order, key, index)

    def of_epoch(self, number):
        """The key of an epoch, the order of its images, the function for a batch."""
        key, shuffle = jax.random.split(jax.random.fold_in(self.key, number))
        order = jax.random.permutation(shuffle, len(self.labels))
        return key, order, self.of_rate(self.method.rate_at(number))

    def of_rate(self, rate):
        layer = self.method.layer(rate)

        @jax.jit
        def batch(images, labels, order, key, index):
            numbers = jax.lax.dynamic_slice_in_dim(order, index * self.size, self.size)
            augment, mix = jax.random.split(jax.random.fold_in(key, index))
            cropped = crop_and_flip(images[numbers], augment, self.shift, self.flip)
            return self.method.mixed(layer, cropped, labels[numbers], draws_of(mix))

        return batch


def draws_of(key):
    """The seeds of a mixing layer."""
    return Draws(jax.random.key_data(key), jax.random.fold_in)


def crop_and_flip(images, key, padding=4, flip="horizontal"):
    """Shift each image at random by up to `padding`, and flip it at random."""
    size, side = images.shape[:2]
    for_shifts, for_flips = jax.random.split(key)
    shifts = jax.random.randint(for_shifts, (2, size, 1), 0, 2 * padding + 1)
    pixels = jnp.arange(side)

    def line(shift, key, flips):
        flipped = jax.random.bernoulli(key, shape=(size, 1)) & flips
        return shift + jnp.where(flipped, pixels[::-1], pixels)

    rows = line(shifts[0], jax.random.fold_in(for_flips, 1), flip == "both")
    columns = line(shifts[1], for_flips, flip != "none")
    edges = (padding, padding)
    images = jnp.pad(images, [(0, 0), edges, edges, (0, 0)], "reflect")
    each = jnp.arange(size)[:, None, None]
    return images[each, rows[:, :, None], columns[:, None, :]]


class ValidationBatches(keras.utils.PyDataset):
    """Unchanged images, and one-hot labels."""

    def __init__(self, images, labels, num_classes, args):
        super().__init__()
        self.images, self.size = images, args.batch_size
        self.labels = np.eye(num_classes, dtype="float32")[labels]

    def __len__(self):
        return -(-len(self.labels) // self.size)

    def __getitem__(self, index):
        part = slice(index * self.size, (index + 1) * self.size)
        return self.images[part], self.labels[part]


training, validation_batches = TrainingBatches, ValidationBatches  # as in batches.py


def mixed_once(images, labels, method, epoch):
    """One batch, mixed by the method."""
    layer = method.layer(method.rate_at(epoch.number))
    mixed = method.mixed(layer, images, labels, draws_of(jax.random.key(0)))
    return [np.asarray(part) for part in mixed]
