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

SCORES = {  # name: heading, factor, digits
    "accuracy": ("accuracy %", 100, 2),
    "training": ("training accuracy %", 100, 1),
    "nll": ("NLL, nats", 1, 3),
    "scaled_nll": ("NLL scaled", 1, 3),
    "ece": ("ECE %", 100, 2),
    "scaled_ece": ("ECE scaled %", 100, 2),
}
WORDS = {  # of methods, for people
    "erm": "plain training",
    "mixup": "MixUp",
    "label_smoothing": "label smoothing",
    "cutmix": "CutMix",
    "regmixup": "RegMixup",
    "ols": "Online Label Smoothing",
    "mixavg_local": "averaged pairs",
    "mixavg": "pairs and table",
}


def runs_of(name):
    """The grid, and its finished runs as `{setting: {method: {seed: line}}}`."""
    read, runs = grid.read(grid.GRIDS / f"{name}.toml")
    done = grid.finished()
    found = {s: {m: {} for m in read["methods"]} for s in read["settings"]}
    for run in runs:
        line = done.get(grid.key(run.options, run.seed))
        if line:
            found[run.setting][run.method][run.seed] = line
    return read, len(runs), found


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


def known(plain):
    """How much of its own images plain training knows, in %: the mean of its runs."""
    return np.mean(list(values(plain, "training").values()))


def difference(runs, baseline, score):
    return compare.difference(
        values(runs, score), values(baseline, score), SCORES[score][2]
    )


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
    methods = {name: runs for name, runs in methods.items() if runs}
    baselines = [name for name in baselines if name in methods]
    header = ["method", "n", *(heading for heading, *_ in SCORES.values())]
    header.append("epoch, x erm")
    for baseline in baselines:
        header += [f"accuracy - {baseline}", f"NLL - {baseline}"]
    rows = []
    for method, runs in methods.items():
        rows.append([method, len(runs)])
        for score, (_, _, digits) in SCORES.items():
            found = list(values(runs, score).values())
            rows[-1].append(compare.mean_and_spread(found, digits) if found else "-")
        rows[-1].append(times_plain(methods, runs))
        for baseline in baselines:
            rows[-1] += [
                "-"
                if method == baseline
                else difference(runs, methods[baseline], score)
                for score in ("accuracy", "nll")
            ]
    return record.markdown(header, rows)


def times_plain(methods, runs):
    """The fastest epoch over that of plain training: runs shared the machine."""
    if "erm" not in methods:
        return "-"
    fastest, plain = (
        min(min(line["history"]["seconds"]) for line in some.values())
        for some in (runs, methods["erm"])
    )
    return f"{fastest / plain:.2f}"


CLAIMED = {
    "memorise": "mixavg, .5 fading",
    "capacity": "mixavg, .5 fading",
    "few_images": "mixavg, .5 fading",
    "data": "mixavg, .5 fading",
    "underfits": "mixavg, .1",
}
CLAIMS = [  # of the whole method: score, baseline
    ("accuracy", "erm"),
    ("accuracy", "mixup"),
    ("accuracy", "cutmix"),
    ("accuracy", "mixavg_local"),
    ("nll", "erm"),
]


def claims():
    """The differences that README.md speaks of, in each setting; no run twice."""
    rows, shown = [], set()
    for name, method in CLAIMED.items():
        for setting, methods in runs_of(name)[2].items():
            ours = methods[method]
            keys = {grid.key(line["options"], line["seed"]) for line in ours.values()}
            if keys <= shown:
                continue
            shown |= keys
            rows.append([setting, len(ours), f"{known(methods['erm']):.0f}"])
            rows[-1] += [
                difference(ours, methods[base], score) if base in methods else "-"
                for score, base in CLAIMS
            ]
    names = {"accuracy": "accuracy", "nll": "NLL"}
    header = ["setting", "n", "plain training knows %"]
    for score, baseline in CLAIMS:
        header.append(f"{names[score]} - {WORDS[baseline]}")
    return record.markdown(header, rows)


# --- Plots ---------------------------------------------------------------------------


def plot(name):
    """Draw and save the plots that a grid names."""
    read, _, found = runs_of(name)
    found = {s: methods for s, methods in found.items() if any(methods.values())}
    for kind in read.get("plots", ["accuracy"]) if found else ():
        record.save(PLOTS[kind](found), f"{name}_{kind}")


def in_words(method):
    """`"mixavg, .75 fading"` as `"pairs and table, .75 fading"`."""
    head = method.replace(",", " ").split()[0]
    return method.replace(head, WORDS.get(head, head), 1)


def style(i, method):
    """Ours stands out."""
    return {"color": f"C{i}", "ls": "-" if "mixavg" in method else "--", "marker": "o"}


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
    figure.suptitle("Which method is the most accurate, and which knows what it knows?")
    panels = [(score, *of) for score in ("accuracy", "nll") for of in found.items()]
    for ax, (score, setting, methods) in zip(axes.flat, panels, strict=True):
        for i, name in enumerate(names):
            points = list(values(methods[name], score).values())
            if points:
                color = "C1" if "mixavg" in name else "C0"
                ax.plot(points, [i] * len(points), "o", ms=4, c=color, alpha=0.6)
                ax.plot(np.mean(points), i, "|", ms=14, mew=2, c=color)
        ax.set(title=fill(setting, 24), xlabel=f"test {SCORES[score][0]}")
        ax.set_yticks(range(len(names)), [in_words(name) for name in names])
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.grid(alpha=0.3)
    return figure


def draw_regime(found):
    """What each method gains, against how much of its images plain training knows."""
    figure, ax = plt.subplots(figsize=(8, 4.4), layout="constrained")
    figure.suptitle("Is it for a network that memorises, or for one that underfits?")
    places = {
        setting: known(methods["erm"])
        for setting, methods in found.items()
        if methods["erm"]
    }
    names = [name for name in next(iter(found.values())) if name != "erm"]
    for i, name in enumerate(names):
        points = []
        for setting, x in places.items():
            ours, plain = (values(found[setting][m], "accuracy") for m in (name, "erm"))
            if seeds := sorted(set(ours) & set(plain)):
                mean, half = compare.interval([ours[s] - plain[s] for s in seeds])
                beside = 0.5 * (i - (len(names) - 1) / 2)  # the other methods
                points.append((x + beside, mean, half if np.isfinite(half) else 0))
        if points:
            x, y, half = zip(*sorted(points), strict=True)
            ax.errorbar(x, y, half, **style(i, name), capsize=3, label=in_words(name))
    ax.axhline(0, color="k", lw=1)
    last = [fill(setting.split(", ")[-1], 10) for setting in places]
    top = ax.secondary_xaxis("top")
    top.set_xticks(list(places.values()), last, fontsize="x-small")
    ax.set(
        xlabel="training accuracy of plain training, %",
        ylabel="test accuracy minus plain training's, points",
    )
    ax.grid(alpha=0.3)
    figure.legend(loc="outside right center")
    return figure


def draw_reliability(found):
    figure, ax = plt.subplots(figsize=(5.5, 4.8), layout="constrained")
    figure.suptitle("Is a prediction as likely as it says?")
    ax.plot([0, 1], [0, 1], "k--", lw=1)
    setting, methods = list(found.items())[-1]
    for i, (name, runs) in enumerate(methods.items()):
        points = np.zeros((16, 3))
        for line in runs.values():
            for p, right, count in zip(*line["test"]["bins"].values(), strict=True):
                points[int(np.ceil(p * 15))] += count * np.array([p, right, 1])
        p, right, count = points[points[:, 2] >= 20].T
        if len(count):
            ax.plot(p / count, right / count, **style(i, name), ms=4, lw=1)
            ax.lines[-1].set_label(in_words(name))
    ax.set(
        title=setting,
        xlabel="winning probability",
        ylabel="share that is right (bins of 20 and more)",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    ax.legend(fontsize="x-small")
    return figure


def draw_curves(found):
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    setting, methods = list(found.items())[-1]
    figure.suptitle(f"{setting}: what happens over the epochs?")
    for i, (name, runs) in enumerate(methods.items()):
        for ax, key in zip(axes, ("val_loss", "val_accuracy"), strict=True):
            if not runs or (name, key) == ("label_smoothing", "val_loss"):
                continue  # Keras smooths the labels of the validation data too
            curves = [line["history"][key] for line in runs.values()]
            mean = np.mean(np.array(curves, float), axis=0)
            seen = np.flatnonzero(~np.isnan(mean))
            ax.plot(1 + seen, mean[seen], **style(i, name), ms=3, label=in_words(name))
    axes[0].set(xlabel="epoch", ylabel="test NLL + weight decay, nats")
    axes[1].set(xlabel="epoch", ylabel="test accuracy")
    for ax in axes:
        ax.grid(alpha=0.3)
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside right center")
    return figure


PLOTS = {
    "accuracy": draw_accuracy,
    "regime": draw_regime,
    "reliability": draw_reliability,
    "curves": draw_curves,
}
