"""Train one small network three ways, on images that need no download.

Plain cross-entropy, `keras.layers.MixUp`, and MixAvg with GlobalSoftLabel: the same
network, seed, images and steps. Only the input pipeline, the loss and the callback
change, as in any program that you put the method into.

    python examples/quickstart.py                      # 8x8 digits, a minute on a CPU
    python examples/quickstart.py --smoke              # does it run? seconds
    python examples/quickstart.py --dataset cifar10    # CIFAR-10 through TFDS

It prints a table and writes result.json and three pictures to --out. With the same
arguments on the same machine it prints the same figures again, but for the seconds.
README.md has the result of five runs, with the machine and the versions.
"""

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

import keras_mixavg
from keras_mixavg import (
    GlobalSoftLabel,
    MixAvg,
    SoftLabelAccuracy,
    SoftLabelCrossentropy,
    plotting,
)

METHODS = ("plain", "MixUp", "MixAvg")


# --- Data: uint8 images and class numbers --------------------------------------------


def load_digits():
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = digits.images[..., None].astype("uint8") * 15  # 0..16 to 0..240
    train_x, test_x, train_y, test_y = train_test_split(
        images, digits.target, test_size=797, stratify=digits.target, random_state=0
    )
    names = [str(name) for name in digits.target_names]
    return (train_x, train_y), (test_x, test_y), names


def load_cifar10(data_dir):
    import tensorflow_datasets as tfds

    (train, test), info = tfds.load(
        "cifar10",
        split=["train", "test"],
        data_dir=data_dir,
        batch_size=-1,
        as_supervised=True,
        with_info=True,
    )
    return tfds.as_numpy(train), tfds.as_numpy(test), info.features["label"].names


def few_of_each_class(images, labels, count, seed):
    """`count` examples, as many of each class as of any other, up to one."""
    order = np.random.default_rng(seed).permutation(len(labels))
    rank_in_class = np.empty(len(labels), int)
    for number in np.unique(labels):
        members = order[labels[order] == number]
        rank_in_class[members] = np.arange(len(members))
    chosen = np.argsort(rank_in_class, kind="stable")[:count]
    return images[chosen], labels[chosen]


def pipelines(method, train, test, num_classes, seed, args):
    """The training and test datasets: the one place where the methods' data differ."""
    train = tf.data.Dataset.from_tensor_slices(train)
    train = train.shuffle(len(train), seed=seed).batch(
        args.batch_size, drop_remainder=True
    )
    plain = MixAvg(rate=0, num_classes=num_classes)  # only makes the labels one-hot
    if method == "MixAvg":
        train = train.map(MixAvg(args.rate, num_classes, seed=seed))
    elif method == "MixUp":
        mix_up = keras.layers.MixUp(alpha=1.0, seed=seed)
        train = train.map(plain)
        train = train.map(lambda x, y: mix_up({"images": x, "labels": y}))
        train = train.map(lambda batch: (batch["images"], batch["labels"]))
    else:
        train = train.map(plain)
    test = tf.data.Dataset.from_tensor_slices(test).batch(500).map(plain)
    return train.prefetch(tf.data.AUTOTUNE), test.cache()


# --- Network -------------------------------------------------------------------------


def network(shape, num_classes):
    layers = [keras.Input(shape), keras.layers.Rescaling(1 / 255)]
    for filters, strides in ((32, 1), (32, 1), (64, 2), (64, 1)):
        layers += [
            keras.layers.Conv2D(filters, 3, strides, padding="same", use_bias=False),
            keras.layers.BatchNormalization(momentum=0.9),
            keras.layers.ReLU(),
        ]
    layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(num_classes)]
    return keras.Sequential(layers)


# --- Training and evaluation ---------------------------------------------------------


class Progress(keras.callbacks.Callback):
    """One line a method, a tick an epoch."""

    def __init__(self, method, epochs):
        super().__init__()
        self.method = method
        self.epochs = epochs

    def on_train_begin(self, logs=None):
        print(f"{self.method}:", flush=True)
        self.bar = keras.utils.Progbar(
            self.epochs, verbose=1 if sys.stdout.isatty() else 2, unit_name="epoch"
        )
        self.bar.stateful_metrics = {"loss", "val_accuracy", "val_loss"}

    def on_epoch_end(self, epoch, logs=None):
        shown = [(name, logs[name]) for name in sorted(self.bar.stateful_metrics)]
        self.bar.update(epoch + 1, shown, finalize=epoch + 1 == self.epochs)


def expected_calibration_error(probabilities, labels, bins=15):
    """Mean gap of confidence and accuracy over equal bins (arXiv 1706.04599, eq. 3)."""
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = [
        abs(np.sum(confidence[bin_of == b]) - np.sum(correct[bin_of == b]))
        for b in range(bins)
    ]
    return float(np.sum(gaps) / len(labels))


def train_and_test(method, train, test, num_classes, seed, args):
    """One model from start to end: its history, its result and its callbacks."""
    keras.utils.set_random_seed(seed)
    train_data, test_data = pipelines(method, train, test, num_classes, seed, args)
    model = network(train[0].shape[1:], num_classes)
    steps = args.epochs * len(train_data)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps, warmup_target=args.learning_rate, warmup_steps=steps // 10
    )
    loss, callbacks = keras.losses.CategoricalCrossentropy(from_logits=True), []
    if method == "MixAvg":
        loss = SoftLabelCrossentropy(global_weight=args.global_weight, from_logits=True)
        callbacks = [GlobalSoftLabel(fade_out=0.0)]
    model.compile(
        keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True, weight_decay=5e-4),
        loss=loss,
        metrics=[SoftLabelAccuracy()],
    )
    start = time.perf_counter()
    history = model.fit(
        train_data,
        validation_data=test_data,
        epochs=args.epochs,
        callbacks=[*callbacks, Progress(f"{method}, seed {seed}", args.epochs)],
        shuffle=False,
        verbose=0,
    ).history
    seconds = time.perf_counter() - start
    logits = np.concatenate([model(images, training=False) for images, _ in test_data])
    result = {"method": method, "seed": seed, **figures_of(logits, test[1])}
    return history, {**result, "seconds": seconds}, callbacks


def figures_of(logits, labels):
    log_p = keras.ops.convert_to_numpy(keras.ops.log_softmax(logits)).astype("float64")
    return {
        "test_accuracy": float(np.mean(log_p.argmax(axis=1) == labels)),
        "negative_log_likelihood": float(-log_p[np.arange(len(labels)), labels].mean()),
        "expected_calibration_error": expected_calibration_error(np.exp(log_p), labels),
    }


# --- Report --------------------------------------------------------------------------

COLUMNS = (
    ("test_accuracy", "test accuracy %", 100, 2),
    ("negative_log_likelihood", "NLL (nats)", 1, 4),
    ("expected_calibration_error", "ECE %", 100, 2),
    ("seconds", "seconds", 1, 1),
)


def table_of(results):
    """Rows of text: a figure, or mean and standard deviation over the runs."""
    rows = [["method", *(title for _, title, _, _ in COLUMNS)]]
    for method in METHODS:
        row = [method]
        for name, _, scale, digits in COLUMNS:
            runs = [scale * run[name] for run in results if run["method"] == method]
            spread = f" ± {np.std(runs, ddof=1):.{digits}f}" if len(runs) > 1 else ""
            row.append(f"{np.mean(runs):.{digits}f}{spread}")
        rows.append(row)
    return rows


def print_table(rows):
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print()
    for row in rows:
        print("  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)))


def draw_training(histories):
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for method, history in histories.items():
        epochs = range(1, len(history["loss"]) + 1)
        axes[0].plot(epochs, 100 * np.array(history["val_accuracy"]), label=method)
        axes[1].plot(epochs, history["val_loss"], label=method)
    axes[0].set(xlabel="epoch", ylabel="test accuracy, per cent")
    low = min(np.median(history["val_accuracy"]) for history in histories.values())
    axes[0].set_ylim(max(0, 100 - 250 * (1 - low)), 100)
    axes[1].set(xlabel="epoch", ylabel="test NLL, nats", yscale="log")
    for ax in axes:
        ax.grid(alpha=0.3)
        ax.legend()
    return figure


def draw_pairs(train, names, args):
    """One batch before and after the layer."""
    images, labels = few_of_each_class(*train, 8, args.seed)
    mixed, mixed_labels = MixAvg(args.rate, len(names), seed=args.seed)(images, labels)
    return plotting.plot_pairs(images, labels, mixed, mixed_labels, names)


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--dataset", choices=["digits", "cifar10"], default="digits",
        help="digits: 8x8 images that come with scikit-learn (default); cifar10: "
        "through tensorflow_datasets")  # fmt: skip
    add("--data-dir", metavar="DIR",
        help="where TFDS has, or puts, CIFAR-10 (default: its own place)")  # fmt: skip
    add("--train-examples", type=int, metavar="N",
        help="train on N images, as many of each class (default: all)")  # fmt: skip
    add("--epochs", type=int, default=40,
        help="passes over the training images (default: 40)")  # fmt: skip
    add("--batch-size", type=int, default=50,
        help="images a step (default: 50)")  # fmt: skip
    add("--learning-rate", type=float, default=0.1,
        help="peak of the cosine schedule (default: 0.1)")  # fmt: skip
    add("--rate", type=float, default=0.5,
        help="share of the images that MixAvg averages (default: 0.5)")  # fmt: skip
    add("--global-weight", type=float, default=0.1,
        help="weight of the global soft labels (default: 0.1)")  # fmt: skip
    add("--runs", type=int, default=1, metavar="N",
        help="train each method N times, with as many seeds, and print mean and "
        "standard deviation (default: 1)")  # fmt: skip
    add("--seed", type=int, default=0,
        help="seed of the first run (default: 0)")  # fmt: skip
    add("--out", type=Path, default=Path("runs/quickstart"), metavar="DIR",
        help="where result.json and the pictures go (default: runs/quickstart)",
        )  # fmt: skip
    add("--smoke", action="store_true",
        help="two epochs on 200 images: only shows that it runs")  # fmt: skip
    args = parser.parse_args(argv)
    if args.smoke:
        args.epochs, args.train_examples = 2, 200
    for name in ("epochs", "batch_size", "train_examples", "runs"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, not {value}")
    return args


def main(argv=None):
    args = parse_arguments(argv)
    tf.config.experimental.enable_op_determinism()  # the same figures every time
    keras.utils.set_random_seed(args.seed)
    if args.dataset == "digits":
        train, test, names = load_digits()
    else:
        train, test, names = load_cifar10(args.data_dir)
    if args.train_examples:
        train = few_of_each_class(*train, args.train_examples, args.seed)
    if len(train[0]) < args.batch_size:
        raise SystemExit(
            f"{len(train[0])} training images make no batch of {args.batch_size}: "
            "lower --batch-size or raise --train-examples."
        )
    print(
        f"{args.dataset}: {len(train[0])} training and {len(test[0])} test images, "
        f"{args.epochs} epochs of {len(train[0]) // args.batch_size} steps"
    )
    histories, results = {}, []
    for seed in range(args.seed, args.seed + args.runs):
        for method in METHODS:
            history, result, callbacks = train_and_test(
                method, train, test, len(names), seed, args
            )
            results.append(result)
            histories.setdefault(method, history)  # of the first run
            if callbacks:
                soft_labels = callbacks[0].table
    table = table_of(results)
    print_table(table)

    args.out.mkdir(parents=True, exist_ok=True)
    draw_training(histories).savefig(args.out / "training.png", dpi=120)
    draw_pairs(train, names, args).savefig(args.out / "pairs.png", dpi=120)
    plotting.plot_table(soft_labels, names).savefig(
        args.out / "soft_labels.png", dpi=120
    )
    report = {
        "table": table,
        "results": results,
        "history": histories,
        "settings": {**vars(args), "out": str(args.out)},
        "train_images": len(train[0]),
        "test_images": len(test[0]),
        "versions": {
            "python": platform.python_version(),
            "keras": keras.__version__,
            "tensorflow": tf.__version__,
            "keras_mixavg": keras_mixavg.__version__,
        },
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
    }
    (args.out / "result.json").write_text(json.dumps(report, indent=1) + "\n")
    print(f"\nwritten to {args.out}/: result.json, pairs.png, soft_labels.png, "
          "training.png")  # fmt: skip
    return report


if __name__ == "__main__":
    main()
