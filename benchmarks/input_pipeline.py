"""Images per second of one `tf.data` map: MixAvg, and the layers it replaces.

    python benchmarks/input_pipeline.py            # about a minute on two cores
    python benchmarks/input_pipeline.py --memory   # and peak memory at 224 px

The map is fed one batch over and over, so that nothing else is measured, and consumed
in TensorFlow, without Python, by one iterator that lives on between the rounds (a new
one would copy the batch). The layers take turns, `--repeats` rounds after one of
warm-up; the result is the median. `numpy` is the time of `np.add` of two batches into
a third: what the memory allows; `copy and seed` is what TensorFlow does at the least
for a layer that draws at random and leaves its input alone. Writes
`benchmarks/results/input_pipeline.json`.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import keras
import keras_cv
import numpy as np
import tensorflow as tf

from keras_mixavg import MixAvg

RESULT = Path(__file__).parent / "results" / "input_pipeline.json"
CLASSES = 100
SIZES = ((128, 32, 64), (128, 64, 24), (64, 224, 6))  # batch, side, batches a round
LAYERS = {
    "none": lambda: lambda batch: batch,
    "copy": lambda: copied,
    "copy and seed": lambda: seeded_copy(),
    "MixAvg": lambda: MixAvg(seed=0),
    "MixAvg, tuple": lambda: MixAvg(seed=0),
    "keras MixUp": lambda: keras.layers.MixUp(alpha=1.0, seed=0),
    "keras CutMix": lambda: keras.layers.CutMix(seed=0),
    "keras_cv MixUp": lambda: keras_cv.layers.MixUp(alpha=1.0, seed=0),
    "keras_cv CutMix": lambda: keras_cv.layers.CutMix(seed=0),
}


def copied(batch):
    return tf.nest.map_structure(lambda x: tf.raw_ops.DeepCopy(x=x), batch)


def seeded_copy():
    """The least that a layer does which is seeded and leaves its input alone."""
    generator = keras.random.SeedGenerator(0)
    return lambda batch: {**copied(batch), "seed": generator.next()}


def make_batch(size, side, dtype):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (size, side, side, 3)).astype(dtype)
    labels = np.eye(CLASSES, dtype="float32")[rng.integers(0, CLASSES, size)]
    return {"images": images, "labels": labels}


def consumer(name, batch, calls, batches):
    """A function that runs `batches` batches through the map of a layer."""
    if name.endswith("tuple"):
        batch = (batch["images"], batch["labels"])
    data = tf.data.Dataset.from_tensors(batch).repeat()
    calls = {"1": None, "auto": tf.data.AUTOTUNE}[calls]
    data = data.map(LAYERS[name](), num_parallel_calls=calls)
    options = tf.data.Options()
    options.experimental_optimization.inject_prefetch = False  # it would work ahead
    iterator = iter(data.with_options(options))

    @tf.function
    def consume():
        for _ in tf.range(batches):
            next(iterator)

    return consume


def seconds(action):
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def measure(size, side, batches, dtype, calls, repeats):
    batch = make_batch(size, side, dtype)
    sides = {name: consumer(name, batch, calls, batches) for name in LAYERS}
    images = batch["images"]
    others, target = images.copy(), np.empty_like(images)
    sides["numpy"] = lambda: [
        np.add(images, others, out=target) for _ in range(batches)
    ]
    times = {name: [] for name in sides}
    for _ in range(repeats + 1):
        for name, run in sides.items():
            run()  # uses up what parallel calls made ahead while others had their turn
            times[name].append(seconds(run) / batches)
    rows = []
    for name, values in times.items():
        low, _, high = statistics.quantiles(values[1:], n=4)
        rows.append(
            {
                "layer": name,
                "batch": size,
                "side": side,
                "dtype": dtype,
                "parallel_calls": calls,
                "ms_per_batch": 1e3 * statistics.median(values[1:]),
                "quartiles_ms": [1e3 * low, 1e3 * high],
            }
        )
    by_name = {row["layer"]: row["ms_per_batch"] for row in rows}
    for row in rows:
        row["images_per_second"] = 1e3 * size / row["ms_per_batch"]
        row["times_keras_mixup"] = by_name["keras MixUp"] / row["ms_per_batch"]
        row["share_of_memory_limit"] = by_name["numpy"] / row["ms_per_batch"]
    return rows


def peak_memory(name, size, side, dtype):
    """MiB that a process peaks at which runs 20 batches through a layer."""
    code = (
        "import sys; sys.argv = ['']\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import input_pipeline as p, peak_memory\n"
        f"p.consumer({name!r}, p.make_batch({size}, {side}, {dtype!r}), '1', 20)()\n"
        "print(peak_memory.own_peak())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return float(result.stdout.split()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    rows, memory = [], []
    for dtype in ("float32", "uint8"):
        for size, side, batches in SIZES:
            for calls in ("1", "auto"):
                new = measure(size, side, batches, dtype, calls, args.repeats)
                rows += new
                print(f"\n{dtype}, {size} images of {side} px, parallel calls {calls}:")
                for row in new:
                    print(
                        f"  {row['layer']:16} {row['ms_per_batch']:9.3f} ms  "
                        f"{row['times_keras_mixup']:6.2f} x keras MixUp  "
                        f"{row['share_of_memory_limit']:5.2f} of the memory's limit",
                        flush=True,
                    )
    for dtype in ("float32", "uint8") if args.memory else ():
        size, side, _ = SIZES[-1]  # smaller images are lost in TensorFlow's own
        for name in LAYERS:
            peak = peak_memory(name, size, side, dtype)
            row = {"layer": name, "side": side, "dtype": dtype, "peak_mib": peak}
            memory.append(row)
            print(row, flush=True)
    packages = ("keras", "keras-cv", "tensorflow", "numpy", "keras-mixavg")
    report = {
        "command": "python benchmarks/input_pipeline.py"
        + (" --memory" if args.memory else ""),
        "repeats": args.repeats,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": {package: metadata.version(package) for package in packages},
        "rows": rows,
        "memory": memory,
    }
    args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
