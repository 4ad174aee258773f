"""What a training run leaves behind: scores, pictures and logs.

`result.json` has the settings, the versions, the machine and the test scores;
`history.csv` a row an epoch; `curves.png`, `reliability.png` and `soft_labels.png` are
drawn from them; `soft_labels.npy` is the table; `tensorboard/` has the scalars and the
pictures.
"""

import csv
import json
import shutil
import textwrap
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from keras_mixavg import plotting
from training.environment import environment
from training.methods import in_words
from training.scores import BINS, calibration, ece, log_probabilities, scores


@dataclass
class Batch:
    """Some images of a batch and their labels, before and after a method mixes them."""

    images: np.ndarray
    labels: np.ndarray
    mixed: np.ndarray
    mixed_labels: np.ndarray
    averaged: bool  # whether each mixed image is the average of two


def write(args, model, test, class_names, table, batch, seconds):
    """Test the model and write everything; returns what is in `result.json`.

    Args:
        args: of the program.
        model: trained.
        test: images and class numbers.
        class_names: a list.
        table: the global soft labels, or None.
        batch: a Batch, to be shown.
        seconds: of `fit`.
    """
    images, labels = test
    logits = logits_of(model, images)
    history = read_history(args.out)
    figures = {
        "curves": draw_curves(history),
        "reliability": draw_reliability(logits, labels),
    }
    if (pairs := draw_mixed(batch, class_names)) is not None:
        figures["pairs"] = pairs
    if table is not None:
        figures["soft_labels"] = plotting.plot_table(table, class_names)
        np.save(args.out / "soft_labels.npy", table)
    for figure in figures.values():
        say_whose(figure, args)
    np.savez(args.out / "predictions.npz", logits=logits, labels=labels)
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


SHOWN_MIXED, SHOWN_WHOLE = 6, 2  # images of a batch
WIDTH = 16  # letters below an image


def say_whose(figure, args):
    """Put below the title which method and seed a picture is of."""
    whose = f"{in_words(args.method)}, seed {args.seed}"
    figure.suptitle(f"{figure.get_suptitle()}\n{whose}", fontsize="medium")


def draw_mixed(batch, names):
    """What the network sees of a batch, or None where nothing is mixed.

    Which images are mixed is left to chance, so most of those that are shown are.
    """
    differs = np.abs(batch.mixed.astype(float) - batch.images).max(axis=(1, 2, 3)) > 0.5
    if not differs.any():
        return None
    mixed, whole = np.flatnonzero(differs), np.flatnonzero(~differs)
    first = [*mixed[:SHOWN_MIXED], *whole[:SHOWN_WHOLE]]
    order = [*first, *mixed[SHOWN_MIXED:], *whole[SHOWN_WHOLE:]]
    parts = (batch.images, batch.labels, batch.mixed, batch.mixed_labels)
    parts = [part[order] for part in parts]
    names = [textwrap.fill(name, WIDTH) for name in names]
    if batch.averaged:
        return plotting.plot_pairs(*parts, names, max_columns=len(first))
    images, labels, mixed, mixed_labels = (part[: len(first)] for part in parts)
    figure, axes = plt.subplots(
        2, len(first), figsize=(1.6 * len(first), 4.8), layout="constrained"
    )
    figure.suptitle("What does the network see of a batch?")
    for column, number in enumerate(labels):
        shares = mixed_labels[column]
        top = [k for k in np.argsort(-shares, kind="stable")[:2] if shares[k] >= 0.005]
        below = "\n".join(f"{100 * shares[k]:.0f} % {names[k]}" for k in top)
        for row, (image, text) in enumerate(
            [(images[column], names[number]), (mixed[column], below)]
        ):
            axes[row, column].imshow(np.clip(image, 0, 255).astype("uint8").squeeze())
            axes[row, column].set(xticks=[], yticks=[])
            axes[row, column].set_xlabel(text, fontsize=8)
    for ax, title in zip(axes[:, 0], ("image", "seen"), strict=True):
        ax.set_ylabel(title)
    return figure


def draw_curves(history):
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
    figure.suptitle("What happens over the epochs?")
    epochs = 1 + np.array(history["epoch"])
    for ax, name, label in (
        (axes[0], "loss", "loss, nats (training: with soft labels and decay)"),
        (axes[1], "accuracy", "accuracy (training: on mixed images)"),
    ):
        ax.plot(epochs, history[name], label="training")
        test = np.array(history.get(f"val_{name}", np.full(len(epochs), np.nan)))
        ax.plot(epochs[~np.isnan(test)], test[~np.isnan(test)], label="test")
        ax.set(xlabel="epoch", ylabel=label)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(alpha=0.3)
        ax.legend()
    leave_spikes_out(axes[0])
    return figure


def leave_spikes_out(ax):
    """End the axis of a loss where all but a few early epochs are, and say so."""
    values = np.concatenate([line.get_ydata() for line in ax.lines])
    values = values[np.isfinite(values)]
    if not len(values):
        return
    top = 3 * np.percentile(values, 75)
    beyond = int(np.sum(values > top))
    ax.set_ylim(bottom=0)
    if beyond:
        ax.set_ylim(top=top)
        above = f"{beyond} of {len(values)} points are above, up to {values.max():.3g}"
        ax.set_title(above, fontsize="small")


def draw_reliability(logits, labels):
    probabilities = np.exp(log_probabilities(logits))
    confidence, accuracy, count = calibration(probabilities, labels)
    error = 100 * ece(probabilities, labels)
    figure, ax = plt.subplots(figsize=(5.4, 5), layout="constrained")
    figure.suptitle("Is a prediction as likely as it says?")
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
