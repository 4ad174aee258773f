"""Pictures of one run, or of several runs of several methods."""

import textwrap
from collections import Counter
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from keras_mixavg import plotting
from training import scores

SHOWN_MIXED, SHOWN_WHOLE = 6, 2  # images of a batch
WIDTH = 16  # characters below an image
CONFUSED = 5  # pairs of classes
FEWEST = 10  # predictions in a bin that is drawn


@dataclass
class Batch:
    """Some images and their labels, before and after a method mixes them."""

    images: np.ndarray
    labels: np.ndarray
    mixed: np.ndarray
    mixed_labels: np.ndarray
    averaged: bool  # whether each mixed image is the average of two


def draw_mixed(batch, names):
    """What the network sees of a batch, or None if nothing is mixed.

    The picture shows more mixed images than whole ones, whatever the draw was.
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
    figure = Figure(figsize=(1.6 * len(first), 4.8), layout="constrained")
    figure.suptitle("What does the network see of a batch?")
    axes = figure.subplots(2, len(first), squeeze=False)
    for column, number in enumerate(labels):
        shares = mixed_labels[column]
        top = [k for k in np.argsort(-shares, kind="stable")[:2] if shares[k] >= 0.005]
        below = "\n".join(f"{100 * shares[k]:.0f} % {names[k]}" for k in top)
        for row, (image, text) in enumerate(
            [(images[column], names[number]), (mixed[column], below)]
        ):
            axes[row, column].imshow(np.clip(image, 0, 255).astype("uint8").squeeze())
            axes[row, column].set(xticks=[], yticks=[])
            axes[row, column].set_xlabel(text, fontsize=8, parse_math=False)
    for ax, title in zip(axes[:, 0], ("image", "seen"), strict=True):
        ax.set_ylabel(title)
    return figure


def draw_curves(title, curves, styles=None):
    """Accuracy and loss over the epochs: thin for each run, thick for their mean.

    Args:
        title: of the picture.
        curves: `{name: (accuracies, losses)}`, each a list with a sequence for each
            run: a number an epoch, nan where there is none. An empty list draws none.
        styles: `{name: options of its thick line}` of matplotlib.
    """
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(1, 2)
    for i, (name, parts) in enumerate(curves.items()):
        style = {
            "color": f"C{i}",
            "lw": 2,
            "label": name,
            **(styles or {}).get(name, {}),
        }
        for ax, runs, scale in zip(axes, parts, (100, 1), strict=True):
            runs = scale * of_one_length(runs)
            if len(runs) > 1:
                for run in runs:
                    _draw_known(ax, run, color=style["color"], lw=0.6, alpha=0.35)
            if len(runs):
                _draw_known(ax, runs.mean(axis=0), **style)
    axes[0].set(ylabel="accuracy, %")
    axes[1].set(ylabel="loss with weight decay, nats")
    for ax in axes:
        ax.set(xlabel="epoch")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(alpha=0.3)
    leave_spikes_out(axes[1])
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def _draw_known(ax, values, **style):
    known = np.flatnonzero(~np.isnan(values))
    if len(known):
        ax.plot(1 + known, values[known], **style)


def of_one_length(runs):
    """Rows that end with nan where a run was stopped early."""
    length = max(map(len, runs), default=0)
    return np.array([[*run, *[np.nan] * (length - len(run))] for run in runs], float)


def leave_spikes_out(ax):
    """Cut off the few early losses that would flatten the rest, and say so."""
    values = np.concatenate([[], *(line.get_ydata() for line in ax.lines)])
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


def draw_reliability(bins, styles=None, title=""):
    """How often predictions are right, by their probability.

    Args:
        bins: `{name: (confidence, accuracy, count)}`, as `scores.calibration` has them.
        styles: `{name: options of its line}` of matplotlib.
        title: more about the predictions.
    """
    figure = Figure(figsize=(5.4, 5.4), layout="constrained")
    figure.suptitle("Is a prediction right as often as it says?")
    ax = figure.subplots()
    ax.set_title(title, fontsize="medium")
    ax.plot([0, 1], [0, 1], "k--", lw=1, label="perfect calibration")
    for i, (name, (confidence, accuracy, count)) in enumerate(bins.items()):
        drawn = count >= FEWEST
        style = {"color": f"C{i}", "marker": "o", "label": name}
        style |= (styles or {}).get(name, {})
        ax.plot(confidence[drawn], accuracy[drawn], ms=4, **style)
    ax.set(
        xlim=(0, 1),
        ylim=(0, 1),
        xlabel="probability of the predicted class",
        ylabel=f"accuracy (bins of {FEWEST} predictions and more)",
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
    predicted = logits.argmax(axis=1)
    confidence = scores.log_probabilities(logits).max(axis=1)
    pairs = Counter(
        (int(a), int(b)) for a, b in zip(labels, predicted, strict=True) if a != b
    ).most_common(CONFUSED)
    columns = max(3, len(pairs))
    figure = Figure(figsize=(2.2 * columns, 3.8), layout="constrained")
    figure.suptitle(
        f"Which classes are confused most often?\n{method}, all "
        f"{len(labels):,} predictions on test images",
        fontsize="medium",
    )
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for ax in axes:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    for ax, ((true, other), count) in zip(axes, pairs, strict=False):
        members = np.flatnonzero((labels == true) & (predicted == other))
        ax.imshow(images[numbers[members[confidence[members].argmax()]]])
        share = 100 * count / np.sum(labels == true)
        ax.set_xlabel(
            f"{names[true]}\npredicted as\n{names[other]}\n"
            f"{count} times, {share:.0f} %",
            fontsize=9,
            parse_math=False,
        )
    if not pairs:
        axes[1].text(0.5, 0.5, "none: all are right", ha="center")
    return figure
