"""What does the method do against wrong labels? One small network, trained three ways.

The data are 1,000 images of digits, three in ten with a wrong label. The network can
memorise all of them. Plain training, `keras.layers.MixUp`, and MixAvg with
GlobalSoftLabel share the network, seed, images and steps; only the input pipeline, the
loss and the callback differ. The test images have their right labels.

    python examples/quickstart.py                      # under two minutes on a CPU
    python examples/quickstart.py --wrong-labels 0     # the same with right labels
    python examples/quickstart.py --smoke              # check that it runs

It prints a table and writes result.json and three pictures to --out. The same arguments
give the same figures on the same machine, except for the seconds.
"""

import argparse
import json
import os
import platform
import time
from pathlib import Path


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    # fmt: off
    add("--wrong-labels", type=float, default=0.3, metavar="SHARE",
        help="share of the training images that get a wrong label (default: 0.3)")
    add("--train-examples", type=int, default=1000, metavar="N",
        help="train on N images, the same number of each class (default: 1000, all)")
    add("--epochs", type=int, default=30,
        help="passes over the training images (default: 30)")
    add("--batch-size", type=int, default=50,
        help="images a step (default: 50)")
    add("--learning-rate", type=float, default=0.1,
        help="peak of the cosine schedule (default: 0.1)")
    add("--rate", type=float, default=0.5,
        help="share of the images that MixAvg averages (default: 0.5)")
    add("--global-weight", type=float, default=0.5,
        help="weight of the global soft labels (default: 0.5)")
    add("--runs", type=int, default=1, metavar="N",
        help="train each method with N seeds, and print mean and standard deviation "
        "(default: 1)")
    add("--seed", type=int, default=0,
        help="seed of the first run (default: 0)")
    add("--out", type=Path, default=Path("runs/quickstart"), metavar="DIR",
        help="folder of result.json and the pictures (default: runs/quickstart)")
    add("--smoke", action="store_true",
        help="two epochs on 200 images: only shows that it runs")
    # fmt: on
    args = parser.parse_args(argv)
    if args.smoke:
        args.epochs, args.train_examples = 2, 200
    for name in ("epochs", "batch_size", "runs"):
        value = getattr(args, name)
        if value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, not {value}")
    least = max(args.batch_size, 10)  # there are ten classes
    if not least <= args.train_examples <= 1000:
        parser.error(
            f"--train-examples must be from {least} to 1000, a batch or one of each "
            f"class at the least, not {args.train_examples}"
        )
    if not 0 <= args.wrong_labels < 1:
        parser.error(f"--wrong-labels must be in [0, 1), not {args.wrong_labels}")
    return args


if __name__ == "__main__":  # before TensorFlow, so that --help is quick and clean
    ARGUMENTS = parse_arguments()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from training import compare, data, scores  # noqa: E402
from training.progress import Progress  # noqa: E402

import keras_mixavg  # noqa: E402
from keras_mixavg import (  # noqa: E402
    GlobalSoftLabel,
    MixAvg,
    SoftLabelAccuracy,
    SoftLabelCrossentropy,
    plotting,
)

COLOURS = {"plain training": "0.6", "MixUp": "0.3", "MixAvg": "tab:orange"}
METHODS = tuple(COLOURS)
NUM_CLASSES, TEST_IMAGES = 10, 797


# --- Data: uint8 images and class numbers --------------------------------------------


def load_digits(train_examples):
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = digits.images[..., None].astype("uint8") * 15  # 0..16 to 0..240
    train_x, test_x, train_y, test_y = train_test_split(
        images,
        digits.target,
        train_size=train_examples,
        test_size=TEST_IMAGES,
        stratify=digits.target,  # the same number of each class
        random_state=0,
    )
    return (train_x, train_y), (test_x, test_y)


def pipeline(method, images, labels, seed, args):
    """The training dataset of a method."""
    train = tf.data.Dataset.from_tensor_slices((images, labels))
    train = train.shuffle(len(images), seed=seed)
    train = train.batch(args.batch_size, drop_remainder=True)
    if method == "MixAvg":
        train = train.apply(MixAvg(args.rate, NUM_CLASSES, seed=seed))
    elif method == "MixUp":
        mix_up = keras.layers.MixUp(alpha=1.0, seed=seed)
        train = train.map(lambda x, y: {"images": x, "labels": tf.one_hot(y, 10)})
        train = train.map(mix_up).map(lambda batch: (batch["images"], batch["labels"]))
    return train.prefetch(tf.data.AUTOTUNE)


# --- Network -------------------------------------------------------------------------


def network(shape):
    layers = [keras.Input(shape), keras.layers.Rescaling(1 / 255)]
    for filters, strides in ((32, 1), (32, 1), (64, 2), (64, 1)):
        layers += [
            keras.layers.Conv2D(filters, 3, strides, padding="same", use_bias=False),
            keras.layers.BatchNormalization(momentum=0.9),
            keras.layers.ReLU(),
        ]
    layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(NUM_CLASSES)]
    return keras.Sequential(layers)


# --- Training and evaluation ---------------------------------------------------------


def cosine_schedule(peak, steps):
    """Rises to `peak` in a tenth of the steps, and falls to zero in the others."""
    warmup = steps // 10
    return keras.optimizers.schedules.CosineDecay(
        0.0, steps - warmup, warmup_target=peak, warmup_steps=warmup
    )


def train_and_test(method, train, test, seed, args, more=()):
    """Train and test one model: its history, its result and its callbacks."""
    keras.utils.set_random_seed(seed)
    batches = pipeline(method, *train, seed, args)
    model = network(train[0].shape[1:])
    schedule = cosine_schedule(args.learning_rate, args.epochs * len(batches))
    # Without the callback this loss is plain cross-entropy.
    loss = SoftLabelCrossentropy(global_weight=args.global_weight, from_logits=True)
    callbacks = [GlobalSoftLabel()] if method == "MixAvg" else []
    model.compile(
        keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True, weight_decay=5e-4),
        loss=loss,
        metrics=[SoftLabelAccuracy()],
    )
    start = time.perf_counter()
    history = model.fit(
        batches,
        validation_data=tf.data.Dataset.from_tensor_slices(test).batch(500).cache(),
        epochs=args.epochs,
        callbacks=[*callbacks, *more],
        shuffle=False,
        verbose=0,
    )
    logits = keras.ops.convert_to_numpy(model(test[0], training=False))
    figures = figures_of(logits, test[1])
    seconds = time.perf_counter() - start
    result = {"method": method, "seed": seed, **figures, "seconds": seconds}
    return history.history, result, callbacks


def figures_of(logits, labels):
    """Accuracy, NLL, and NLL at the best of 100 temperatures."""
    temperatures = np.geomspace(0.1, 10, 100)
    logits = logits.astype("float64")
    return {
        "test_accuracy": float(np.mean(logits.argmax(axis=1) == labels)),
        "negative_log_likelihood": scores.nll(logits, labels),
        "at_best_temperature": min(
            scores.nll(logits / t, labels) for t in temperatures
        ),
    }


# --- Report --------------------------------------------------------------------------

COLUMNS = {  # score: heading, factor, digits
    "test_accuracy": ("test accuracy %", 100, 1),
    "negative_log_likelihood": ("NLL (nats)", 1, 3),
    "at_best_temperature": ("NLL, best temperature", 1, 3),
}


def table_of(results):
    """Rows of text: a figure, or mean and standard deviation over the runs."""
    methods = {
        method: {
            name: [run[name] for run in results if run["method"] == method]
            for name in COLUMNS
        }
        for method in METHODS
    }
    return compare.table(methods, COLUMNS)


def print_table(rows):
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print()
    for row in rows:
        print("  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)))


def draw_training(histories, wrong_labels):
    """Does the network memorise the wrong labels?"""
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    ax = figure.subplots()
    for method, history in histories.items():
        epochs = range(1, len(history["loss"]) + 1)
        ax.plot(
            epochs,
            100 * np.array(history["val_accuracy"]),
            label=method,
            color=COLOURS[method],
            linewidth=2.5 if method == "MixAvg" else 1.5,
        )
    ax.set(xlabel="epoch", ylabel="accuracy on test images, %")
    ax.set_title(f"With {wrong_labels:.0%} wrong labels, does longer training help?")
    ax.grid(alpha=0.3)
    ax.legend()
    return figure


def draw_pairs(train, args):
    """One batch before and after the layer."""
    one_of_each = np.unique(train[1], return_index=True)[1][:8]
    images, labels = (part[one_of_each] for part in train)
    mixed = MixAvg(args.rate, NUM_CLASSES, seed=args.seed + 3)(images, labels)
    return plotting.plot_pairs(images, labels, *mixed)


def train_all(args, train, test):
    """History of each method's first run, all results, and the last table."""
    histories, results = {}, []
    progress = Progress(args.runs * len(METHODS), args.epochs)
    for seed in range(args.seed, args.seed + args.runs):
        rng = np.random.default_rng(seed)
        noisy = data.with_label_noise(train[1], args.wrong_labels, rng)
        for method in METHODS:
            history, result, callbacks = train_and_test(
                method, (train[0], noisy), test, seed, args, [progress]
            )
            accuracy = 100 * result["test_accuracy"]
            progress.finished(f"{method}, seed {seed}: test accuracy {accuracy:.1f} %")
            results.append(result)
            histories.setdefault(method, history)
            if callbacks:
                soft_labels = callbacks[0].table
    return histories, results, soft_labels


def main(args):
    tf.config.experimental.enable_op_determinism()  # the same figures every time
    keras.utils.set_random_seed(args.seed)
    train, test = load_digits(args.train_examples)
    wrong = round(args.wrong_labels * args.train_examples)
    print(
        "Handwritten digits of 8x8 pixels, from scikit-learn. Of "
        f"{args.train_examples} training images {wrong} have a wrong label; the "
        f"{TEST_IMAGES} test images have the right ones."
    )
    histories, results, soft_labels = train_all(args, train, test)
    table = table_of(results)
    print_table(table)

    args.out.mkdir(parents=True, exist_ok=True)
    pictures = {
        "training": draw_training(histories, args.wrong_labels),
        "pairs": draw_pairs(train, args),
        "soft_labels": plotting.plot_table(soft_labels),
    }
    for name, figure in pictures.items():
        figure.savefig(args.out / f"{name}.png", dpi=120)
    report = {
        "table": table,
        "results": results,
        "history": histories,
        "settings": {**vars(args), "out": str(args.out)},
        "train_images": args.train_examples,
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
    print(f"\nWritten to {args.out}/: result.json, {', '.join(pictures)} (.png)")
    if args.smoke:
        print("It runs. After two epochs the figures mean nothing.")
    return report


if __name__ == "__main__":
    main(ARGUMENTS)
