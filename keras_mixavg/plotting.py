"""Pictures of averaged pairs and of the soft-label table (extra: `plot`).

Both functions make their figure without touching matplotlib's global state, so that
they run without a display; show one with `IPython.display.display(figure)` or save it
with `figure.savefig`.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

try:
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError(
        "keras_mixavg.plotting needs matplotlib, which is not installed. Install it "
        "with `pip install matplotlib`."
    ) from error

MAX_NUMBERS = 20  # classes up to which the cells of a table are labelled


def plot_pairs(
    images: Any,
    labels: Any,
    mixed: Any,
    mixed_labels: Any,
    class_names: Sequence[str] | None = None,
    max_columns: int = 8,
) -> Figure:
    """Show images, their partners, and the averages, with their labels.

    The partner of an image is found by what the average tells: of all images, the one
    with which the midpoint is closest to it.

    Args:
        images: the batch before `MixAvg`, `(batch, height, width)` or
            `(batch, height, width, 1 or 3)`, of any range.
        labels: its labels, `(batch,)` integers or `(batch, num_classes)`.
        mixed: the batch after `MixAvg`, of the shape of `images`.
        mixed_labels: its labels, `(batch, num_classes)`.
        class_names: optional names, one for each class; the numbers by default.
        max_columns: how many of the batch to show at most.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: for shapes that do not fit together, or too few names.

    Example:

    >>> images, labels = np.zeros((4, 8, 8, 1)), np.eye(4)
    >>> figure = plot_pairs(images, labels, images, labels)
    """
    images, mixed = _images("images", images), _images("mixed", mixed)
    mixed_labels = _array(mixed_labels)
    if mixed_labels.ndim != 2 or not (
        len(images) == len(mixed) == len(mixed_labels) == len(labels)
        and images.shape == mixed.shape
    ):
        raise ValueError(
            "`images` and `mixed` must have one shape, and `labels` and `mixed_labels` "
            f"as many entries. Received: images.shape={images.shape}, mixed.shape="
            f"{mixed.shape}, {len(labels)} labels, mixed_labels.shape="
            f"{mixed_labels.shape}. Pass one batch before and after MixAvg."
        )
    num_classes = mixed_labels.shape[1]
    names = _names(class_names, num_classes)
    labels = _array(labels)
    if labels.ndim == 1 or labels.shape[1] == 1:
        labels = keras.utils.to_categorical(labels, num_classes)
    columns = min(len(images), max_columns)
    figure = Figure(figsize=(1.5 * columns + 1, 5.6), layout="constrained")
    axes = figure.subplots(3, columns, squeeze=False)
    partners = _partners(images, mixed)
    low, high = float(images.min()), float(images.max())
    for column in range(columns):
        partner = partners[column]
        alone = partner == column
        shown = (
            (images[column], labels[column]),
            (None if alone else images[partner], labels[partner]),
            (mixed[column], mixed_labels[column]),
        )
        for row, (image, label) in enumerate(shown):
            ax = axes[row, column]
            ax.set(xticks=[], yticks=[])
            if image is None:
                ax.set_axis_off()
                ax.text(0.5, 0.5, "kept", ha="center", va="center", color="0.4")
                continue
            gray = {"cmap": "gray", "vmin": low, "vmax": high}
            scaled = (image - low) / (high - low or 1.0)
            ax.imshow(*((image,) if image.ndim == 2 else (scaled,)), **gray)
            ax.set_xlabel(_label_text(label, names), fontsize=9)
    for row, title in enumerate(("image", "partner", "mixed")):
        axes[row, 0].set_ylabel(title, fontsize=11)
        if not axes[row, 0].axison:  # no label on an empty cell: put it beside
            axes[row, 0].text(-0.12, 0.5, title, rotation=90, va="center", fontsize=11)
    return figure


def plot_table(table: Any, class_names: Sequence[str] | None = None) -> Figure:
    """Show a soft-label table: a row for each class, its global soft label.

    The diagonal and the rest have a colour scale each, since what a class shares with
    others is small beside what it keeps.

    Args:
        table: `(num_classes, num_classes)`, rows summing to one, as
            `GlobalSoftLabel.table`.
        class_names: optional names, one for each class; the numbers by default.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: if the table is not square, or for too few names.

    Example:

    >>> figure = plot_table(np.eye(3), ["cat", "dog", "fox"])
    """
    table = _array(table)
    if table.ndim != 2 or table.shape[0] != table.shape[1]:
        raise ValueError(
            "`table` must have shape (num_classes, num_classes). Received: shape "
            f"{table.shape}. With several outputs, pass one entry of "
            "`GlobalSoftLabel.table`."
        )
    num_classes = len(table)
    names = _names(class_names, num_classes)
    few = num_classes <= MAX_NUMBERS
    size = max(4.5, 0.45 * num_classes) if few else 7.0
    figure = Figure(figsize=(size + 3, size), layout="constrained")
    ax = figure.subplots()
    diagonal = np.eye(num_classes, dtype=bool)
    for mask, colours, label in (
        (diagonal, "Blues", "the class itself"),
        (~diagonal, "Oranges", "other classes"),
    ):
        shown: Any = np.ma.masked_array(table, ~mask)
        top = 1.0 if mask is diagonal else max(float(table[mask].max()), 1e-6)
        image = ax.imshow(shown, cmap=colours, vmin=0, vmax=top)
        figure.colorbar(image, ax=ax, label=label, shrink=0.8)
    ax.set(xlabel="probability of", ylabel="global soft label of")
    if few:
        ax.set_xticks(range(num_classes), names, rotation=90)
        ax.set_yticks(range(num_classes), names)
        for (row, column), value in np.ndenumerate(table):
            dark = value > (0.6 if row == column else 0.6 * table[~diagonal].max())
            text = f"{value:.2f}" if row == column else f"{100 * value:.1f}"
            colour = "white" if dark and value > 0 else "0.25"
            ax.text(
                column, row, text, ha="center", va="center", fontsize=7, color=colour
            )
        ax.set_title("diagonal: probability; elsewhere: per cent", fontsize=9)
    return figure


def _array(values: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(values))


def _images(name: str, images: Any) -> np.ndarray:
    images = _array(images).astype("float64")
    if images.ndim not in (3, 4) or (
        images.ndim == 4 and images.shape[-1] not in (1, 3)
    ):
        raise ValueError(
            f"`{name}` must have shape (batch, height, width) or (batch, height, "
            f"width, 1 or 3). Received: {name}.shape={images.shape}. For other data, "
            "draw a picture of your own."
        )
    return images[..., 0] if images.ndim == 4 and images.shape[-1] == 1 else images


def _partners(images: np.ndarray, mixed: np.ndarray) -> list[int]:
    flat = images.reshape(len(images), -1)
    sought = 2 * mixed.reshape(len(mixed), -1) - flat
    return [int(np.argmin(((flat - one) ** 2).sum(axis=1))) for one in sought]


def _names(names: Sequence[str] | None, num_classes: int) -> list[str]:
    if names is None:
        return [str(number) for number in range(num_classes)]
    if len(names) != num_classes:
        raise ValueError(
            f"`class_names` must have {num_classes} entries, one for each class. "
            f"Received: {len(names)}."
        )
    return [str(name) for name in names]


def _label_text(label: np.ndarray, names: list[str]) -> str:
    top = [k for k in np.argsort(-label, kind="stable")[:2] if label[k] > 0]
    if len(top) == 1:
        return names[top[0]]
    return "\n".join(f"{label[k]:.2g} {names[k]}" for k in top)
