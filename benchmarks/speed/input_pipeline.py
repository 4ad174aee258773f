"""Images per second of one `tf.data` map: MixAvg, and the layers it replaces.

    python benchmarks/speed/input_pipeline.py            # five minutes on two cores
    python benchmarks/speed/input_pipeline.py --memory   # and peak memory at 224 px

The map gets the same batch over and over, so that nothing else is measured. TensorFlow
consumes it, without Python, through one iterator for all rounds (a new one would copy
the batch). The layers take turns for `--repeats` rounds after a warm-up; the result is
the median. `numpy` is the time of `np.add` of two batches into a third, the limit that
memory sets; `copy and seed` is the least that TensorFlow does for a layer that draws at
random and leaves its input unchanged. Writes `results/input_pipeline.json`.
"""

import argparse
import statistics
from collections import defaultdict

import keras
import keras_cv
import matplotlib.pyplot as plt
import measuring
import numpy as np
import provenance
import tensorflow as tf
from training import compare

from keras_mixavg import MixAvg

COMMAND = "python benchmarks/speed/input_pipeline.py"
RESULT = measuring.RESULTS / "input_pipeline.json"
CLASSES = 100
SIZES = ((128, 32, 64), (128, 64, 24), (64, 224, 6))  # batch, side, batches a round
LAYERS = {
    "none": lambda: lambda batch: batch,
    "copy": lambda: copied,
    "copy and seed": lambda: seeded_copy(),
    "MixAvg": lambda: MixAvg(seed=0),
    "MixAvg, tuple": lambda: MixAvg(seed=0),
    "MixAvg, applied": lambda: MixAvg(seed=0),
    "keras MixUp": lambda: keras.layers.MixUp(alpha=1.0, seed=0),
    "keras CutMix": lambda: keras.layers.CutMix(seed=0),
    "keras_cv MixUp": lambda: keras_cv.layers.MixUp(alpha=1.0, seed=0),
    "keras_cv CutMix": lambda: keras_cv.layers.CutMix(seed=0),
}


def copied(batch):
    return tf.nest.map_structure(lambda x: tf.raw_ops.DeepCopy(x=x), batch)


def seeded_copy():
    """The least that a seeded layer does: copy the batch and draw a seed."""
    generator = keras.random.SeedGenerator(0)
    return lambda batch: {**copied(batch), "seed": generator.next()}


def make_batch(size, side, dtype):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (size, side, side, 3)).astype(dtype)
    labels = np.eye(CLASSES, dtype="float32")[rng.integers(0, CLASSES, size)]
    return {"images": images, "labels": labels}


def mapped(name, batch, calls):
    """A dataset that repeats a batch and maps a layer over it."""
    if name.endswith("tuple"):
        batch = (batch["images"], batch["labels"])
    data = tf.data.Dataset.from_tensors(batch).repeat()
    options = tf.data.Options()
    if name.endswith("applied"):  # always parallel: one thread is one call
        data = data.apply(LAYERS[name]())
        options.threading.private_threadpool_size = 1 if calls == "1" else 0
    else:
        calls = {"1": None, "auto": tf.data.AUTOTUNE}[calls]
        data = data.map(LAYERS[name](), num_parallel_calls=calls)
    options.experimental_optimization.inject_prefetch = False  # it would work ahead
    return data.with_options(options)


def consumer(name, batch, calls, batches):
    """A function that maps a layer over `batches` batches."""
    iterator = iter(mapped(name, batch, calls))

    @tf.function
    def consume():
        for _ in tf.range(batches):
            next(iterator)

    return consume


def measure_one(size, side, batches, dtype, calls, repeats):
    """A row for each layer, of one size, dtype and number of calls."""
    batch = make_batch(size, side, dtype)
    sides = {name: consumer(name, batch, calls, batches) for name in LAYERS}
    images = batch["images"]
    others, target = images.copy(), np.empty_like(images)
    sides["numpy"] = lambda: [
        np.add(images, others, out=target) for _ in range(batches)
    ]
    times = defaultdict(list)
    for _ in range(repeats + 1):
        for name, run in sides.items():
            run()  # uses up the batches prefetched during the turns of others
            times[name].append(measuring.seconds(run) / batches)
    rows = []
    for name, values in times.items():
        rows.append(
            {
                "layer": name,
                "batch": size,
                "side": side,
                "dtype": dtype,
                "parallel_calls": calls,
                "ms_per_batch": 1e3 * statistics.median(values[1:]),
                "quartiles_ms": [1e3 * q for q in measuring.quartiles(values[1:])],
            }
        )
    by_name = {row["layer"]: row["ms_per_batch"] for row in rows}
    for row in rows:
        row["images_per_second"] = 1e3 * size / row["ms_per_batch"]
        row["times_keras_mixup"] = by_name["keras MixUp"] / row["ms_per_batch"]
        row["share_of_memory_limit"] = by_name["numpy"] / row["ms_per_batch"]
    return rows


def peak_memory(name, size, side, dtype):
    """Peak memory in MiB of a process that maps a layer over 20 batches."""
    return measuring.peak_of(
        "import input_pipeline as p\n"
        f"p.consumer({name!r}, p.make_batch({size}, {side}, {dtype!r}), '1', 20)()\n"
    )


def first_batches(name, size, side, dtype):
    """Seconds to the first batch of the first epoch, and of the second.

    In a new process that has already run TensorFlow. The first includes making the
    layer and the dataset.
    """
    output = measuring.output_of(
        "import time, input_pipeline as p\n"
        f"batch = p.make_batch({size}, {side}, {dtype!r})\n"
        "next(iter(p.mapped('copy', batch, 'auto')))\n"
        "start = time.perf_counter()\n"
        f"data = p.mapped({name!r}, batch, 'auto')\n"
        "next(iter(data))\n"
        "first = time.perf_counter()\n"
        "next(iter(data))\n"
        "print(first - start, time.perf_counter() - first)\n"
    )
    return [float(value) for value in output.split()[-2:]]


def measure_first(repeats):
    rows = []
    for dtype in ("float32", "uint8"):
        for size, side, _ in SIZES[::2]:
            for name in ("MixAvg, applied", "MixAvg", "keras MixUp"):
                runs = [first_batches(name, size, side, dtype) for _ in range(repeats)]
                first, second = map(statistics.median, zip(*runs, strict=True))
                row = {"layer": name, "batch": size, "side": side, "dtype": dtype}
                rows.append({**row, "first_seconds": first, "second_seconds": second})
                print(rows[-1], flush=True)
    return rows


def measure(repeats):
    rows = []
    for dtype in ("float32", "uint8"):
        for size, side, batches in SIZES:
            for calls in ("1", "auto"):
                new = measure_one(size, side, batches, dtype, calls, repeats)
                rows += new
                print(f"\n{dtype}, {size} images of {side} px, parallel calls {calls}:")
                for row in new:
                    print(
                        f"  {row['layer']:16} {row['ms_per_batch']:9.3f} ms  "
                        f"{row['times_keras_mixup']:6.2f} x keras MixUp  "
                        f"{row['share_of_memory_limit']:5.2f} of the memory's limit",
                        flush=True,
                    )
    return rows


def measure_memory():
    memory = []
    size, side, _ = SIZES[-1]  # smaller images are lost in TensorFlow's own
    for dtype in ("float32", "uint8"):
        for name in LAYERS:
            peak = peak_memory(name, size, side, dtype)
            row = {"layer": name, "side": side, "dtype": dtype, "peak_mib": peak}
            memory.append(row)
            print(row, flush=True)
    return memory


# --- To show -------------------------------------------------------------------------


def by_size(results):
    """The rows as `{(dtype, batch, side, calls): {layer: row}}`."""
    found = defaultdict(dict)
    for row in results["rows"]:
        key = row["dtype"], row["batch"], row["side"], row["parallel_calls"]
        found[key][row["layer"]] = row
    return found


def table(results):
    rows = []
    for (dtype, batch, side, calls), layers in by_size(results).items():
        ours = layers["MixAvg"]

        def times(*names, layers=layers, ours=ours):
            best = min(layers[name]["ms_per_batch"] for name in names)
            return f"{best / ours['ms_per_batch']:.1f}"

        spread = [batch / ms * 1e3 for ms in reversed(ours["quartiles_ms"])]
        rows.append(
            [
                f"{dtype}, {batch} of {side} px",
                calls,
                f"{ours['images_per_second']:,.0f}",
                " to ".join(f"{value:,.0f}" for value in spread),
                times("keras MixUp"),
                times("keras MixUp", ours=layers["copy and seed"]),
                times("keras CutMix"),
                times("keras_cv MixUp", "keras_cv CutMix"),
                f"{ours['share_of_memory_limit']:.2f}",
                *applied_cells(layers),
            ]
        )
    text = compare.markdown(
        ["batch", "parallel calls", "images/s", "quartiles", "times MixUp"]
        + ["copy and seed, times MixUp", "times CutMix", "times the faster of KerasCV"]
        + ["share of the memory limit", "applied, images/s", "applied, times MixUp"]
        + ["applied, time relative to a copy"],
        rows,
    )
    text += first_table(results["first"])
    if results["memory"]:
        text += memory_table(results["memory"])
    packages = ["keras", "keras-cv", "tensorflow", "numpy"]
    command = COMMAND + " --memory" * bool(results["memory"])
    made = provenance.made_with(command, results, packages)
    return (
        f"{text}{made}, n = {results['repeats']}.\n"
        "\n![Images per second of each layer](results/plots/input_pipeline.png)\n"
    )


def applied_cells(layers):
    """Cells of the layer called on the dataset, which older records lack."""
    if "MixAvg, applied" not in layers:
        return ["-"] * 3
    row = layers["MixAvg, applied"]
    copy = row["ms_per_batch"] / layers["copy"]["ms_per_batch"]
    speed, times = row["images_per_second"], row["times_keras_mixup"]
    return [f"{speed:,.0f}", f"{times:.1f}", f"{copy:.2f}"]


def by_layer(rows, columns, cells):
    """A row for each layer, in their order."""
    found = defaultdict(list)
    for row in rows:
        found[row["layer"]].append(cells(row))
    header = ["layer", *dict.fromkeys(map(columns, rows))]
    return compare.markdown(header, [[name, *of] for name, of in found.items()])


def first_table(rows):
    text = "\nMilliseconds to the first batch of the first and of a later epoch, "
    text += "with AUTOTUNE:\n\n"
    return text + by_layer(
        rows,
        lambda row: f"{row['dtype']}, {row['batch']} of {row['side']} px",
        lambda row: (
            f"{1e3 * row['first_seconds']:.0f}, {1e3 * row['second_seconds']:.0f}"
        ),
    )


def memory_table(rows):
    plain = {row["dtype"]: row["peak_mib"] for row in rows if row["layer"] == "none"}
    text = "\nPeak memory of a process that maps 20 batches, in MiB above that of the "
    text += "same process without a layer:\n\n"
    return text + by_layer(
        [row for row in rows if row["layer"] != "none"],
        lambda row: f"{row['dtype']}, {row['side']} px",
        lambda row: f"{row['peak_mib'] - plain[row['dtype']] + 0.0:+.0f}",
    )


def plot(results):
    layers = ["MixAvg", "keras MixUp", "keras_cv MixUp", "keras CutMix"]
    found = {key[:3]: row for key, row in by_size(results).items() if key[3] == "auto"}
    figure, ax = plt.subplots(figsize=(9, 4), layout="constrained")
    for i, layer in enumerate(layers):
        values = [rows[layer]["images_per_second"] for rows in found.values()]
        ax.bar(np.arange(len(found)) + 0.2 * (i - 1.5), values, 0.19, label=layer)
    ax.set(
        title="How many images a second does each layer mix?",
        yscale="log",
        ylabel="images per second, AUTOTUNE",
    )
    ax.set_xticks(range(len(found)), [f"{k[0]}\n{k[1]} of {k[2]} px" for k in found])
    ax.grid(axis="y", alpha=0.3)
    ax.legend(ncols=4, loc="upper right")
    ax.set_ylim(top=4 * ax.get_ylim()[1])
    provenance.save(figure, measuring.RESULTS / "plots/input_pipeline.png")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--memory", action="store_true")
    args = parser.parse_args()
    command = COMMAND + " --memory" * args.memory
    figures = {"repeats": args.repeats, "rows": measure(args.repeats), "memory": []}
    figures["first"] = measure_first(args.repeats)
    provenance.write(RESULT, command, **figures)  # the memory takes as long
    if args.memory:
        provenance.write(RESULT, command, **{**figures, "memory": measure_memory()})


if __name__ == "__main__":
    main()
