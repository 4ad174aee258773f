"""Pictures of averaged pairs and of the soft-label table (extra: `plot`).

Both functions make their figure without touching matplotlib's global state, so that
they run without a display. A notebook shows what they return; elsewhere save it with
`figure.savefig`.
"""

import io
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

MAX_NUMBERS = 20  # classes; a larger table has no number in each cell
PAIRS_SHOWN = 20  # the most confused pairs, listed beside a larger table
BAR_LABEL = "share given to the other class, %"


class _Figure(Figure):
    """A figure that a notebook shows although pyplot did not make it."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()


def plot_pairs(
    images: Any,
    labels: Any,
    mixed: Any,
    mixed_labels: Any,
    class_names: Sequence[str] | None = None,
    max_columns: int = 8,
) -> Figure:
    """Show images, their partners, and the averages, with their labels.

    The partner of an image is found from the average: it is the image whose midpoint
    with the first is closest to the average.

    Args:
        images: the batch before `MixAvg`, `(batch, height, width)` or
            `(batch, height, width, 1 or 3)`, of any range.
        labels: its labels, `(batch,)` integers or `(batch, num_classes)`.
        mixed: the batch after `MixAvg`, of the shape of `images`.
        mixed_labels: its labels, `(batch, num_classes)`.
        class_names: optional names, one for each class; the numbers by default.
        max_columns: the largest number of images to show.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: for shapes that do not fit together, or a wrong number of names.

    Example:

    >>> images, labels = np.zeros((4, 8, 8, 1)), np.eye(4)
    >>> figure = plot_pairs(images, labels, images, labels)
    """
    images, mixed = _images("images", images), _images("mixed", mixed)
    labels, mixed_labels = _array(labels), _array(mixed_labels)
    _check_pairs(images, labels, mixed, mixed_labels)
    num_classes = mixed_labels.shape[1]
    names = _names(class_names, num_classes)
    if labels.ndim == 1 or labels.shape[1] == 1:
        labels = keras.utils.to_categorical(labels, num_classes)
    columns = min(len(images), max_columns)
    figure = _Figure(figsize=(1.5 * columns + 1, 5.9), layout="constrained")
    figure.suptitle("What does the network see of a batch?")
    axes = figure.subplots(3, columns, squeeze=False)
    scale = float(images.min()), float(images.max())
    for column, partner in enumerate(_partners(images, mixed)[:columns]):
        kept = partner == column
        _show(
            axes[0, column], images[column], _label_text(labels[column], names), scale
        )
        if kept:
            axes[1, column].set_axis_off()
            axes[1, column].text(0.5, 0.5, "none", ha="center", va="center")
        else:
            text = _label_text(labels[partner], names)
            _show(axes[1, column], images[partner], text, scale)
        text = _label_text(mixed_labels[column], names)
        if not kept and "\n" not in text:
            text = f"{text},\nboth of the pair"
        _show(axes[2, column], mixed[column], text, scale)
    for ax, title in zip(axes[:, 0], ("image", "partner", "seen"), strict=True):
        ax.set_ylabel(title, fontsize=11)
        if not ax.axison:  # an empty cell has no axis label
            ax.text(-0.12, 0.5, title, rotation=90, va="center", fontsize=11)
    return figure


def plot_table(table: Any, class_names: Sequence[str] | None = None) -> Figure:
    """Show a soft-label table: which classes the network confuses.

    The colour of a cell is the share of the soft label of its row that goes to the
    class of its column, in per cent. The diagonal has no colour, since it is so much
    larger that nothing else would show; with few classes its value is written. With
    many classes the most confused pairs are listed beside the table.

    Args:
        table: `(num_classes, num_classes)`, rows summing to one, as
            `GlobalSoftLabel.table`.
        class_names: optional names, one for each class; the numbers by default.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: if the table is not square, or for a wrong number of names.

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
    names = _names(class_names, len(table))
    few = len(table) <= MAX_NUMBERS
    size = max(3.5, 0.45 * len(table)) if few else 6.0
    room = 1.0 + 0.085 * max(map(len, names)) if few else 0.0  # for the names
    width, height = size + (1.5 if few else 6) + room, size + room
    figure = _Figure(figsize=(width, height), layout="constrained")
    figure.suptitle("Which classes does the network confuse?")
    axes = figure.subplots(1, 1 if few else 2, squeeze=False)[0]
    percent = 100.0 * table
    diagonal = np.eye(len(table), dtype=bool)
    shown: Any = np.ma.masked_array(percent, diagonal)
    top = max(float(percent[~diagonal].max()), 1e-6)
    image = axes[0].imshow(shown, cmap="Oranges", vmin=0, vmax=top)
    axes[0].set(xlabel="confused with", ylabel="class", facecolor="0.92")
    figure.colorbar(image, ax=axes[0], label=BAR_LABEL, shrink=0.8)
    if few:
        _write_numbers(axes[0], percent, names, top)
    else:
        _name_pairs(axes[1], percent, names)
    return figure


def _write_numbers(ax: Any, percent: np.ndarray, names: list[str], top: float) -> None:
    # A name may have a dollar, which is no mathematics.
    ax.set_xticks(range(len(names)), names, rotation=90, parse_math=False)
    ax.set_yticks(range(len(names)), names, parse_math=False)
    for (row, column), value in np.ndenumerate(percent):
        own = row == column
        text = f"{value:.0f}" if own else f"{value:.1f}"
        colour = "white" if not own and value > 0.6 * top else "0.2"
        weight = "bold" if own else "normal"
        ax.text(column, row, text, ha="center", va="center", fontsize=7,
                color=colour, weight=weight)  # fmt: skip


def _name_pairs(ax: Any, percent: np.ndarray, names: list[str]) -> None:
    """The largest entries off the diagonal as bars, each with its two names."""
    others = np.where(np.eye(len(percent), dtype=bool), -1.0, percent)
    largest = np.argsort(-others, axis=None, kind="stable")[:PAIRS_SHOWN]
    rows, columns = np.unravel_index(largest, percent.shape)
    texts = [f"{names[r]} with {names[c]}" for r, c in zip(rows, columns, strict=True)]
    ax.barh(range(len(texts)), others[rows, columns], color="tab:orange")
    ax.set_yticks(range(len(texts)), texts, fontsize=8, parse_math=False)
    ax.invert_yaxis()
    ax.set(xlabel=BAR_LABEL)
    ax.spines[["top", "right"]].set_visible(False)


def _show(ax: Any, image: np.ndarray, text: str, scale: tuple[float, float]) -> None:
    low, high = scale
    gray = {"cmap": "gray", "vmin": low, "vmax": high}
    scaled = image if image.ndim == 2 else (image - low) / (high - low or 1.0)
    ax.imshow(scaled, **gray)
    ax.set(xticks=[], yticks=[])
    ax.set_xlabel(text, fontsize=9, parse_math=False)


def _check_pairs(
    images: np.ndarray,
    labels: np.ndarray,
    mixed: np.ndarray,
    mixed_labels: np.ndarray,
) -> None:
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


def _array(values: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(values))


def _images(name: str, images: Any) -> np.ndarray:
    images = _array(images).astype("float64")
    if images.ndim not in (3, 4) or (
        images.ndim == 4 and images.shape[-1] not in (1, 3)
    ):
        raise ValueError(
            f"`{name}` must have shape (batch, height, width) or (batch, height, "
            f"width, 1 or 3). Received: {name}.shape={images.shape}. Plot other data "
            "yourself."
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
    return "\n".join(f"{100 * label[k]:.0f} % {names[k]}" for k in top)
