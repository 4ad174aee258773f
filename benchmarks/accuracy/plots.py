"""Plots of the runs that grid.py has made."""

from textwrap import fill

import grid
import matplotlib.pyplot as plt
import numpy as np
import provenance
import tables
from tables import OURS, PAIRS, PLAIN
from training import compare
from training.methods import NAMES

FOLDER = grid.FOLDER / "results/plots"


def save_all(name):
    """Draw and save the plots that a grid names."""
    read, _, found = tables.runs_of(name)
    found = {s: methods for s, methods in found.items() if any(methods.values())}
    for kind in read.get("plots", ["accuracy"]) if found else ():
        provenance.save(PLOTS[kind](found), FOLDER / f"{name}_{kind}.png")


def save_gains():
    provenance.save(draw_gains(), FOLDER / "gains.png")


def is_ours(method):
    return method in (PAIRS, OURS) or "pairs" in method or "whole images" in method


def styles(methods):
    """How to draw the line of each method: four stand out, the rest is grey."""
    mixup = next((name for name in tables.of_either("mixup") if name in methods), None)
    colours = {PLAIN: "k", mixup: "C0", PAIRS: "C4", OURS: "C1"}
    grey = {"color": "0.8", "lw": 1, "marker": ""}
    rest = [name for name in methods if name not in colours]
    found = {name: {**grey, "label": "_"} for name in rest}
    if rest:
        found[rest[0]]["label"] = "other methods"
    for name in set(methods) & set(colours):
        coloured = {"color": colours[name], "lw": 1.8, "marker": "o", "zorder": 3}
        found[name] = {**coloured, "label": name}
    return found


def draw_accuracy(found):
    """Every run, and the mean of each method: its accuracy, and its NLL.

    A row for either, and a column for each setting; of one setting side by side.
    """
    names = [m for m in next(iter(found.values())) if any(s[m] for s in found.values())]
    rows, columns = (1, 2) if len(found) == 1 else (2, len(found))
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(max(8.5, 3.6 * columns), 0.4 + rows * (0.6 + 0.32 * len(names))),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    figure.suptitle("Which method is the most accurate, and which has the best NLL?")
    panels = [(score, *of) for score in ("accuracy", "nll") for of in found.items()]
    for ax, (score, setting, methods) in zip(axes.flat, panels, strict=True):
        for i, name in enumerate(names):
            points = list(tables.values(methods[name], score).values())
            if points:
                color = "C1" if is_ours(name) else "C0"
                ax.plot(points, [i] * len(points), "o", ms=4, c=color, alpha=0.6)
                ax.plot(np.mean(points), i, "|", ms=14, mew=2, c=color)
        ax.set(title=fill(setting, 24), xlabel=f"test {tables.SCORES[score][0]}")
        ax.set_yticks(range(len(names)), names)
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.grid(alpha=0.3)
    return figure


def draw_gains():
    """What four methods gain over plain training, in each setting."""
    shown = tables.settings_shown()
    colours = {"MixUp": "C0", "CutMix": "C2", PAIRS: "0.45", OURS: "C1"}
    height = 1.6 + 0.75 * len(shown)
    figure, ax = plt.subplots(figsize=(8, height), layout="constrained")
    figure.suptitle("How much more accurate than plain training?")
    for row, (_, methods) in enumerate(shown):
        plain = tables.values(methods[PLAIN], "accuracy")
        of = [tables.of_either("mixup"), tables.of_either("cutmix"), [PAIRS], [OURS]]
        for i, (names, colour) in enumerate(zip(of, colours.values(), strict=True)):
            runs = next((methods[n] for n in names if methods.get(n)), {})
            ours = tables.values(runs, "accuracy")
            if seeds := sorted(set(plain) & set(ours)):
                gain, half = compare.interval([ours[s] - plain[s] for s in seeds])
                half = half if np.isfinite(half) else 0
                y = row + 0.18 * (i - 1.5)
                ax.errorbar(gain, y, xerr=half, fmt="o", ms=5, c=colour, capsize=3)
    for label, colour in colours.items():
        ax.plot([], [], "o", c=colour, label=label)
    ax.axvline(0, color="k", lw=1)
    ax.set_yticks(range(len(shown)), [fill(setting, 26) for setting, _ in shown])
    ax.set_ylim(len(shown) - 0.5, -0.5)
    ax.set_xlabel("accuracy minus that of plain training, points; bars: 95 %, paired")
    ax.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=4)
    return figure


def draw_reliability(found):
    figure, ax = plt.subplots(figsize=(5.5, 4.8), layout="constrained")
    figure.suptitle("Is a prediction right as often as it says?")
    ax.plot([0, 1], [0, 1], "k--", lw=1)
    setting, methods = list(found.items())[-1]
    lines = styles([name for name, runs in methods.items() if runs])
    for name, runs in methods.items():
        points = np.zeros((16, 3))
        for line in runs.values():
            for p, right, count in zip(*line["test"]["bins"].values(), strict=True):
                points[int(np.ceil(p * 15))] += count * np.array([p, right, 1])
        p, right, count = points[points[:, 2] >= 20].T
        if len(count):
            ax.plot(p / count, right / count, **lines[name], ms=4)
    ax.set(
        title=setting,
        xlabel="winning probability",
        ylabel="share that is right (bins of 20 and more)",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    ax.legend(fontsize="small")
    return figure


def draw_curves(found):
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    setting, methods = list(found.items())[-1]
    figure.suptitle(f"{setting}: what happens over the epochs?")
    lines = styles([name for name, runs in methods.items() if runs])
    for name, runs in methods.items():
        for ax, key in zip(axes, ("val_loss", "val_accuracy"), strict=True):
            if not runs or (name, key) == (NAMES["label_smoothing"], "val_loss"):
                continue  # Keras smooths the labels of the validation data too
            curves = [line["history"][key] for line in runs.values()]
            mean = np.mean(np.array(curves, float), axis=0)
            seen = np.flatnonzero(~np.isnan(mean))
            ax.plot(1 + seen, mean[seen], **lines[name], ms=3)
    axes[0].set(xlabel="epoch", ylabel="test NLL + weight decay, nats")
    axes[1].set(xlabel="epoch", ylabel="test accuracy")
    for ax in axes:
        ax.grid(alpha=0.3)
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside right center")
    return figure


PLOTS = {
    "accuracy": draw_accuracy,
    "reliability": draw_reliability,
    "curves": draw_curves,
}
