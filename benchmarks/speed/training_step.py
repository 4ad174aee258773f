"""What the method adds to a training step, an epoch of `fit`, and peak memory.

    python benchmarks/speed/training_step.py                      # an hour on two cores
    python benchmarks/speed/training_step.py --backends jax --only steps

- `steps`: two models of one network, one with `CategoricalCrossentropy`, one with
  `SoftLabelCrossentropy` and `GlobalSoftLabel`. They take turns, an epoch each,
  in two threads, `--repeats` times after a warm-up.
- `growth`: the same for a single dense layer, over classes and batch sizes.
- `fits`: one `fit` of a single step after the other, in turns.
- `attached`: the same for `evaluate`, and `fit` without the callback, of models that
  have trained with it.
- `memory`: peak memory of a process that trains, at 1,000 and 10,000 classes.

All labels are averaged pairs; no input pipeline is measured. Each backend has its own
process. Writes `benchmarks/speed/results/training_step.json`.
"""

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from operator import itemgetter

import measuring
import provenance
from training import compare
from two_models import (
    BATCH,
    FEATURES,
    compared,
    dense,
    evaluate,
    fit,
    fit_and_validate,
    fit_without_the_callback,
    hidden_layer,
    make_data,
    take_turns,
)

BACKENDS = ("tensorflow", "jax", "torch")
CASES = [("fast_16", 10, 50), ("fast_16", 1000, 50), ("fast", 1000, 50)]
IMAGES = (32, 32, 3)
COMMAND = "python benchmarks/speed/training_step.py"
RESULT = measuring.RESULTS / "training_step.json"
GROWTH = [(k, BATCH) for k in (10, 100, 1000)] + [(1000, b) for b in (32, 512)]
GROWTH += [(10_000, BATCH)]


# --- The four parts ------------------------------------------------------------------


def measure_steps(repeats):
    from training.networks import NETWORKS

    for network, classes, steps in CASES:
        figures = take_turns(
            lambda network=network, classes=classes: NETWORKS[network](IMAGES, classes),
            make_data(IMAGES, classes, BATCH),
            steps,
            repeats,
        )
        yield {
            "network": network,
            "classes": classes,
            "steps_per_epoch": steps,
            "repeats": repeats,
            **figures,
        }


def measure_growth(repeats):
    import keras

    for classes, batch in GROWTH:
        steps = 50
        if classes >= 10_000:  # each epoch's end takes seconds there
            if keras.backend.backend() != "tensorflow":
                continue
            steps, repeats = 3, 2
        data = make_data((FEATURES,), classes, batch)
        figures = take_turns(lambda k=classes: dense(k), data, steps, repeats)
        times = figures["steps"]
        added = (times["method_ms"] - times["plain_ms"]) / steps
        end = figures["epochs"]["method_ms"] - times["method_ms"]
        yield {
            "classes": classes,
            "batch": batch,
            "repeats": repeats,
            "added_ms_per_step": added,
            "gflop_of_4_and_7": 6 * classes**2 * batch / 1e9,
            "ms_at_epoch_end": end,
        }


def measure_fits(repeats):
    """Times whole calls of `fit` with validation. The first one compiles."""
    actions = [fit_and_validate]
    yield from compared(hidden_layer, (FEATURES,), 10, 1, actions, 3 * repeats)


def measure_attached(repeats):
    """Times whole calls. The first ones compile."""
    from training.networks import NETWORKS

    classes, steps = 1000, 5
    yield from compared(
        lambda: NETWORKS["fast_16"](IMAGES, classes),
        IMAGES,
        classes,
        steps,
        [fit_without_the_callback, evaluate],
        2 * repeats,
        attach=fit,
    )


def measure_memory(_):
    """Peak memory in MiB of a process that trains two epochs of three steps."""
    for classes in (1000, 10_000):
        peaks = {}
        for part, with_method in (("plain", False), ("method", True)):
            peaks[part] = measuring.peak_of(
                "import two_models as t\n"
                f"data = t.make_data((t.FEATURES,), {classes}, t.BATCH)\n"
                f"model, callbacks = t.compiled(lambda: t.dense({classes}), "
                f"{with_method})\n"
                "model.fit(t.repeated(data), steps_per_epoch=3, epochs=2, "
                "verbose=0, callbacks=callbacks)\n"
            )
        table = 4 * classes**2 / 2**20
        yield {
            "classes": classes,
            "peak_mib": peaks,
            "table_mib": table,
            "tables_added": (peaks["method"] - peaks["plain"]) / table,
        }


MEASURE = {
    "steps": measure_steps,
    "growth": measure_growth,
    "fits": measure_fits,
    "attached": measure_attached,
    "memory": measure_memory,
}


def measure(part, backend, repeats):
    """The rows of a part, measured in a new process."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--part", part, "--repeats", str(repeats)],
        env={**os.environ, "KERAS_BACKEND": backend},
        stdout=subprocess.PIPE,
        text=True,
    )
    rows = []
    for line in process.stdout:
        if line.startswith("{"):
            rows.append({"part": part, "backend": backend, **json.loads(line)})
            print(json.dumps(rows[-1]), flush=True)
    if process.wait():
        raise SystemExit(f"{part} on {backend} failed, see above")
    return rows


# --- To show -------------------------------------------------------------------------


def ratio(figures):
    low, high = figures["quartiles"]
    return f"{figures['ratio']:.3f} ({low:.3f} to {high:.3f})"


def table(results):
    parts = defaultdict(list)
    for row in results["rows"]:
        parts[row["part"]].append(row)
    text = steps_table(parts["steps"])
    if fits := parts["fits"] + parts["attached"]:
        text += "\nWhole calls of `fit` or `evaluate`, one after the other:\n\n"
        text += fits_table(fits)
    text += "\nTime that (4) and (7) add to a step, and the callback to an epoch:\n\n"
    text += growth_table(parts["growth"])
    text += "\nPeak memory of a process that trains one dense layer:\n\n"
    text += memory_table(parts["memory"])
    packages = ["keras", "tensorflow", "jax", "torch"]
    made = provenance.made_with(
        COMMAND, results, packages, f"batches of {results['batch']}"
    )
    text += f"{made}, memory measured once.\n"
    return text + "\n![Added time against the arithmetic](results/plots/growth.png)\n"


def steps_table(rows):
    return compare.markdown(
        [
            "network",
            "classes",
            "backend",
            "n",
            "plain step, ms",
            "step, relative to plain",
        ]
        + ["steps an epoch", "epoch, relative to plain"],
        [
            [
                row["network"],
                row["classes"],
                row["backend"],
                row["repeats"],
                f"{row['steps']['plain_ms'] / row['steps_per_epoch']:.0f}",
                ratio(row["steps"]),
                row["steps_per_epoch"],
                ratio(row["epochs"]),
            ]
            for row in sorted(rows, key=itemgetter("classes", "network", "backend"))
        ],
    )


def fits_table(rows):
    return compare.markdown(
        ["call", "steps", "classes", "backend", "n", "first, plain and ours, ms"]
        + ["later, plain and ours, ms", "later, relative to plain"]
        + ["compiled later, plain and ours"],
        [
            [
                row["case"].replace("_", " "),
                row["steps"],
                f"{row['classes']:,}",
                row["backend"],
                row["repeats"],
                f"{row['first_ms']['plain']:,.0f}, {row['first_ms']['method']:,.0f}",
                f"{row['plain_ms']:,.1f}, {row['method_ms']:,.1f}",
                ratio(row),
                compilations(row["compiled_later"]),
            ]
            for row in rows
        ],
    )


def compilations(new):
    return "-" if new is None else f"{new['plain']}, {new['method']}"


def growth_table(rows):
    return compare.markdown(
        ["classes", "batch", "backend", "n", "added to a step, ms"]
        + ["GFLOP of (4) and (7)", "added to an epoch's end, ms"],
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
            for row in rows
        ],
    )


def memory_table(rows):
    return compare.markdown(
        ["classes", "backend", "plain, MiB", "with the method, MiB", "one table, MiB"]
        + ["added, in tables"],
        [
            [
                f"{row['classes']:,}",
                row["backend"],
                f"{row['peak_mib']['plain']:,.0f}",
                f"{row['peak_mib']['method']:,.0f}",
                f"{row['table_mib']:.0f}",
                f"{row['tables_added']:.1f}",
            ]
            for row in rows
        ],
    )


def plot(results):
    import matplotlib.pyplot as plt

    rows = [row for row in results["rows"] if row["part"] == "growth"]
    figure, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    for backend in dict.fromkeys(row["backend"] for row in rows):
        points = [
            (row["gflop_of_4_and_7"], row["added_ms_per_step"])
            for row in rows
            if row["backend"] == backend and row["added_ms_per_step"] > 0
        ]
        ax.plot(*zip(*sorted(points), strict=True), "o-", ms=4, label=backend)
    ax.set(
        title="What does the table add to a step?",
        xscale="log",
        yscale="log",
        xlabel="GFLOP of (4) and (7): 6 classes² batch",
        ylabel="added to a step, ms",
    )
    ax.grid(alpha=0.3)
    ax.legend()
    provenance.save(figure, measuring.RESULTS / "plots/growth.png")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--repeats", type=int, default=7)
    add("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    add("--only", nargs="+", choices=list(MEASURE), default=list(MEASURE))
    add("--part", help=argparse.SUPPRESS)  # measure here, print JSON
    args = parser.parse_args()
    if args.part:
        for row in MEASURE[args.part](args.repeats):
            print(json.dumps(row), flush=True)
        return
    rows = provenance.read(RESULT)["rows"] if RESULT.exists() else []
    for part in args.only:
        for backend in args.backends:
            new = measure(part, backend, args.repeats)
            new = [{**row, "commit": provenance.commit()} for row in new]
            rows = [
                row for row in rows if (row["part"], row["backend"]) != (part, backend)
            ] + new
            provenance.write(RESULT, COMMAND, batch=BATCH, rows=rows)


if __name__ == "__main__":
    main()
