"""The models and the data that tests share: small enough to train in milliseconds."""

import functools

import keras
import numpy as np
import reference
import tensorflow as tf

from keras_mixavg import SoftLabelCrossentropy
from keras_mixavg.soft_label_table import initial_state, numpy_of

FEATURES, CLASSES = 5, 4
# For models of few steps, which cost less than to compile one.
EAGERLY = keras.backend.backend() == "tensorflow"


def two_replicas():
    """TensorFlow's strategy for two devices, here of the CPU.

    It adds gradients on one of them. The collective operations that are the default may
    mistake one gradient for another on a busy CPU, and fail: "Shape mismatch in the
    collective instance".
    """
    reduction = tf.distribute.ReductionToOneDevice()
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], reduction)


class Tables(keras.callbacks.Callback):
    """Record the table that an earlier GlobalSoftLabel shows after each epoch."""

    def __init__(self, source):
        super().__init__()
        self.source = source
        self.seen = []

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(self.source.table)


class Weights(keras.callbacks.Callback):
    """Record the weight of the loss in each epoch of a `fit`, after a GlobalSoftLabel.

    As a share of `full`.
    """

    def __init__(self, full=1.0):
        super().__init__()
        self.full = full

    def on_train_begin(self, logs=None):
        self.seen = []

    def on_epoch_begin(self, epoch, logs=None):
        weight = float(self.model.loss.table.switch.host_value[0])
        self.seen.append(weight / self.full)


def linear_model(kernel, from_logits=True):
    model = keras.Sequential(
        [
            keras.Input((FEATURES,)),
            keras.layers.Dense(
                CLASSES,
                use_bias=False,
                activation=None if from_logits else "softmax",
            ),
        ]
    )
    model.set_weights([np.array(kernel, "float32")])
    return model


def linear_network(shape, num_classes, weight_decay=0.0):
    """For the training programs: what they do does not depend on the network."""
    layers = [
        keras.layers.Rescaling(1 / 255),
        keras.layers.Flatten(),
        keras.layers.Dense(num_classes),
    ]
    return keras.Sequential([keras.Input(shape), *layers])


def save_one_pixel(figure, file, **options):
    """For `Figure.savefig` where another test draws the same figures.

    Drawing costs more than the few steps of a test.
    """
    from matplotlib import image

    image.imsave(file, np.zeros((1, 1, 3)), format="png")


@functools.cache
def _compiled_once(from_logits, **loss_arguments):
    """A linear model that trains with the table, and its optimizer's initial state."""
    model = linear_model(np.zeros((FEATURES, CLASSES)), from_logits)
    loss = SoftLabelCrossentropy(from_logits=from_logits, **loss_arguments)
    model.compile(keras.optimizers.SGD(0.1), loss)
    model.optimizer.build(model.trainable_variables)
    return model, [numpy_of(variable) for variable in model.optimizer.variables]


def fresh(kernel, from_logits=True, **loss_arguments):
    """A compiled linear model as if it were new. It is the same in each test, since a
    new one costs ten times what the few steps of a test do; so use it where it need
    not be new, and no step fails."""
    model, start = _compiled_once(from_logits, **loss_arguments)
    model.loss.table.state()  # on JAX, what the last steps left behind comes first
    model.reset_metrics()
    model.set_weights([kernel])
    for variable, value in zip(model.optimizer.variables, start, strict=True):
        variable.assign(value)
    model.loss.table.load_own_variables({**initial_state(CLASSES), "epoch": 0})
    return model


def fresh_to_fail(kernel):
    """`fresh` for a `fit` that fails, after which JAX gives nothing back."""
    if keras.backend.backend() != "jax":
        return fresh(kernel)
    model, _ = _compiled_once.__wrapped__(from_logits=True)
    model.set_weights([kernel])
    return model


def averaged_batches(rng, weighted=False, classes=range(CLASSES), sizes=(16, 16, 9)):
    """Batches of averaged pairs and whole samples, and the weights of some."""
    centres = 3 * np.random.default_rng(7).normal(size=(CLASSES, FEATURES))
    batches = []
    for size in sizes:
        numbers = rng.choice(list(classes), size=size)
        x = (centres[numbers] + rng.normal(size=(size, FEATURES))).astype("float32")
        y = reference.one_hot(numbers, CLASSES)
        partners = np.arange(size)
        partners[: size // 2] = np.roll(partners[: size // 2], 1)
        x = reference.averaged(x, partners).astype("float32")
        y = reference.averaged(y, partners).astype("float32")
        w = rng.uniform(0.1, 2, size=size).astype("float32") if weighted else None
        batches.append((x, y, w))
    return batches


def dataset_of(batches):
    """A dataset that yields just these batches, in this order.

    Not `from_generator`, which traces three functions each time.
    """
    parts = [
        tf.data.Dataset.from_tensors(tuple(part for part in batch if part is not None))
        for batch in batches
    ]
    return functools.reduce(tf.data.Dataset.concatenate, parts)


def fit(model, batches, epochs, callbacks, **kwargs):
    kwargs = {"verbose": 0, "shuffle": False, **kwargs}
    dataset = dataset_of(batches)
    return model.fit(dataset, epochs=epochs, callbacks=callbacks, **kwargs)


def to_numpy(batch):
    return keras.tree.map_structure(
        lambda leaf: (
            keras.ops.convert_to_numpy(leaf)
            if keras.ops.is_tensor(leaf)
            else np.asarray(leaf)
        ),
        batch,
    )
