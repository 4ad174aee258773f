"""Tables and plots of what the grids have found: accuracy, likelihood, calibration.

The runs are made by grid.py beside this file.
"""

from collections import Counter
from textwrap import fill

import grid
import matplotlib.pyplot as plt
import numpy as np
import record
from training import compare
from training.methods import NAMES

SCORES = {  # name: heading, factor, digits
    "training": ("training accuracy %", 100, 1),
    "accuracy": ("accuracy %", 100, 2),
    "nll": ("NLL, nats", 1, 3),
    "scaled_nll": ("NLL after one temperature", 1, 3),
    "ece": ("ECE %", 100, 1),
}
PLAIN, PAIRS = NAMES["erm"], NAMES["mixavg_local"]
OURS = NAMES["mixavg"]  # at the package's defaults
TURNS = "pairs and CutMix in turns"
RIVALS = [  # those that may be the best rival of a setting
    name
    for method, name in NAMES.items()
    if method not in ("erm", "stopped_early", "mixavg_local", "mixavg")
]
BEST_RIVAL = "the best rival"  # as a baseline


def runs_of(name):
    """The grid, how many runs it compares, and those that are finished.

    Returns:
        `(grid, total, {setting: {method: {seed: line}}})`.
    """
    read, runs = grid.read(grid.GRIDS / f"{name}.toml")
    done = grid.finished()
    found = {s: {m: {} for m in read["methods"]} for s in read["settings"]}
    for run in runs:
        line = done.get(grid.key(run.options, run.seed))
        if line and run.method in read["methods"]:
            found[run.setting][run.method][run.seed] = line
    total = len(read["settings"]) * len(read["methods"]) * len(read["seeds"])
    return read, total, found


def value(line, score):
    """A score as tables show it; None where a run of an older program lacks it."""
    if score == "training":
        raw = line["history"]["accuracy"][-1]
    else:
        raw = line["test"].get(score)
    return None if raw is None else SCORES[score][1] * raw


def values(runs, score):
    """`{seed: value}` of those runs of a method that have it."""
    found = {seed: value(line, score) for seed, line in runs.items()}
    return {seed: number for seed, number in found.items() if number is not None}


def mean(runs, score):
    return float(np.mean(list(values(runs, score).values())))


def difference(runs, baseline, score):
    return compare.difference(
        values(runs, score), values(baseline, score), SCORES[score][2]
    )


def best_rival(methods):
    """The name of the most accurate rival that has been run, or None."""
    there = [name for name in RIVALS if methods.get(name)]
    return max(there, key=lambda name: mean(methods[name], "accuracy"), default=None)


# --- Tables --------------------------------------------------------------------------


def table(name):
    """The text about a grid: a table for each setting, and how they were made."""
    read, total, found = runs_of(name)
    done = {
        setting: [line for runs in methods.values() for line in runs.values()]
        for setting, methods in found.items()
    }
    lines = sum(done.values(), [])
    text = f"**{read['title']}.** {len(lines)} of {total} runs are done.\n"
    if not lines:
        return text
    for setting, methods in found.items():
        if done[setting]:
            images = done[setting][0]["test_images"]
            text += f"\n*{setting}; {images:,} test images*\n\n"
            text += setting_table(methods, read["baselines"])
    if read.get("anchors"):
        anchors = ", ".join(f"{k} {v}" for k, v in read["anchors"].items())
        text += f"\nPublished anchors, accuracy %: {anchors}.\n"
    command = f"python benchmarks/grid.py benchmarks/grids/{name}.toml --data-dir DIR"
    text += f"\n`{command}`, {made_on(lines)}.\n"
    for kind in read.get("plots", ["accuracy"]):
        text += f"\n![{read['title']}: {kind}](results/plots/{name}_{kind}.png)\n"
    return text


def made_on(lines):
    """Machine and versions of the runs, each once; with their number if they differ."""
    found = Counter(
        record.made_on(line, ["keras", line["backend"]], line["backend"])
        for line in lines
    )
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(
        f"{count} run{'s' * (count > 1)} on {text}" for text, count in found.items()
    )


def setting_table(methods, baselines):
    """A row for each method, and its accuracy minus that of each baseline."""
    methods = {name: runs for name, runs in methods.items() if runs}
    baselines = {
        name: best_rival(methods) if name == BEST_RIVAL else name for name in baselines
    }
    baselines = {name: of for name, of in baselines.items() if of in methods}
    header = ["method", "n", *(heading for heading, *_ in SCORES.values())]
    for name, of in baselines.items():
        header.append(f"accuracy minus {name}" + f" ({of})" * (name == BEST_RIVAL))
    rows = []
    for method, runs in methods.items():
        rows.append([method, len(runs)])
        for score, (_, _, digits) in SCORES.items():
            found = list(values(runs, score).values())
            rows[-1].append(compare.mean_and_spread(found, digits) if found else "-")
        rows[-1] += [
            "-" if method == of else difference(runs, methods[of], "accuracy")
            for of in baselines.values()
        ]
    return record.markdown(header, rows)


def choices(name):
    """What the rivals of a grid were tried with, and what each got, as a table."""
    read, _, _ = runs_of(name)
    done, rows = grid.finished(), []
    for setting, of in read["settings"].items():
        for method, own in read["methods"].items():
            if "choose" not in own:
                continue
            options = {**read.get("common", {}), **of, **own}
            runs, chosen = grid.choice(setting, method, options, read["choice"], done)
            tried = {}
            for run in runs:
                line = done.get(grid.key(run.options, run.seed))
                option = run.method.removeprefix(f"{method}, ")
                tried.setdefault(option, []).append(line)
            if not any(sum(tried.values(), [])):
                continue
            for option, candidate in zip(tried, own["choose"], strict=True):
                lines = [line for line in tried[option] if line]
                accuracies = [value(line, "accuracy") for line in lines]
                is_it = chosen is not None and candidate.items() <= chosen.items()
                rows.append(
                    [setting, method, option, len(lines)]
                    + [f"{np.mean(accuracies):.2f}" if lines else "-"]
                    + ["yes" if is_it else ""]
                )
    header = ["setting", "method", "option", "n", "accuracy on held-out images %"]
    return record.markdown([*header, "chosen"], rows)


GRIDS_SHOWN = ("memorise", "fair", "capacity")


def settings_shown():
    """`(setting, methods)` of each setting that has runs of ours, no run twice; that
    which plain training memorises best comes first."""
    found, shown = [], set()
    for name in GRIDS_SHOWN:
        for setting, methods in runs_of(name)[2].items():
            lines = methods.get(OURS, {}).values()
            keys = {grid.key(line["options"], line["seed"]) for line in lines}
            if methods.get(PLAIN) and not keys <= shown:
                shown |= keys
                found.append((setting, methods))
    return sorted(found, key=lambda item: -mean(item[1][PLAIN], "training"))


def summary():
    """README.md's table: absolute accuracies, and what ours gains."""
    header = ["data, network", "n", "training accuracy of plain training %"]
    header += [PLAIN, "MixUp", "CutMix", PAIRS, f"**{OURS}**", "gain over plain"]
    header += ["gain over the best rival", "NLL after one temperature, plain and ours"]
    rows = []
    for setting, methods in settings_shown():
        plain, ours, rival = methods[PLAIN], methods[OURS], best_rival(methods)
        rows.append([setting, len(ours), f"{mean(plain, 'training'):.0f}"])
        for names in ([PLAIN], of_either("mixup"), of_either("cutmix"), [PAIRS]):
            there = [methods[name] for name in names if methods.get(name)]
            rows[-1].append(f"{mean(there[0], 'accuracy'):.1f}" if there else "-")
        rows[-1].append(f"**{mean(ours, 'accuracy'):.1f}**")
        rows[-1].append(difference(ours, plain, "accuracy"))
        rows[-1].append(
            f"{difference(ours, methods[rival], 'accuracy')}, {rival}" if rival else "-"
        )
        nll = [f"{mean(runs, 'scaled_nll'):.2f}" for runs in (plain, ours)]
        rows[-1].append(", ".join(nll))
    return record.markdown(header, rows)


def of_either(method):
    """The published method, or Keras' layer where only that has been run."""
    return [NAMES[method], NAMES[f"keras_{method}"]]


def claims():
    """Each step of the method against the one before, in each setting."""
    header = ["setting", "n", f"{PAIRS} - {PLAIN}", f"{OURS} - {PAIRS}"]
    header += [f"{OURS} - {BEST_RIVAL}", f"{TURNS} - {OURS}"]
    rows = []
    for setting, methods in settings_shown():
        steps = [(PAIRS, PLAIN), (OURS, PAIRS), (OURS, best_rival(methods))]
        rows.append([setting, len(methods[OURS])])
        rows[-1] += [
            difference(methods.get(one, {}), methods.get(other, {}), "accuracy")
            for one, other in [*steps, (TURNS, OURS)]
        ]
    return record.markdown(header, rows)


# --- Plots ---------------------------------------------------------------------------


def plot(name):
    """Draw and save the plots that a grid names."""
    read, _, found = runs_of(name)
    found = {s: methods for s, methods in found.items() if any(methods.values())}
    for kind in read.get("plots", ["accuracy"]) if found else ():
        record.save(PLOTS[kind](found), f"{name}_{kind}")


def is_ours(method):
    return method in (PAIRS, OURS) or "pairs" in method or "whole images" in method


def styles(methods):
    """How to draw the line of each method: four stand out, the rest is grey."""
    mixup = next((name for name in of_either("mixup") if name in methods), None)
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
            points = list(values(methods[name], score).values())
            if points:
                color = "C1" if is_ours(name) else "C0"
                ax.plot(points, [i] * len(points), "o", ms=4, c=color, alpha=0.6)
                ax.plot(np.mean(points), i, "|", ms=14, mew=2, c=color)
        ax.set(title=fill(setting, 24), xlabel=f"test {SCORES[score][0]}")
        ax.set_yticks(range(len(names)), names)
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.grid(alpha=0.3)
    return figure


def draw_gains():
    """What four methods gain over plain training, in each setting."""
    shown = settings_shown()
    colours = {"MixUp": "C0", "CutMix": "C2", PAIRS: "0.45", OURS: "C1"}
    height = 1.6 + 0.75 * len(shown)
    figure, ax = plt.subplots(figsize=(8, height), layout="constrained")
    figure.suptitle("How much more accurate than plain training?")
    for row, (_, methods) in enumerate(shown):
        plain = values(methods[PLAIN], "accuracy")
        of = [of_either("mixup"), of_either("cutmix"), [PAIRS], [OURS]]
        for i, (names, colour) in enumerate(zip(of, colours.values(), strict=True)):
            runs = next((methods[n] for n in names if methods.get(n)), {})
            ours = values(runs, "accuracy")
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
