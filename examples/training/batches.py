"""From arrays to batches that a seed repeats, and that a resumed run goes on with.

Every random number comes from `--seed`, the number of the epoch and that of the batch:
what epoch 7 sees is the same whether a run came from epoch 6 or was started there.
on_device.py does the same without TensorFlow.
"""

import keras
import tensorflow as tf

from keras_mixavg import MixAvg

BATCHES = 2**32  # of one epoch, at the most
SHUFFLE, AUGMENT, UPSIDE_DOWN = 1, 2, 3  # numbers that keep their draws apart


class Epoch(keras.callbacks.Callback):
    """Tells datasets which epoch of `fit` begins."""

    def __init__(self):
        super().__init__()
        self.number = tf.Variable(0, dtype="int64", trainable=False)

    def on_epoch_begin(self, epoch, logs=None):
        self.number.assign(epoch)


def training(images, labels, method, args, epoch):
    """What `fit` trains on: batches as the method mixes them."""
    batches = training_batches(images, labels, args, epoch.number)
    return method.mix(batches, epoch.number).prefetch(tf.data.AUTOTUNE)


def mixed_once(images, labels, method, epoch):
    """One batch, as the method mixes it."""
    batch = tf.data.Dataset.from_tensors((images, labels))
    mixed = method.mix(batch, epoch.number)
    return next(mixed.as_numpy_iterator())


def training_batches(images, labels, args, epoch):
    """Shuffled, batched, cropped and flipped; still uint8, and class numbers.

    `epoch` is a variable: each iteration of the dataset is of the epoch that it holds
    when the iteration begins.
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
    """`[seed, number]` of each batch of an epoch: another number in every epoch."""
    first = tf.data.Dataset.from_tensors(0).map(lambda _: BATCHES * epoch)
    numbers = first.flat_map(lambda n: tf.data.Dataset.range(n, n + BATCHES))
    numbers = numbers.repeat()  # never does, but tells `zip` that it will not be short
    return numbers.map(lambda number: tf.stack([tf.constant(seed, "int64"), number]))


def draw_of(key, purpose):
    """A key of its own for each thing that is drawn for a batch."""
    return tf.random.experimental.stateless_fold_in(key, purpose)


def crop_and_flip(images, key, padding=4, flip="horizontal"):
    """Each image of a batch by chance: shifted by up to `padding`, and flipped."""
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
    """Uint8 images and one-hot labels. For replicas there is no partial batch."""
    data = tf.data.Dataset.from_tensor_slices((images, labels))
    data = data.batch(args.batch_size, drop_remainder=args.devices > 1)
    return data.map(MixAvg(rate=0, num_classes=num_classes)).cache()
