"""How many images a second the network of the accuracy grids trains on, on a CPU core.

    python benchmarks/network_speed.py

Each setting is a process on one core that trains `fast` of training/networks.py on
random images of 32 pixels, 100 classes, batches of 128: median of `--repeats` of `fit`
on four batches, after one. The last rows are of two such processes at once, on a core
each, and of the input pipeline alone. What takes more than `--limit` seconds is given
up. Writes `benchmarks/results/network_speed.json`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys

import record

BATCH, BATCHES = 128, 4
SETTINGS = [  # backend, dtype, whether XLA compiles the step (JAX always does)
    ("tensorflow", "float32", False),
    ("tensorflow", "float32", True),
    ("tensorflow", "bfloat16", False),
    ("jax", "float32", True),
    ("torch", "float32", False),
    ("torch", "bfloat16", False),
]


# --- One setting, in a process of its own --------------------------------------------


def images():
    import numpy as np

    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (BATCH * BATCHES, 32, 32, 3), "uint8")
    return x, rng.integers(0, 100, len(x))


def training(dtype, jit):
    """A function that trains on all images once."""
    import keras
    from training.networks import fast

    if dtype != "float32":
        keras.config.set_dtype_policy(f"mixed_{dtype}")
    model = fast((32, 32, 3), 100, weight_decay=5e-4)
    optimizer = keras.optimizers.SGD(0.1, 0.9, nesterov=True)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, jit_compile=jit)
    x, y = images()
    return lambda: model.fit(x, y, batch_size=BATCH, verbose=0)


def pipeline():
    """A function that makes all batches once, mixed as `mixavg` does."""
    from training import arguments, batches
    from training.methods import METHODS

    args = arguments.parser(None).parse_args([])
    method = METHODS["mixavg"](args, 100)
    mixed = batches.training(*images(), method, args, batches.Epoch())
    return lambda: [None for _ in mixed]


def one(setting, core, repeats):
    """Print the images per second of each repeat."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[core % len(cores)]})
    if setting[0] == "torch":
        import torch

        torch.set_num_threads(1)
    action = pipeline() if setting == ["pipeline"] else training(*setting[1:])
    times = record.in_turns({"it": action}, repeats)["it"]
    print(json.dumps([BATCH * BATCHES / time for time in times]))


# --- All of them ---------------------------------------------------------------------


def start(setting, core, repeats):
    backend = setting[0] if setting[0] != "pipeline" else "tensorflow"
    return subprocess.Popen(
        [sys.executable, __file__, "--one", json.dumps(setting), "--core", str(core)]
        + ["--repeats", str(repeats)],
        env={**os.environ, "KERAS_BACKEND": backend, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def speed(setting, repeats, limit, processes=1):
    """Images per second of all processes together, or None if it takes too long."""
    started = [start(setting, core, repeats) for core in range(processes)]
    row = {"setting": setting, "processes": processes, "images_per_second": None}
    try:
        outputs = [process.communicate(timeout=limit) for process in started]
    except subprocess.TimeoutExpired:
        for process in started:
            process.kill()
            process.wait()
        return row
    for process, (_, error) in zip(started, outputs, strict=True):
        if process.returncode:
            raise SystemExit(error)
    values = [json.loads(text.splitlines()[-1]) for text, _ in outputs]
    total = [sum(parts) for parts in zip(*values, strict=True)]
    row["images_per_second"] = statistics.median(total)
    row["quartiles"] = record.quartiles(total)
    return row


def measure(repeats, limit):
    rows = [speed(setting, repeats, limit) for setting in SETTINGS]
    done = [row for row in rows if row["images_per_second"]]
    fastest = max(done, key=lambda row: row["images_per_second"])["setting"]
    rows.append(speed(fastest, repeats, limit, processes=2))
    return [*rows, speed(["pipeline"], repeats, limit)]


def table(results):
    rows = []
    for row in results["rows"]:
        backend, dtype, jit = row["setting"] if len(row["setting"]) > 1 else (None,) * 3
        about = [dtype, "XLA" if jit else "no XLA"] if backend else ["-", "-"]
        speed = row["images_per_second"]
        low, high = row.get("quartiles", (None, None))
        rows.append(
            [
                backend or "input pipeline of `mixavg` alone",
                *about,
                row["processes"],
                f"{speed:,.0f}" if speed else f"given up after {results['limit']} s",
                f"{low:,.0f} to {high:,.0f}" if speed else "-",
            ]
        )
    header = ["backend", "dtype", "step", "processes", "images a second", "quartiles"]
    packages = ["keras", "tensorflow", "jax", "torch"]
    made = record.made_with(results, packages, f"n = {results['repeats']}")
    return record.markdown(header, rows) + made + ".\n"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit", type=float, default=120, help="seconds a setting")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--core", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        one(json.loads(args.one), args.core, args.repeats)
        return
    record.write(
        "network_speed",
        "python benchmarks/network_speed.py",
        repeats=args.repeats,
        limit=args.limit,
        rows=measure(args.repeats, args.limit),
    )


if __name__ == "__main__":
    main()
