"""From how many classes on two rows of the table are faster than products with it.

    KERAS_BACKEND=jax python benchmarks/two_rows.py       # and tensorflow, and torch

Times (4) and (7) of one step, compiled as a train step is: `products` as equations.py
has them, and `rows` as keras_mixavg/two_rows.py does for a batch of pairs, with its
look at the labels. (On torch the package does not look; here it is made to.) Writes the
rows of its backend into `benchmarks/results/two_rows.json`.
"""

import json
import os
import platform
import statistics
import time
from importlib import metadata
from pathlib import Path

import keras
import numpy as np
from keras import ops

from keras_mixavg import equations, two_rows

RESULT = Path(__file__).parent / "results" / "two_rows.json"
BACKEND = keras.backend.backend()
CLASSES, BATCH, REPEATS = (100, 200, 500, 1000, 10000), 128, 15


def products(table, evidence, mass, labels, probabilities, weights):
    return (
        equations.global_soft_labels(labels, table),
        evidence + equations.evidence(labels, probabilities, weights),
        mass + equations.evidence(labels, labels, weights),
    )


def rows(table, evidence, mass, *batch):
    return (
        two_rows.global_soft_labels(batch[0], table),
        *two_rows.added_evidence(evidence, mass, *batch),
    )


def stepper(function, num_classes):
    """A function that does one step on state of its own, and waits for its end."""
    rng = np.random.default_rng(0)
    labels = np.eye(num_classes)[rng.integers(0, num_classes, (2, BATCH))].mean(0)
    probabilities = rng.dirichlet(np.ones(num_classes), BATCH)
    batch = [
        ops.convert_to_tensor(values, dtype="float32")
        for values in (labels, probabilities, np.ones(BATCH))
    ]
    table = ops.eye(num_classes)
    state = [ops.zeros_like(table), ops.zeros_like(table)]
    if BACKEND == "jax":
        import jax

        compiled = jax.jit(function, donate_argnums=(1, 2))

        def step():
            out, *state[:] = compiled(table, *state, *batch)
            jax.block_until_ready((out, state))

    elif BACKEND == "torch":

        def step():
            out, *state[:] = function(table, *state, *batch)

    else:
        import tensorflow as tf

        variables = [tf.Variable(values) for values in state]

        @tf.function(jit_compile=True)
        def compiled():
            out, *new = function(table, *variables, *batch)
            for variable, value in zip(variables, new, strict=True):
                variable.assign(value)
            return tf.reduce_sum(out)

        def step():
            compiled().numpy()

    return step


def main():
    two_rows.pay = lambda num_classes: True
    record = json.loads(RESULT.read_text()) if RESULT.exists() else {"rows": []}
    record["rows"] = [row for row in record["rows"] if row["backend"] != BACKEND]
    for num_classes in CLASSES:
        steps = {f.__name__: stepper(f, num_classes) for f in (products, rows)}
        times = {name: [] for name in steps}
        for _ in range(REPEATS + 2):  # in turns; two of warm-up
            for name, step in steps.items():
                start = time.perf_counter()
                step()
                times[name].append(1e3 * (time.perf_counter() - start))
        row = {"backend": BACKEND, "classes": num_classes, "ms": {}}
        for name, values in times.items():
            row["ms"][name] = {"all": [round(value, 4) for value in values[2:]]}
            row["ms"][name]["median"] = round(statistics.median(values[2:]), 4)
        record["rows"].append(row)
        medians = {name: figures["median"] for name, figures in row["ms"].items()}
        print(f"{BACKEND}, {num_classes} classes, ms a step: {medians}", flush=True)
    record |= {
        "command": "python benchmarks/two_rows.py, with each KERAS_BACKEND",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "batch": BATCH,
        "repeats": REPEATS,
        "versions": {
            name: metadata.version(name)
            for name in ("keras", "tensorflow", "jax", "torch")
        },
    }
    RESULT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
