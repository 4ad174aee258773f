"""One training run: from arrays to a trained network and its record."""

import contextlib
import copy
import functools
import random
import shlex
import shutil
import signal
import sys
import time

import keras

from keras_mixavg import SoftLabelAccuracy
from training import data, pictures, record
from training.methods import AveragedPairs, in_words
from training.networks import NONE, freeze, of_name, pretrained, thaw

HEAD = 0.01  # learning rate of a new last layer
PICTURED = 32  # images of the batch that a picture shows a part of


def main(args, load):
    """Train on what `load(args)` returns, and print the scores.

    Ctrl-C ends the run after the current step. The message has the command that
    continues it.
    """
    record.check_options(args, may_change=("out", "data_dir", "resume", "quiet"))
    try:
        result = train(args, *load(args))
    except KeyboardInterrupt:
        command = [a for a in sys.argv if a != "--resume"]
        if "--out" not in command:
            command += ["--out", str(args.out)]
        if args.backend is None and keras.backend.backend() != "tensorflow":
            command += ["--backend", keras.backend.backend()]
        resumes = args.methods[args.method].resumes
        how = "Continue after the last finished epoch" if resumes else "Start again"
        raise SystemExit(
            f"\nStopped. {how} with\n    python " + shlex.join([*command, "--resume"])
        ) from None
    scores = result["test"]
    print(
        f"{in_words(args.method)}: accuracy {100 * scores['accuracy']:.2f} %, "
        f"top-5 {100 * scores['top5_accuracy']:.2f} %, NLL {scores['nll']:.4f} nats, "
        f"ECE {100 * scores['ece']:.2f} %, {result['seconds']:.0f} s; see {args.out}"
    )
    return result


def train(args, training, test, names, extra=()):
    """One run; returns the content of `result.json`.

    Args:
        args: from `arguments.parse`.
        training: `(images, labels)`, NumPy arrays of uint8 and of class numbers.
        test: the same.
        names: of the classes.
        extra: more callbacks.
    """
    data.check(training, test, names, args.shift)
    keras.utils.set_random_seed(args.seed)
    if args.on_device:
        from training import on_device as feed
    else:
        from training import batches as feed
    if args.deterministic:  # for tf.data, on any backend
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    if args.mixed_precision:
        keras.config.set_dtype_policy(f"mixed_{args.mixed_precision}")
    if args.held_out:
        training, test = data.split(*training, args.held_out, data.HELD_OUT)
    images, labels = data.training_set(*training, args)
    epoch = feed.Epoch()
    method = args.methods[args.method](args, len(names))
    drawn = random.getstate()  # the layers of some methods draw more
    validation, every = test, args.validate_every
    if method.validation_share:
        args = copy.copy(args)  # with a smaller batch, if there are too few images
        count, every = round(method.validation_share * len(labels)), 1
        seed = data.VALIDATION + args.seed
        (images, labels), validation = data.split(images, labels, count, seed)
        args.batch_size = data.batch_size(len(labels), args)
    backup = args.out / "backup"
    written = backup / "training_metadata.json"  # Keras writes this file last
    resumes = method.resumes and written.exists()
    if not resumes:  # then it starts again
        shutil.rmtree(backup, ignore_errors=True)
    batches = feed.training(images, labels, method, args, epoch)
    args.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    random.setstate(drawn)  # so that all methods start from the same weights
    with distribution_scope(args):
        network = network_of(args)(images.shape[1:], len(names), args.weight_decay)
        if args.weights != NONE and not resumes:
            train_head(method, network, batches, args, [epoch, *extra])
        model = compiled(method, network, args, len(batches))
        callbacks = method.callbacks()
        model.fit(
            batches,
            validation_data=feed.validation_batches(*validation, len(names), args),
            validation_freq=every,
            epochs=args.epochs,
            callbacks=[epoch, *callbacks, *extra, *callbacks_of_every_run(args)],
            verbose=0 if args.quiet else "auto",
            shuffle=False,
        )
    seconds = time.perf_counter() - start
    few = data.few_of_each_class(images, labels, min(PICTURED, len(labels)), args.seed)
    epoch.on_epoch_begin(0)  # some methods mix nothing in the last epochs
    mixed = [part[-len(few[1]) :] for part in feed.mixed_once(*few, method, epoch)]
    batch = pictures.Batch(*few, *mixed, isinstance(method, AveragedPairs))
    table = callbacks[0].table if method.has_table(args) else None
    return record.write(args, model, test, names, table, batch, seconds)


def network_of(args, random_weights=False):
    """A function of the images' shape, the number of classes and the decay.

    `random_weights` is for a caller that only needs the shapes.
    """
    if args.weights == NONE:
        return of_name(args.network)
    weights = None if random_weights or args.smoke else args.weights
    return functools.partial(
        pretrained, args.network, weights, image_size=args.scale_to
    )


def train_head(method, network, batches, args, callbacks):
    """Train the new last layer of a pretrained network for `--head-epochs`.

    Its weights start random, and their gradients would spoil the others. The images
    are mixed as usual; the global soft labels start with the whole network.
    """
    freeze(network)
    head = copy.copy(args)
    head.epochs, head.learning_rate, head.warmup_epochs = args.head_epochs, HEAD, 0
    compiled(method, network, head, len(batches)).fit(
        batches,
        epochs=args.head_epochs,
        callbacks=[*callbacks, StopBetweenSteps()],
        verbose=0 if args.quiet else "auto",
        shuffle=False,
    )
    thaw(network)


def distribution_scope(args):
    """The scope in which a model trains on `--devices`."""
    if args.devices == 1:
        return contextlib.nullcontext()
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        devices = tf.config.list_logical_devices("GPU")
        devices = [d.name for d in devices or tf.config.list_logical_devices("CPU")]
    elif backend == "jax":
        devices = keras.distribution.list_devices()
    else:
        raise SystemExit("--devices: Keras trains on one device under torch.")
    if len(devices) < args.devices:
        raise SystemExit(f"--devices {args.devices}: found only {devices}.")
    devices = devices[: args.devices]
    if backend == "tensorflow":
        return tf.distribute.MirroredStrategy(devices).scope()
    return keras.distribution.DataParallel(devices=devices).scope()


def compiled(method, network, args, steps_per_epoch):
    """The compiled model of a method: warm-up, then a cosine to the last step.

    SGD trains from scratch. Adam fine-tunes: its steps do not grow with the features,
    on which SGD may diverge, as it did with EfficientNet-Lite0 at a rate of 0.1.
    """
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0,
        max(1, (args.epochs - args.warmup_epochs) * steps_per_epoch),
        warmup_target=args.learning_rate,
        warmup_steps=args.warmup_epochs * steps_per_epoch,
    )
    if args.weights == NONE:
        optimizer = keras.optimizers.SGD(schedule, args.momentum, nesterov=True)
    else:
        optimizer = keras.optimizers.Adam(schedule)
    model = method.model(network)
    metrics = [SoftLabelAccuracy(), *method.metrics()]
    model.compile(optimizer, method.loss(), metrics=metrics)
    model.optimizer.build(model.trainable_variables)  # else TensorFlow traces twice
    return model


# --- Callbacks -----------------------------------------------------------------------


def callbacks_of_every_run(args):
    """Keras' callbacks: a backup each epoch, and logs as CSV and for TensorBoard."""
    backup = keras.callbacks.BackupAndRestore(
        args.out / "backup", double_checkpoint=True, delete_checkpoint=False
    )
    board = keras.callbacks.TensorBoard(args.out / "tensorboard", write_graph=False)
    return [
        StopBetweenSteps(),
        EpochSeconds(),
        keras.callbacks.CSVLogger(args.out / "history.csv", append=args.resume),
        *([] if args.on_device else [board]),  # it needs TensorFlow
        backup,
    ]


class EpochSeconds(keras.callbacks.Callback):
    """Add the `seconds` of each epoch to the logs, without validation."""

    def on_epoch_begin(self, epoch, logs=None):
        self.start, self.end = time.perf_counter(), None

    def on_test_begin(self, logs=None):
        self.end = self.end or time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        logs["seconds"] = (self.end or time.perf_counter()) - self.start


class StopBetweenSteps(keras.callbacks.Callback):
    """End training after the current step on Ctrl-C, not while a backup is written.

    A truncated backup can still be opened: Keras then neither loads it nor falls back
    to the previous one. A second Ctrl-C stops at once.
    """

    def on_train_begin(self, logs=None):
        self.asked = False
        self.handler = signal.signal(signal.SIGINT, self.ask)

    def ask(self, *_):
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def on_train_batch_begin(self, batch, logs=None):
        if self.asked:
            raise KeyboardInterrupt

    def on_train_end(self, logs=None):
        signal.signal(signal.SIGINT, self.handler)
        if self.asked:
            raise KeyboardInterrupt
