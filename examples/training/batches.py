"""From arrays to batches that a seed repeats, also in a resumed run.

Every random number comes from `--seed` and the numbers of the epoch and the batch.
Epoch 7 sees the same batches whether the run came from epoch 6 or resumed there.
on_device.py does the same without TensorFlow.
"""

import keras
import tensorflow as tf

from keras_mixavg import MixAvg
from training.data import batch_size

if keras.backend.backend() != "tensorflow":  # which else takes all memory of the GPUs
    tf.config.set_visible_devices([], "GPU")

BATCHES = 2**32  # more than an epoch can have
SHUFFLE, AUGMENT, UPSIDE_DOWN = 1, 2, 3  # each purpose has its own draws


class Epoch(keras.callbacks.Callback):
    """Tell the datasets which epoch of `fit` begins."""

    def __init__(self):
        super().__init__()
        self.number = tf.Variable(0, dtype="int64", trainable=False)

    def on_epoch_begin(self, epoch, logs=None):
        self.number.assign(epoch)


def training(images, labels, method, args, epoch):
    """The batches for `fit`, mixed by the method."""
    batches = training_batches(images, labels, args, epoch.number)
    return method.mix(batches, epoch.number).prefetch(tf.data.AUTOTUNE)


def mixed_once(images, labels, method, epoch):
    """One batch, mixed by the method."""
    batch = tf.data.Dataset.from_tensors((images, labels))
    mixed = method.mix(batch, epoch.number)
    return next(mixed.as_numpy_iterator())


def training_batches(images, labels, args, epoch):
    """Shuffled, cropped and flipped batches of uint8 images and class numbers.

    `epoch` is a variable. An iteration of the dataset reads it when it begins.
    """
    steps = len(labels) // args.batch_size
    with tf.device("CPU:0"):
        images, labels = tf.constant(images), tf.constant(labels)

    def shuffled(first_key):
        order = tf.random.experimental.stateless_shuffle(
            tf.range(len(labels)), draw_of(first_key, SHUFFLE)
        )
        order = order[: steps * args.batch_size]
        return tf.data.Dataset.from_tensor_slices(
            tf.reshape(order, (steps, args.batch_size))
        )

    def batch(numbers, key):
        drawn = draw_of(key, AUGMENT)
        chosen = tf.gather(images, numbers)
        cropped = crop_and_flip(chosen, drawn, args.shift, args.flip)
        return cropped, tf.gather(labels, numbers)

    numbers = keys(args.seed, epoch).take(1).flat_map(shuffled)
    data = tf.data.Dataset.zip(numbers, keys(args.seed, epoch))
    data = data.map(batch, num_parallel_calls=tf.data.AUTOTUNE)
    return data.apply(tf.data.experimental.assert_cardinality(steps))


def keys(seed, epoch):
    """`[seed, number]` of each batch. No two batches of a run have the same number."""
    first = tf.data.Dataset.from_tensors(0).map(lambda _: BATCHES * epoch)
    numbers = first.flat_map(lambda n: tf.data.Dataset.range(n, n + BATCHES))
    numbers = numbers.repeat()  # tells `zip` that it does not end first
    return numbers.map(lambda number: tf.stack([tf.constant(seed, "int64"), number]))


def draw_of(key, purpose):
    """The key of a batch for one purpose."""
    return tf.random.experimental.stateless_fold_in(key, purpose)


def crop_and_flip(images, key, padding=4, flip="horizontal"):
    """Shift each image at random by up to `padding`, and flip it at random."""
    size, side = tf.shape(images)[0], images.shape[1]
    *shifts, chance = tf.unstack(tf.random.stateless_uniform((3, size, 1), key))
    rows, columns = (tf.cast(u * (2 * padding + 1), "int32") for u in shifts)
    pixels = tf.range(side)
    other = tf.random.stateless_uniform((size, 1), draw_of(key, UPSIDE_DOWN))
    rows += tf.where((other < 0.5) & (flip == "both"), pixels[::-1], pixels)
    columns += tf.where((chance < 0.5) & (flip != "none"), pixels[::-1], pixels)
    edges = [padding, padding]
    images = tf.pad(images, [[0, 0], edges, edges, [0, 0]], "REFLECT")
    images = tf.gather(images, rows, axis=1, batch_dims=1)
    return tf.gather(images, columns, axis=2, batch_dims=1)


def validation_batches(images, labels, num_classes, args):
    """Uint8 images and one-hot labels. On several devices no batch is partial."""
    data = tf.data.Dataset.from_tensor_slices((images, labels))
    size = batch_size(len(labels), args)
    data = data.batch(size, drop_remainder=args.devices > 1)
    return data.map(MixAvg(rate=0, num_classes=num_classes)).cache()
