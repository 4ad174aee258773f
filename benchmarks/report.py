"""Write the tables of the READMEs, and draw their plots, from the JSON results.

    python -m benchmarks.report            # rewrite both READMEs and results/plots/
    python -m benchmarks.report --check    # only say whether they are up to date

What stands between `<!-- NAME -->` and `<!-- end -->`, in README.md beside this file
and in the project's, is made here, the rest is written by hand. Each table says which
command made its figures.
"""

import argparse
import json
import re
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from benchmarks.accuracy import RESULTS as ACCURACY
from benchmarks.accuracy import read_grid

BENCHMARKS = Path(__file__).resolve().parent
sys.path.insert(0, str(BENCHMARKS.parent / "examples"))
from training import compare  # noqa: E402

RESULTS = BENCHMARKS / "results"
PLOTS = RESULTS / "plots"
READMES = [BENCHMARKS / "README.md", BENCHMARKS.parent / "README.md"]
BLOCK = re.compile(r"(<!-- ([\w: ]+) -->\n).*?(<!-- end -->)", re.DOTALL)


# --- Statistics ----------------------------------------------------------------------


def difference(runs, baseline, read, digits):
    """`mean [low, high]` of what `read` finds in runs of the same seeds."""
    return compare.difference(
        {seed: read(run) for seed, run in runs.items()},
        {seed: read(run) for seed, run in baseline.items()},
        digits,
    )


# --- Text ----------------------------------------------------------------------------


def table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"


def versions(record, names):
    known = {
        "keras": "Keras",
        "tensorflow": "TensorFlow",
        "jax": "JAX",
        "numpy": "NumPy",
    }
    found = [n for n in names if n in record["versions"]]
    return ", ".join(f"{known.get(n, n)} {record['versions'][n]}" for n in found)


def load(name):
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


# --- Speed ---------------------------------------------------------------------------


def input_pipeline(draw):
    record = load("input_pipeline")
    by_key = defaultdict(dict)
    for row in record["rows"]:
        key = row["dtype"], row["batch"], row["side"], row["parallel_calls"]
        by_key[key][row["layer"]] = row
    rows = []
    for (dtype, batch, side, calls), layers in by_key.items():
        ours = layers["MixAvg"]

        def faster(*names, layers=layers, ours=ours):
            best = min(layers[name]["ms_per_batch"] for name in names)
            return f"{best / ours['ms_per_batch']:.1f}"

        spread = [batch / ms * 1e3 for ms in reversed(ours["quartiles_ms"])]
        rows.append(
            [
                f"{dtype}, {batch} of {side} px",
                calls,
                f"{ours['images_per_second']:,.0f}",
                " to ".join(f"{value:,.0f}" for value in spread),
                faster("keras MixUp"),
                faster("keras MixUp", ours=layers["copy and seed"]),
                faster("keras CutMix"),
                faster("keras_cv MixUp", "keras_cv CutMix"),
                f"{ours['share_of_memory_limit']:.2f}",
            ]
        )
    text = table(
        ["input", "calls", "images/s", "quartiles", "x keras MixUp"]
        + ["a copy and a seed, x keras MixUp", "x keras CutMix", "x best of KerasCV"]
        + ["share of the memory's limit"],
        rows,
    )
    if record["memory"]:
        memory = defaultdict(dict)
        for row in record["memory"]:
            memory[row["layer"]][f"{row['dtype']}, {row['side']} px"] = row["peak_mib"]
        columns = list(next(iter(memory.values())))
        plain = memory["none"]
        text += "\nPeak memory of a process that maps 20 batches, MiB beyond the same "
        text += "process without a layer:\n\n"
        text += table(
            ["layer", *columns],
            [
                [name, *(f"{values[c] - plain[c] + 0.0:+.0f}" for c in columns)]
                for name, values in memory.items()
                if name != "none"
            ],
        )
    text += (
        f"\n`{record['command']}`, {record['machine']}, "
        f"{versions(record, ['keras', 'keras-cv', 'tensorflow', 'numpy'])}, "
        f"n = {record['repeats']}.\n"
    )
    if draw:
        draw_input_pipeline(by_key)
    return (
        text
        + "\n![Images per second of each layer](results/plots/input_pipeline.png)\n"
    )


def draw_input_pipeline(by_key):
    layers = ["MixAvg", "keras MixUp", "keras_cv MixUp", "keras CutMix"]
    keys = [key for key in by_key if key[3] == "auto"]
    figure, ax = plt.subplots(figsize=(9, 4), layout="constrained")
    for i, layer in enumerate(layers):
        values = [by_key[key][layer]["images_per_second"] for key in keys]
        ax.bar(np.arange(len(keys)) + 0.2 * (i - 1.5), values, 0.19, label=layer)
    ax.set(yscale="log", ylabel="images per second, AUTOTUNE")
    ax.set_xticks(range(len(keys)), [f"{k[0]}\n{k[1]} of {k[2]} px" for k in keys])
    ax.grid(axis="y", alpha=0.3)
    ax.legend(ncols=4, loc="upper right")
    ax.set_ylim(top=4 * ax.get_ylim()[1])
    save(figure, "input_pipeline")


def training_step(draw):
    record = load("training_step")
    parts = defaultdict(list)
    for row in record["rows"]:
        parts[row["part"]].append(row)

    def ratio(figures):
        low, high = figures["quartiles"]
        return f"{figures['ratio']:.3f} ({low:.3f} to {high:.3f})"

    text = table(
        ["network", "classes", "backend", "n", "plain step, ms", "step, x plain"]
        + ["steps an epoch", "epoch of fit, x plain"],
        [
            [
                row["case"],
                row["classes"],
                row["backend"],
                row["repeats"],
                f"{row['steps']['plain_ms'] / row['steps_per_epoch']:.0f}",
                ratio(row["steps"]),
                row["steps_per_epoch"],
                ratio(row["epochs"]),
            ]
            for row in sorted(parts["steps"], key=lambda row: row["classes"])
        ],
    )
    text += "\nWhat (4) and (7) add to a step, and the callback to an epoch's end:\n\n"
    text += table(
        ["classes", "batch", "backend", "n", "added to a step, ms"]
        + ["GFLOP of (4) and (7)", "at an epoch's end, ms"],
        [
            [
                f"{row['classes']:,}",
                row["batch"],
                row["backend"],
                row["repeats"],
                f"{row['added_ms_per_step']:.2f}",
                f"{row['gflop_of_4_and_7']:.3g}",
                f"{row['ms_at_epoch_end']:,.0f}",
            ]
            for row in parts["growth"]
        ],
    )
    text += "\nPeak memory of a process that trains one dense layer:\n\n"
    text += table(
        ["classes", "backend", "plain, MiB", "with the method, MiB", "one table, MiB"]
        + ["added, tables"],
        [
            [
                f"{row['classes']:,}",
                row["backend"],
                f"{row['peak_mib']['plain']:,.0f}",
                f"{row['peak_mib']['method']:,.0f}",
                f"{row['table_mib']:.0f}",
                f"{row['tables_added']:.1f}",
            ]
            for row in parts["memory"]
        ],
    )
    text += "\nValues that an epoch of `fit` copies from the device to Python:\n\n"
    text += table(
        ["backend", "steps", "plain", "with the method", "batch hooks of the callback"],
        [
            [
                row["backend"],
                row["steps"],
                row["copies_to_host"]["plain"],
                row["copies_to_host"]["method"],
                len(row["batch_hooks"]),
            ]
            for row in parts["transfers"]
        ],
    )
    text += (
        f"\n`{record['command']}`, {record['machine']}, batches of {record['batch']}, "
        f"{versions(record, ['keras', 'tensorflow', 'jax', 'torch'])}, "
        "memory and copies measured once.\n"
    )
    if draw:
        draw_growth(parts["growth"])
    return text + "\n![Added time against the arithmetic](results/plots/growth.png)\n"


def draw_growth(rows):
    figure, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    for backend in dict.fromkeys(row["backend"] for row in rows):
        points = [
            (row["gflop_of_4_and_7"], row["added_ms_per_step"])
            for row in rows
            if row["backend"] == backend and row["added_ms_per_step"] > 0
        ]
        ax.plot(*zip(*sorted(points), strict=True), "o-", ms=4, label=backend)
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="GFLOP of (4) and (7): 6 classes² batch",
        ylabel="added to a step, ms",
    )
    ax.grid(alpha=0.3)
    ax.legend()
    save(figure, "growth")


def two_rows(draw):
    record = load("two_rows")
    text = table(
        ["classes", "backend", "products, ms", "two rows, ms", "x faster"],
        [
            [
                f"{row['classes']:,}",
                row["backend"],
                *(f"{row['ms'][name]['median']:.2f}" for name in ("products", "rows")),
                f"{row['ms']['products']['median'] / row['ms']['rows']['median']:.1f}",
            ]
            for row in sorted(record["rows"], key=lambda row: row["classes"])
        ],
    )
    return text + (
        f"\n`{record['command']}`, {record['machine']}, batches of {record['batch']}, "
        f"{versions(record, ['keras', 'tensorflow', 'jax', 'torch'])}, "
        f"n = {record['repeats']}.\n"
    )


# --- Accuracy ------------------------------------------------------------------------

FIGURES = {  # name: heading, factor, digits
    "accuracy": ("accuracy %", 100, 2),
    "nll": ("NLL, nats", 1, 3),
    "ece": ("ECE %", 100, 2),
}


def read_runs(name):
    """The grid, and its finished runs as `{setting: {method: {seed: result}}}`."""
    grid, runs = read_grid(BENCHMARKS / "grids" / f"{name}.toml")
    found = {
        setting: {method: {} for method in grid["methods"]}
        for setting in grid["settings"]
    }
    for run in runs:
        path = ACCURACY / name / f"{run.name}.json"
        if path.exists():
            result = json.loads(path.read_text())
            if result["options"] != run.options:
                raise SystemExit(f"{path} was made with other options than the grid's.")
            found[run.setting][run.method][run.seed] = result
    return grid, len(runs), found


def reader(figure):
    _, factor, _ = FIGURES[figure]
    return lambda run: factor * run["test"][figure]


def accuracy_grid(name, draw):
    grid, total, found = read_runs(name)
    runs = [r for s in found.values() for m in s.values() for r in m.values()]
    text = f"**{grid['title']}.** {len(runs)} of {total} runs are done.\n"
    if not runs:
        return text
    for setting, methods in found.items():
        if not any(methods.values()):
            continue
        text += f"\n*{setting}*\n\n" + setting_table(methods, grid["baselines"])
    if grid.get("anchors"):
        anchors = ", ".join(f"{k} {v}" for k, v in grid["anchors"].items())
        text += f"\nPublished anchors, accuracy %: {anchors}.\n"
    command = f"python benchmarks/accuracy.py benchmarks/grids/{name}.toml"
    text += (
        f"\n`{command} --data-dir DIR`, "
        f"{runs[0]['machine']['processor']}, {runs[0]['machine']['cores']} cores, "
        f"{runs[0]['backend']}, {versions(runs[0], ['keras', 'tensorflow'])}, "
        f"{runs[0]['test_images']:,} test images.\n"
    )
    plots = {"accuracy": draw_accuracy}
    if name == "methods":
        plots |= {
            "capacity": draw_against("parameters", None, "trainable parameters"),
            "reliability": draw_reliability,
            "curves": draw_learning_curves,
            "tables": draw_tables,
        }
    for kind, draw_plot in plots.items():
        if draw:
            save(draw_plot(found), f"{name}_{kind}")
        text += f"\n![{grid['title']}: {kind}](results/plots/{name}_{kind}.png)\n"
    return text


def setting_table(methods, baselines):
    baselines = [name for name in baselines if methods.get(name)]

    def fastest_epoch(runs):  # runs share the machine with others: not the median
        return min(min(run["history"]["seconds"]) for run in runs.values())

    rows = []
    for method, runs in methods.items():
        if not runs:
            continue
        cells = [method, len(runs)]
        for figure, (_, _, digits) in FIGURES.items():
            values = [reader(figure)(run) for run in runs.values()]
            cells.append(compare.mean_and_spread(values, digits))
        erm = methods.get("erm")
        cells.append(f"{fastest_epoch(runs) / fastest_epoch(erm):.2f}" if erm else "-")
        for baseline in baselines:
            for figure in ("accuracy", "nll"):
                same = method == baseline
                digits = FIGURES[figure][2]
                cells.append(
                    "-"
                    if same
                    else difference(runs, methods[baseline], reader(figure), digits)
                )
        rows.append(cells)
    header = ["method", "n", *(heading for heading, _, _ in FIGURES.values())]
    header.append("epoch, x erm")
    for baseline in baselines:
        header += [f"accuracy - {baseline}", f"NLL - {baseline}"]
    return table(header, rows)


def draw_accuracy(found):
    """Every run, and the mean of each method; over the settings."""
    settings = [s for s, methods in found.items() if any(methods.values())]
    names = [m for m in found[settings[0]] if any(found[s][m] for s in settings)]
    figure, axes = plt.subplots(
        1,
        len(settings),
        figsize=(max(6, 3.6 * len(settings)), 1.2 + 0.32 * len(names)),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for ax, setting in zip(axes[0], settings, strict=True):
        for i, name in enumerate(names):
            values = [reader("accuracy")(r) for r in found[setting][name].values()]
            if values:
                ax.plot(values, [i] * len(values), "o", ms=4, color="C0", alpha=0.5)
                ax.plot(np.mean(values), i, "|", ms=14, mew=2, color="C3")
        ax.set(title=setting, xlabel="test accuracy, %")
        ax.set_yticks(range(len(names)), names)
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.grid(alpha=0.3)
    return figure


def draw_against(name, key, label):
    """A drawing of each method's mean accuracy against a number of the runs."""

    def draw(found):
        figure, ax = plt.subplots(figsize=(7.5, 4), layout="constrained")
        names = list(next(iter(found.values())))
        for i, method in enumerate(names):
            points = []
            for methods in found.values():
                runs = list(methods[method].values())
                if runs:
                    x = runs[0][name][key] if key else runs[0][name]
                    points.append((x, np.mean([reader("accuracy")(r) for r in runs])))
            if points:
                style = "o-" if method.startswith("mixavg") else ".--"
                ax.plot(*zip(*points, strict=True), style, color=f"C{i}", label=method)
        ax.set(xscale="log", xlabel=label, ylabel="mean test accuracy, %")
        ax.grid(alpha=0.3)
        figure.legend(loc="outside right center")
        return figure

    return draw


def first_runs(methods):
    """The first finished seed of each method."""
    return {name: runs[min(runs)] for name, runs in methods.items() if runs}


def last_setting(found):
    """The last setting with runs: the larger network."""
    return [methods for methods in found.values() if any(methods.values())][-1]


def draw_reliability(found):
    methods = last_setting(found)
    figure, ax = plt.subplots(figsize=(5.5, 4.8), layout="constrained")
    ax.plot([0, 1], [0, 1], "k--", lw=1)
    for i, (name, runs) in enumerate(methods.items()):
        points = defaultdict(lambda: np.zeros(3))
        for run in runs.values():
            bins = run["test"]["bins"]
            for p, right, count in zip(*bins.values(), strict=True):
                points[int(np.ceil(p * 15))] += count * np.array([p, right, 1])
        points = [points[key] for key in sorted(points) if points[key][2] >= 20]
        if points:
            p, right, count = np.array(points).T
            style = "o-" if name.startswith("mixavg") else ".--"
            ax.plot(p / count, right / count, style, ms=4, color=f"C{i}", label=name)
    ax.set(
        xlabel="winning probability",
        ylabel="share that is right (bins of 20 and more)",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    ax.legend()
    return figure


def draw_learning_curves(found):
    methods = last_setting(found)
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for i, (name, runs) in enumerate(methods.items()):
        for ax, key in ((axes[0], "val_loss"), (axes[1], "val_accuracy")):
            if (name, key) == ("label_smoothing", "val_loss"):
                continue  # Keras smooths the labels of the validation data too
            curves = [run["history"][key] for run in runs.values()]
            if not curves:
                continue
            mean = np.mean(np.array(curves, float), axis=0)
            seen = ~np.isnan(mean)
            style = "o-" if name.startswith("mixavg") else ".--"
            epochs = 1 + np.flatnonzero(seen)
            ax.plot(epochs, mean[seen], style, ms=4, color=f"C{i}", label=name)
    axes[0].set(xlabel="epoch", ylabel="test NLL + weight decay, nats")
    axes[1].set(xlabel="epoch", ylabel="test accuracy")
    for ax in axes:
        ax.grid(alpha=0.3)
    axes[1].legend()
    return figure


def draw_tables(found):
    """The global soft labels S of one run of each method that has them."""
    tables = {
        f"{setting}, {name}": np.array(run["table"])
        for setting, methods in found.items()
        for name, run in first_runs(methods).items()
        if run["table"]
    }
    figure, axes = plt.subplots(
        1,
        max(1, len(tables)),
        figsize=(3.2 * max(1, len(tables)), 3.4),
        squeeze=False,
        layout="constrained",
    )
    for ax, (name, values) in zip(axes[0], tables.items(), strict=False):
        image = ax.imshow(values, vmin=0, vmax=1, cmap="viridis")
        mean = np.mean(np.diag(values))
        ax.set(
            title=f"{name}\nmean diagonal {mean:.2f}", xlabel="class", ylabel="class"
        )
    if tables:
        figure.colorbar(image, ax=axes[0], shrink=0.8)
    return figure


CLAIMS = [  # of `mixavg`: figure, baseline
    ("accuracy", "erm"),
    ("accuracy", "mixup"),
    ("nll", "erm"),
    ("nll", "mixup"),
    ("nll", "mixavg_local"),
]


def claims(draw):
    """The differences that README.md speaks of, in each setting of two grids."""
    rows = []
    for grid in ("methods", "regimes"):
        for setting, methods in read_runs(grid)[2].items():
            rows.append([setting, len(methods["mixavg"])])
            for figure, baseline in CLAIMS:
                read, digits = reader(figure), FIGURES[figure][2]
                rows[-1].append(
                    difference(methods["mixavg"], methods[baseline], read, digits)
                )
    names = {"accuracy": "accuracy", "nll": "NLL"}
    header = [f"{names[figure]} - `{baseline}`" for figure, baseline in CLAIMS]
    return table(["setting", "n", *header], rows)


PARTS = {
    "input_pipeline": input_pipeline,
    "training_step": training_step,
    "two_rows": two_rows,
    "claims": claims,
}


# --- All of it -----------------------------------------------------------------------


def save(figure, name):
    PLOTS.mkdir(parents=True, exist_ok=True)
    figure.savefig(PLOTS / f"{name}.png", dpi=100)
    plt.close(figure)


def render(text, draw=False):
    """The README's text with every part between markers made anew."""

    def part(match):
        start, name, end = match.groups()
        if name.startswith("grid: "):
            made = accuracy_grid(name.removeprefix("grid: "), draw)
        else:
            made = PARTS[name](draw)
        return f"{start}\n{made}\n{end}"

    return BLOCK.sub(part, text)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    for path in READMES:
        text = path.read_text()
        new = render(text, draw=not args.check)
        if not args.check:
            path.write_text(new)
        elif text != new:
            raise SystemExit(f"{path} is not what the results say: run without --check")


if __name__ == "__main__":
    main()
