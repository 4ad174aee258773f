"""Pictures of several runs of several methods, see answer.py."""

from collections import Counter

import numpy as np
from matplotlib.figure import Figure

from training import scores
from training.methods import in_words
from training.record import leave_spikes_out

CONFUSED = 5  # pairs of classes
FEWEST = 10  # predictions of a bin that is drawn


def draw_curves(results):
    """Test accuracy and loss over the epochs: each run, and the mean of each method."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    figure.suptitle("How good is each method on images that it has not seen?")
    axes = figure.subplots(1, 2)
    for i, (method, runs) in enumerate(results.items()):
        for ax, key, scale in zip(
            axes, ("val_accuracy", "val_loss"), (100, 1), strict=True
        ):
            if (method, key) == ("label_smoothing", "val_loss"):
                continue  # Keras smooths the labels of the test images too
            curves = scale * of_one_length([run.history[key] for run in runs])
            epochs = 1 + np.arange(curves.shape[1])
            ax.plot(epochs, curves.T, color=f"C{i}", lw=0.6, alpha=0.35)
            ax.plot(
                epochs, curves.mean(axis=0), color=f"C{i}", lw=2, label=in_words(method)
            )
    axes[0].set(ylabel="test accuracy, %")
    axes[1].set(ylabel="test loss, nats (with weight decay)")
    for ax in axes:
        ax.set(xlabel="epoch")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(alpha=0.3)
    leave_spikes_out(axes[1])
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def of_one_length(curves):
    """Rows that end with nan, where a run was stopped early."""
    length = max(map(len, curves))
    return np.array([[*curve, *[np.nan] * (length - len(curve))] for curve in curves])


def draw_reliability(results):
    """How often each method is right, by how likely it says that it is."""
    figure = Figure(figsize=(5.4, 5.4), layout="constrained")
    figure.suptitle("Is a prediction as likely as it says?")
    ax = figure.subplots()
    ax.plot([0, 1], [0, 1], "k--", lw=1, label="as confident as accurate")
    for i, (method, runs) in enumerate(results.items()):
        logits = np.concatenate([run.logits for run in runs])
        labels = np.concatenate([run.labels for run in runs])
        p = np.exp(scores.log_probabilities(logits))
        confidence, accuracy, count = scores.calibration(p, labels)
        drawn = count >= FEWEST
        ax.plot(
            confidence[drawn], accuracy[drawn], "o-", color=f"C{i}", ms=4, lw=1.5,
            label=in_words(method),
        )  # fmt: skip
    ax.set(
        xlim=(0, 1),
        ylim=(0, 1),
        xlabel="winning probability",
        ylabel=f"share that is right (bins of {FEWEST} and more)",
    )
    ax.grid(alpha=0.3)
    ax.legend(loc="upper left", fontsize="small")
    return figure


def draw_confused(method, runs, images, names):
    """The pairs of classes that are confused most often, with an image of each."""
    numbers, labels, logits = (
        np.concatenate([getattr(run, part) for run in runs])
        for part in ("images", "labels", "logits")
    )
    taken = logits.argmax(axis=1)
    sure = scores.log_probabilities(logits).max(axis=1)
    pairs = Counter(
        (int(a), int(b)) for a, b in zip(labels, taken, strict=True) if a != b
    ).most_common(CONFUSED)
    columns = max(3, len(pairs))
    figure = Figure(figsize=(2.2 * columns, 3.8), layout="constrained")
    figure.suptitle(
        f"Which classes are confused most often?\n{in_words(method)}, all "
        f"{len(labels):,} predictions on test images",
        fontsize="medium",
    )
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for ax in axes:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    for ax, ((true, other), count) in zip(axes, pairs, strict=False):
        members = np.flatnonzero((labels == true) & (taken == other))
        ax.imshow(images[numbers[members[sure[members].argmax()]]])
        share = 100 * count / np.sum(labels == true)
        ax.set_xlabel(
            f"{names[true]}\ntaken for\n{names[other]}\n{count} times, {share:.0f} %",
            fontsize=9,
        )
    if not pairs:
        axes[1].text(0.5, 0.5, "none: all are right", ha="center")
    return figure
