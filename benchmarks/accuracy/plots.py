"""Plots of the runs that grid.py has made."""

import re
from textwrap import fill

import grid
import matplotlib.pyplot as plt
import numpy as np
import provenance
import tables
from tables import OURS, PAIRS, PLAIN
from training import compare, pictures, scores
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


def is_ours(runs):
    """Whether these runs averaged pairs."""
    methods = {line["options"]["method"] for line in runs.values()}
    return any(method.startswith(("mixavg", "pairs")) for method in methods)


def in_lines(setting, width):
    """The name of a setting in lines that part no number from what it counts."""
    return fill(re.sub(r"(?<=\d) | (?=class)", "\u00a0", setting), width)


def styles(methods):
    """The line style of each method: five have colours, the rest is grey."""
    mixup = tables.of_either(methods, "mixup")
    colours = {tables.best_rival(methods): "C2", PLAIN: "k", mixup: "C0"}
    colours |= {PAIRS: "C4", OURS: "C1"}
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
    """Accuracy and NLL: a dot for each run, a bar for the mean of each method.

    A row for each score and a column for each setting; one setting has one row.
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
    figure.suptitle("Which method is most accurate, and which has the best NLL?")
    panels = [(score, *of) for score in ("accuracy", "nll") for of in found.items()]
    for ax, (score, setting, methods) in zip(axes.flat, panels, strict=True):
        for i, name in enumerate(names):
            points = list(tables.values(methods[name], score).values())
            if points:
                color = "C1" if is_ours(methods[name]) else "C0"
                ax.plot(points, [i] * len(points), "o", ms=4, c=color, alpha=0.6)
                ax.plot(np.mean(points), i, "|", ms=14, mew=2, c=color)
        ax.set(title=in_lines(setting, 24), xlabel=f"test {tables.SCORES[score][0]}")
        ax.set_yticks(range(len(names)), names)
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.grid(alpha=0.3)
    return figure


def draw_gains():
    """What the mixing methods and the best rival gain over plain training."""
    shown = tables.settings_shown()
    labels = {colour: [] for colour in ("C0", "C2", "C3", "0.45", "C1")}
    height = 1.6 + 0.75 * len(shown)
    figure, ax = plt.subplots(figsize=(8, height), layout="constrained")
    figure.suptitle("How much more accurate than plain training?")
    for row, (_, methods) in enumerate(shown):
        plain = tables.values(methods[PLAIN], "accuracy")
        mixup, cutmix, pairs = tables.mixing(methods)
        rival = tables.best_rival(methods)
        rival = None if rival in (mixup, cutmix, PLAIN) else rival
        names = [mixup, cutmix, rival, pairs, OURS]
        for i, (name, colour) in enumerate(zip(names, labels, strict=True)):
            ours = tables.values(methods.get(name, {}), "accuracy")
            if seeds := sorted(set(plain) & set(ours)):
                gain, half = compare.interval([ours[s] - plain[s] for s in seeds])
                half = half if np.isfinite(half) else None
                y = row + 0.15 * (i - 2)
                ax.errorbar(gain, y, xerr=half, fmt="o", ms=5, c=colour, capsize=3)
                labels[colour] += [name] if name not in labels[colour] else []
    for colour, names in labels.items():
        if names:
            label = " or ".join(names)
            if colour == "C3":
                label = f"the best rival: {'; '.join(names)}"
            ax.plot([], [], "o", c=colour, label=fill(label, 46))
    ax.axvline(0, color="k", lw=1)
    ax.set_yticks(range(len(shown)), [in_lines(setting, 26) for setting, _ in shown])
    ax.set_ylim(len(shown) - 0.5, -0.5)
    ax.set_xlabel("accuracy minus that of plain training, points; bars: 95 %, paired")
    ax.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def fullest(found):
    """`(setting, methods)` of the setting with the most runs, and then epochs.

    The last of several.
    """

    def runs_and_epochs(setting):
        lines = [line for runs in found[setting].values() for line in runs.values()]
        return len(lines), max(len(line["history"]["accuracy"]) for line in lines)

    setting = max(reversed(found), key=runs_and_epochs)
    return setting, found[setting]


def reliability(found):
    """The calibration of each method in the fullest setting, over all its runs."""
    setting, methods = fullest(found)
    methods = {name: runs for name, runs in methods.items() if runs}
    bins = {}
    for name, runs in methods.items():
        sums = np.zeros((3, scores.BINS))  # of confidence, accuracy and count
        for line in runs.values():
            of = line["test"]["bins"]
            for p, right, count in zip(*of.values(), strict=True):
                if np.isnan(p):  # of a run that diverged
                    continue
                bin_of = int(np.ceil(p * scores.BINS)) - 1
                sums[:, bin_of] += count * np.array([p, right, 1])
        bins[name] = *(sums[:2] / np.maximum(sums[2], 1)), sums[2]
    return pictures.draw_reliability(bins, styles(methods), setting)


def curves(found):
    """The curves of each method in the fullest setting: the mean of its runs."""
    setting, methods = fullest(found)
    other_images = NAMES["stopped_early"]  # it validates on training images
    methods = {m: runs for m, runs in methods.items() if runs and m != other_images}

    def mean_of(runs, key):
        curves = [line["history"][key] for line in runs.values()]
        return [np.mean(np.array(curves, float), axis=0)]

    of_methods = {}
    for name, runs in methods.items():
        smoothed = name == NAMES["label_smoothing"]  # Keras smooths the test labels too
        losses = [] if smoothed else mean_of(runs, "val_loss")
        of_methods[name] = mean_of(runs, "val_accuracy"), losses
    title = f"{setting}: how good is each method on test images?"
    return pictures.draw_curves(title, of_methods, styles(methods))


PLOTS = {
    "accuracy": draw_accuracy,
    "reliability": reliability,
    "curves": curves,
}
