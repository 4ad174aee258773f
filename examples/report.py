"""What a training run leaves behind: figures, pictures and logs.

`result.json` has the settings, the versions, the machine and the test figures;
`history.csv` a row an epoch; `curves.png`, `reliability.png` and `soft_labels.png` are
drawn from them; `tensorboard/` has the scalars and the pictures.
"""

import csv
import json
import os
import platform
import shutil
import signal
import time
from importlib import metadata
from pathlib import Path

import keras
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from scipy import optimize

from keras_mixavg import plotting

BINS = 15


class EpochSeconds(keras.callbacks.Callback):
    """Add the `seconds` of each epoch, without the validation, to the logs."""

    def on_epoch_begin(self, epoch, logs=None):
        self.start, self.end = time.perf_counter(), None

    def on_test_begin(self, logs=None):
        self.end = self.end or time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        logs["seconds"] = (self.end or time.perf_counter()) - self.start


class StopBetweenSteps(keras.callbacks.Callback):
    """Have Ctrl-C end training after the running step, not amid writing a backup.

    A backup that Ctrl-C cuts short can be opened, and is not whole: Keras then neither
    loads it nor takes the one before. A second Ctrl-C stops at once.
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


def callbacks(out, resume):
    """Keras' own: a backup each epoch, a table and TensorBoard of the logs."""
    backup = keras.callbacks.BackupAndRestore(
        out / "backup", double_checkpoint=True, delete_checkpoint=False
    )
    return [
        StopBetweenSteps(),
        EpochSeconds(),
        keras.callbacks.CSVLogger(out / "history.csv", append=resume),
        keras.callbacks.TensorBoard(out / "tensorboard", write_graph=False),
        backup,
    ]


# --- Figures -------------------------------------------------------------------------


def figures_of(logits, labels):
    """Test figures from `(samples, classes)` logits and class numbers.

    Accuracy and top-5 accuracy; NLL, the mean negative log-likelihood in nats; ECE, the
    expected calibration error over 15 bins (arXiv 1706.04599, eq. 3); NLL and ECE again
    with one temperature fitted on held-out samples; and the mean probability of the
    class that wins. Of each bin that is not empty the mean confidence, the accuracy and
    the count.
    """
    probabilities, log_p = _probabilities(logits)
    ranks = (log_p > log_p[np.arange(len(labels)), labels][:, None]).sum(axis=1)
    confidence, accuracy, count = calibration(probabilities, labels)
    confidence, accuracy, count = (a[count > 0] for a in (confidence, accuracy, count))
    scaled, temperatures = temperature_scaled(logits, labels)
    return {
        "accuracy": float(np.mean(probabilities.argmax(axis=1) == labels)),
        "top5_accuracy": float(np.mean(ranks < 5)),
        "nll": nll(logits, labels),
        "ece": ece(probabilities, labels),
        "scaled_nll": nll(scaled, labels),
        "scaled_ece": ece(_probabilities(scaled)[0], labels),
        "temperatures": temperatures,
        "mean_winning_probability": float(probabilities.max(axis=1).mean()),
        "bins": {
            "confidence": confidence.tolist(),
            "accuracy": accuracy.tolist(),
            "count": count.tolist(),
        },
    }


def nll(logits, labels):
    return float(-_probabilities(logits)[1][np.arange(len(labels)), labels].mean())


def ece(probabilities, labels):
    confidence, accuracy, count = calibration(probabilities, labels)
    gaps = np.abs(confidence - accuracy)[count > 0] * count[count > 0]
    return float(gaps.sum() / len(labels))


def temperature_scaled(logits, labels):
    """Each half of the samples over the temperature that suits the other half best.

    Tells a network that is only too modest, or too sure, from one that is wrong. The
    halves are the samples of even and of odd number, and one scalar for each is fitted
    by NLL (arXiv 1706.04599, section 4.2). Returns the logits and the two temperatures.
    """
    logits = np.asarray(logits, "float64")
    scaled, temperatures = np.empty_like(logits), []
    for half in (0, 1):
        held_out = slice(1 - half, None, 2)
        fit = optimize.minimize_scalar(
            lambda log_t, x=logits[held_out], y=labels[held_out]: nll(
                x / np.exp(log_t), y
            ),
            bounds=(-4, 4),
            method="bounded",
        )
        temperatures.append(float(np.exp(fit.x)))
        scaled[half::2] = logits[half::2] / temperatures[-1]
    return scaled, temperatures


def _probabilities(logits):
    logits = np.asarray(logits, "float64")
    logits = logits - logits.max(axis=1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return np.exp(log_p), log_p


def calibration(probabilities, labels):
    """Mean confidence, accuracy (nan where empty) and count of each bin."""
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    bin_of = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    count = np.bincount(bin_of, minlength=BINS)
    with np.errstate(invalid="ignore"):
        return (
            np.bincount(bin_of, confidence, BINS) / count,
            np.bincount(bin_of, correct, BINS) / count,
            count,
        )


def environment():
    packages = ["keras", "tensorflow", "jax", "torch", "keras-cv", "numpy"]
    versions = {"python": platform.python_version()}
    for package in [*packages, "keras-mixavg", "tensorflow-datasets"]:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    backend = keras.backend.backend()
    devices = keras.distribution.list_devices() if backend == "jax" else []
    devices = devices or [d.name for d in tf.config.list_logical_devices()]
    return {
        "backend": backend,
        "versions": versions,
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "devices": devices,
        },
    }


# --- Pictures ------------------------------------------------------------------------


def read_history(out):
    """`history.csv` as a dict of columns.

    An epoch that was logged and not yet saved when the run was stopped is there twice;
    its last row stays. What an epoch without validation lacks is nan.
    """
    with open(out / "history.csv") as file:
        rows = {row["epoch"]: row for row in csv.DictReader(file)}
    with open(out / "history.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, next(iter(rows.values())))
        writer.writeheader()
        writer.writerows(rows.values())
    columns = {name: [] for row in rows.values() for name in row}
    for row in rows.values():
        for name, values in columns.items():
            missing = row[name] in ("", "NA")
            values.append(float("nan") if missing else float(row[name]))
    return columns


def draw_curves(history):
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    epochs = 1 + np.array(history["epoch"])
    for ax, name, label in (
        (axes[0], "loss", "loss, nats (training: with soft labels and decay)"),
        (axes[1], "accuracy", "accuracy (training: on mixed images)"),
    ):
        ax.plot(epochs, history[name], label="training")
        test = np.array(history.get(f"val_{name}", np.full(len(epochs), np.nan)))
        ax.plot(epochs[~np.isnan(test)], test[~np.isnan(test)], label="test")
        ax.set(xlabel="epoch", ylabel=label)
        ax.grid(alpha=0.3)
        ax.legend()
    return figure


def draw_reliability(logits, labels):
    probabilities, _ = _probabilities(logits)
    confidence, accuracy, count = calibration(probabilities, labels)
    error = 100 * ece(probabilities, labels)
    figure, ax = plt.subplots(figsize=(5, 4.6), layout="constrained")
    centres = (np.arange(BINS) + 0.5) / BINS
    ax.bar(centres, np.nan_to_num(accuracy), 0.9 / BINS, label="accuracy")
    ax.plot([0, 1], [0, 1], "k--", lw=1, label="as confident as accurate")
    ax.plot(
        confidence, accuracy, "o", color="C1", ms=4, label="at its mean probability"
    )
    ax.set(
        xlim=(0, 1),
        ylim=(0, 1),
        xlabel="winning probability",
        ylabel="share that is right",
        title=f"expected calibration error {error:.1f} %, n = {len(labels)}",
    )
    ax.legend(loc="upper left")
    return figure


def save_pictures(out, figures):
    """As PNG files, and in TensorBoard."""
    writer = tf.summary.create_file_writer(str(out / "tensorboard" / "pictures"))
    with writer.as_default():
        for name, figure in figures.items():
            path = out / f"{name}.png"
            figure.savefig(path, dpi=120)
            plt.close(figure)
            pixels = tf.io.decode_png(path.read_bytes(), channels=3)
            tf.summary.image(name, pixels[None], step=0)
    writer.close()


# --- All of it -----------------------------------------------------------------------


def write(out, settings, model, test, class_names, soft_labels, pairs, seconds):
    """Test the model and write everything; returns what is in `result.json`.

    `test` is a dataset of images and class numbers, `soft_labels` the table or None,
    `pairs` the arguments of `plotting.plot_pairs`, `seconds` those of `fit`.
    """
    logits, labels = [], []
    for x, y in test:
        logits.append(keras.ops.convert_to_numpy(model(x.numpy(), training=False)))
        labels.append(y.numpy())
    logits, labels = np.concatenate(logits), np.concatenate(labels)
    history = read_history(out)
    figures = {
        "curves": draw_curves(history),
        "reliability": draw_reliability(logits, labels),
        "pairs": plotting.plot_pairs(*pairs, class_names),
    }
    if soft_labels is not None:
        figures["soft_labels"] = plotting.plot_table(soft_labels, class_names)
    save_pictures(out, figures)
    model.save(out / "model.keras")
    report = {
        "test": figures_of(logits, labels),
        "seconds": seconds,
        "seconds_per_epoch": float(np.median(history["seconds"])),
        "parameters": int(sum(np.prod(w.shape) for w in model.trainable_weights)),
        "test_images": len(labels),
        "settings": {
            name: str(value) if isinstance(value, Path) else value
            for name, value in settings.items()
        },
        **environment(),
    }
    (out / "result.json").write_text(json.dumps(report, indent=1) + "\n")
    shutil.rmtree(out / "backup", ignore_errors=True)  # the run is finished
    return report
