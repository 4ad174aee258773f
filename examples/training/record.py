"""What a training run leaves behind: scores, pictures and logs.

`result.json` has the settings, the versions, the machine and the test scores;
`history.csv` a row an epoch; `curves.png`, `reliability.png` and `soft_labels.png` are
drawn from them; `soft_labels.npy` is the table; `tensorboard/` has the scalars and the
pictures.
"""

import csv
import json
import shutil
from collections import Counter
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from keras_mixavg import plotting
from training.environment import environment
from training.scores import BINS, calibration, ece, log_probabilities, scores


def write(args, model, test, class_names, table, pairs, seconds):
    """Test the model and write everything; returns what is in `result.json`.

    Args:
        args: of the program.
        model: trained.
        test: images and class numbers.
        class_names: a list.
        table: the global soft labels, or None.
        pairs: the arguments of `plotting.plot_pairs` but for the names.
        seconds: of `fit`.
    """
    images, labels = test
    logits = logits_of(model, images)
    history = read_history(args.out)
    figures = {
        "curves": draw_curves(history),
        "reliability": draw_reliability(logits, labels),
        "pairs": plotting.plot_pairs(*pairs, class_names),
    }
    if table is not None:
        figures["soft_labels"] = plotting.plot_table(table, class_names)
        np.save(args.out / "soft_labels.npy", table)
    save_pictures(args.out, figures)
    if not args.on_device:  # which is without TensorFlow
        show_in_tensorboard(args.out, figures)
    model.save(args.out / "model.keras")
    result = {
        "test": scores(logits, labels),
        "seconds": seconds,
        "seconds_per_epoch": float(np.median(history["seconds"])),
        "parameters": int(sum(np.prod(w.shape) for w in model.trainable_weights)),
        "test_images": len(labels),
        "settings": settings(args),
        **environment(),
    }
    (args.out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    shutil.rmtree(args.out / "backup", ignore_errors=True)  # the run is finished
    return result


def logits_of(model, images):
    return model.predict(images, batch_size=250, verbose=0)


def settings(args):
    """The arguments, for JSON."""
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(args).items()
        if name != "methods"
    }


# --- Pictures ------------------------------------------------------------------------


SHOWN = 5  # pairs of classes that are confused


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
    probabilities = np.exp(log_probabilities(logits))
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


def draw_confused(model, images, labels, names):
    """The pairs of classes that are confused most often, with an image of each."""
    logits = logits_of(model, images)
    top = logits.argmax(axis=1)
    sure = np.exp(log_probabilities(logits)).max(axis=1)
    pairs = Counter(
        (int(a), int(b)) for a, b in zip(labels, top, strict=True) if a != b
    ).most_common(SHOWN)
    columns = max(2, len(pairs))
    figure, axes = plt.subplots(
        1, columns, figsize=(2.2 * columns, 3), squeeze=False, layout="constrained"
    )
    figure.suptitle("Which classes are confused most often?")
    for ax in axes[0]:
        ax.set_axis_off()
    for ax, ((true, taken), count) in zip(axes[0], pairs, strict=False):
        members = np.flatnonzero((labels == true) & (top == taken))
        ax.imshow(images[members[sure[members].argmax()]])
        share = 100 * count / np.sum(labels == true)
        ax.set_title(
            f"{names[true]}\ntaken for {names[taken]}\n{count} times, {share:.0f} %",
            fontsize=9,
        )
    if not pairs:
        axes[0, 0].text(0.5, 0.5, "none: all are right", ha="center")
    return figure


def save_pictures(out, figures):
    for name, figure in figures.items():
        figure.savefig(out / f"{name}.png", dpi=120)
        plt.close(figure)


def show_in_tensorboard(out, names):
    """The pictures that are saved, beside the scalars."""
    import tensorflow as tf

    writer = tf.summary.create_file_writer(str(out / "tensorboard" / "pictures"))
    with writer.as_default():
        for name in names:
            pixels = tf.io.decode_png((out / f"{name}.png").read_bytes(), channels=3)
            tf.summary.image(name, pixels[None], step=0)
    writer.close()
