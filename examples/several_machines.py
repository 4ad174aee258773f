"""Train a digit classifier on several machines, one process each, with JAX.

    KERAS_BACKEND=jax python examples/several_machines.py \
        --coordinator 10.0.0.1:9876 --processes 2 --process 0    # on 10.0.0.1
    KERAS_BACKEND=jax python examples/several_machines.py \
        --coordinator 10.0.0.1:9876 --processes 2 --process 1    # on the other one

`--coordinator` is the address of process 0, with a port that all can reach. Without it
one process trains alone. Each process reads its share of the data and pairs images
within it; they share the weights, the evidence and the table.
"""

import argparse
import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import keras
import sklearn.datasets
import tensorflow as tf

from keras_mixavg import (
    GlobalSoftLabel,
    MixAvg,
    SoftLabelAccuracy,
    SoftLabelCrossentropy,
)

CLASSES = 10
TRAIN_IMAGES, TEST_IMAGES = 1536, 256


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--coordinator", help="host:port of process 0")
    parser.add_argument("--processes", type=int, default=1, help="number of processes")
    parser.add_argument(
        "--process", type=int, default=0, help="number of this one, from 0"
    )
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument(
        "--batch-size", type=int, default=128, help="of all processes together"
    )
    arguments = parser.parse_args()
    if arguments.processes > 1 and not arguments.coordinator:
        parser.error("--processes needs --coordinator, the host:port of process 0")
    if not 0 <= arguments.process < arguments.processes:
        parser.error(f"--process must be from 0 to {arguments.processes - 1}")
    if arguments.batch_size % arguments.processes:
        parser.error("--batch-size must be a multiple of --processes")
    return arguments


def connect(arguments):
    if keras.backend.backend() != "jax":
        raise SystemExit("Several machines need the JAX backend: set KERAS_BACKEND=jax")
    if arguments.processes > 1:
        # CPUs talk through gloo. GPUs use their own library and ignore this.
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        keras.distribution.initialize(
            arguments.coordinator, arguments.processes, arguments.process
        )
    keras.utils.set_random_seed(0)  # the same initial weights everywhere
    keras.distribution.set_distribution(
        keras.distribution.DataParallel(auto_shard_dataset=False)  # `datasets` shards
    )


def share_of(images, labels, arguments):
    """The samples of this process: as many as each other has, for as many steps."""
    count = len(images) - len(images) % arguments.processes
    share = slice(arguments.process, count, arguments.processes)
    return tf.data.Dataset.from_tensor_slices((images[share], labels[share]))


def datasets(arguments):
    images, labels = sklearn.datasets.load_digits(return_X_y=True)
    images = (images / 16).astype("float32")
    train, test = slice(TRAIN_IMAGES), slice(TRAIN_IMAGES, TRAIN_IMAGES + TEST_IMAGES)
    train, test = (share_of(images[s], labels[s], arguments) for s in (train, test))
    size = arguments.batch_size // arguments.processes
    train = train.shuffle(TRAIN_IMAGES, seed=arguments.process)
    train = train.batch(size, drop_remainder=True)
    # Keras needs the same state of every random generator in all processes.
    train = train.apply(MixAvg(num_classes=CLASSES, seed=0)).prefetch(2)
    return train, test.batch(size).map(MixAvg(rate=0, num_classes=CLASSES))


def main():
    arguments = parse_arguments()
    connect(arguments)
    train, test = datasets(arguments)
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(128, "relu"),
            keras.layers.Dense(CLASSES),
        ]
    )
    model.compile(
        keras.optimizers.Adam(0.003),
        SoftLabelCrossentropy(from_logits=True),
        metrics=[SoftLabelAccuracy()],
    )
    soft_labels = GlobalSoftLabel()
    history = model.fit(
        train,
        validation_data=test,
        epochs=arguments.epochs,
        callbacks=[soft_labels],
        verbose=0,
        shuffle=False,
    ).history
    print(
        f"process {arguments.process} of {arguments.processes}, "
        f"{jax.device_count()} devices: "
        f"test accuracy {history['val_accuracy'][-1]:.4f}, "
        f"soft-label confidence {history['soft_label_confidence'][-1]:.6f}"
    )


if __name__ == "__main__":
    main()
