"""Tables of the runs that grid.py has made: accuracy, likelihood, calibration."""

import functools
from collections import Counter

import grid
import numpy as np
import provenance
from training import compare
from training.methods import NAMES

SCORES = {  # name: heading, factor, digits
    "training_accuracy": ("training accuracy %", 100, 1),
    "accuracy": ("accuracy %", 100, 2),
    "nll": ("NLL, nats", 1, 3),
    "scaled_nll": ("NLL after one temperature", 1, 3),
    "ece": ("ECE %", 100, 1),
    "scaled_ece": ("ECE after one temperature %", 100, 1),
}
PLAIN, PAIRS = NAMES["erm"], NAMES["mixavg_local"]
OURS = NAMES["mixavg"]  # at the package's defaults
EITHER = "MixAvg or CutMix"
RIVALS = [name for name in NAMES.values() if name not in (PAIRS, OURS)]
RIVALS += [
    "MixUp or CutMix, whole images in the last fifth",
    "Online Label Smoothing, fading",
]
BEST_RIVAL = "the best rival"  # as a baseline


@functools.cache
def runs_of(name):
    """The grid, the number of runs that it compares, and the finished ones.

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


def raw_value(line, score):
    """A score of a run, or None if an older program has not recorded it."""
    if score == "training_accuracy":
        return line["history"]["accuracy"][-1]
    return line["test"].get(score)


def values(runs, score):
    """`{seed: value}`, as tables show it, of the runs that have this score."""
    found = {seed: raw_value(line, score) for seed, line in runs.items()}
    factor = SCORES[score][1]
    return {s: factor * number for s, number in found.items() if number is not None}


def mean(runs, score):
    return float(np.mean(list(values(runs, score).values())))


def difference(runs, baseline, score):
    return compare.difference(
        values(runs, score), values(baseline, score), SCORES[score][2]
    )


def best_rival(methods):
    """The name of the rival that is most accurate with our seeds, or None."""
    return max(
        rivals_in(methods),
        key=lambda name: mean(with_our_seeds(methods, name), "accuracy"),
        default=None,
    )


def rivals_in(methods):
    """The names of the rivals that have run with all seeds of ours."""
    return [name for name in RIVALS if has_our_seeds(methods, name)]


def with_our_seeds(methods, name):
    """The runs of a method with the seeds of ours; all of them if ours has none."""
    runs = methods.get(name, {})
    return {seed: runs[seed] for seed in methods.get(OURS, runs) if seed in runs}


def has_our_seeds(methods, name):
    """Whether a method has run, with all seeds of ours that have."""
    return (
        bool(methods.get(name)) and methods.get(OURS, {}).keys() <= methods[name].keys()
    )


# --- Tables --------------------------------------------------------------------------


def table(name):
    """The text about a grid: a table for each setting, and how the runs were made."""
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
            images, *others = {line["test_images"] for line in done[setting]}
            if others:
                raise SystemExit(
                    f"{setting}: runs with {images} and {others[0]} test images "
                    "cannot be compared. Keep one kind in accuracy.jsonl."
                )
            text += f"\n*{setting}; {images:,} test images*\n\n"
            text += setting_table(methods, read["baselines"])
    if read.get("anchors"):
        anchors = ", ".join(f"{k} {v}" for k, v in read["anchors"].items())
        text += f"\nPublished anchors, accuracy %: {anchors}.\n"
    command = "python benchmarks/accuracy/grid.py"
    command += f" benchmarks/accuracy/grids/{name}.toml --data-dir DIR"
    text += f"\n`{command}`, {made_on(lines)}.\n"
    for kind in read.get("plots", ["accuracy"]):
        text += f"\n![{read['title']}: {kind}](results/plots/{name}_{kind}.png)\n"
    return text


def made_on(lines):
    """Machines and versions of the runs, with counts if there are several."""
    found = Counter(
        provenance.made_on(line, ["keras", line["backend"]], line["backend"])
        for line in lines
    )
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(
        f"{count} run{'s' * (count > 1)} on {text}" for text, count in found.items()
    )


def setting_table(methods, baselines):
    """A row for each method, with its accuracy minus that of each baseline."""
    methods = {name: runs for name, runs in methods.items() if runs}
    baselines = {
        name: best_rival(methods) if name == BEST_RIVAL else name for name in baselines
    }
    baselines = {name: of for name, of in baselines.items() if of in methods}
    shown = {  # the values are as tables show them: no factor
        score: (heading, 1, digits) for score, (heading, _, digits) in SCORES.items()
    }
    scores = {
        method: {score: list(values(runs, score).values()) for score in SCORES}
        for method, runs in methods.items()
    }
    header, *rows = compare.table(scores, shown)
    header.insert(1, "n")
    for name, of in baselines.items():
        header.append(f"accuracy minus {name}" + f" ({of})" * (name == BEST_RIVAL))
    for row, (method, runs) in zip(rows, methods.items(), strict=True):
        row.insert(1, len(runs))
        row += [
            "-" if method == of else difference(runs, methods[of], "accuracy")
            for of in baselines.values()
        ]
    return compare.markdown(header, rows)


def choices(name):
    """The table of the options that a grid has tried, with their accuracies."""
    read, _, _ = runs_of(name)
    done, rows = grid.finished(), []
    for setting in read["settings"]:
        how = grid.choice_of(read, setting)
        for method, own in read["methods"].items():
            if "choose" not in own:
                continue
            options = grid.options_of(read, setting, method)
            runs, chosen = grid.choice(setting, method, options, how, done)
            tried = {}
            for run in runs:
                line = done.get(grid.key(run.options, run.seed))
                option = run.method.removeprefix(f"{method}, ")
                tried.setdefault(option, []).append(line)
            if not any(sum(tried.values(), [])):
                continue
            for option, candidate in zip(tried, own["choose"], strict=True):
                lines = [line for line in tried[option] if line]
                accuracies = [100 * line["test"]["accuracy"] for line in lines]
                is_it = chosen is not None and candidate.items() <= chosen.items()
                rows.append(
                    [setting, method, option, len(lines)]
                    + [f"{np.mean(accuracies):.2f}" if lines else "-"]
                    + ["yes" if is_it else ""]
                )
    header = ["setting", "method", "option", "n", "accuracy on held-out images %"]
    return compare.markdown([*header, "chosen"], rows)


GRIDS_SHOWN = {  # in README.md, with what a setting's name does not say
    "memorise": "",
    "fair": "",
    "capacity": "",
    "pretrained": "fine-tuning, ",
}


def settings_shown():
    """`(setting, methods)` of each setting with runs of ours, none of them twice.

    Sorted by the training accuracy of plain training, highest first.
    """
    found, shown = [], set()
    for name, about in GRIDS_SHOWN.items():
        for setting, methods in runs_of(name)[2].items():
            lines = methods.get(OURS, {}).values()
            keys = {grid.key(line["options"], line["seed"]) for line in lines}
            if methods.get(PLAIN) and not keys <= shown:
                shown |= keys
                found.append((about + setting, methods))
    return sorted(found, key=lambda item: -mean(item[1][PLAIN], "training_accuracy"))


def summary():
    """The table of README.md: absolute accuracies, and our gains."""
    header = ["data, network", "n", "training accuracy of plain training %"]
    header += [PLAIN, "MixUp", "CutMix", PAIRS, OURS, "gain over plain"]
    header += ["gain over the best rival (best of)"]
    header += ["NLL after one temperature: plain, best rival, ours"]
    rows = []
    for setting, methods in settings_shown():
        plain, ours, rival = methods[PLAIN], methods[OURS], best_rival(methods)
        rows.append([setting, len(ours), f"{mean(plain, 'training_accuracy'):.0f}"])
        for name in (PLAIN, *mixing(methods)):
            runs = with_our_seeds(methods, name)
            rows[-1].append(f"{mean(runs, 'accuracy'):.1f}" if runs else "-")
            if name in (NAMES["keras_mixup"], NAMES["keras_cutmix"]):
                rows[-1][-1] += " (keras.layers)"
        rows[-1].append(f"{mean(ours, 'accuracy'):.1f}")
        rows[-1].append(difference(ours, plain, "accuracy"))
        gain, compared = "-", [plain, ours]
        if rival:
            gain = difference(ours, methods[rival], "accuracy")
            gain += f", {rival} ({len(rivals_in(methods))})"
            compared.insert(1, with_our_seeds(methods, rival))
        nll = ", ".join(f"{mean(runs, 'scaled_nll'):.2f}" for runs in compared)
        rows[-1] += [gain, nll]
    return compare.markdown(header, rows)


def mixing(methods):
    """The names of MixUp, CutMix and averaged pairs in a setting, None if missing."""
    return [*(of_either(methods, name) for name in ("mixup", "cutmix")), PAIRS]


def of_either(methods, method):
    """The name of the published method, or of Keras' layer where only that has run."""
    names = NAMES[method], NAMES[f"keras_{method}"]
    return next((name for name in names if has_our_seeds(methods, name)), None)


def steps():
    """What each step of the method gains over the one before, in each setting."""
    header = ["setting", "n", f"{PAIRS} minus {PLAIN}", f"{OURS} minus {PAIRS}"]
    header += [f"{OURS} minus {BEST_RIVAL}", f"{EITHER} minus {OURS}"]
    rows = []
    for setting, methods in settings_shown():
        steps = [(PAIRS, PLAIN), (OURS, PAIRS), (OURS, best_rival(methods))]
        rows.append([setting, len(methods[OURS])])
        rows[-1] += [
            difference(methods.get(one, {}), methods.get(other, {}), "accuracy")
            for one, other in [*steps, (EITHER, OURS)]
        ]
    return compare.markdown(header, rows)
