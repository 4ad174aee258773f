"""What the soft-label table adds to a checkpoint: bytes, and seconds to save and load.

    python benchmarks/checkpoint.py

Two models that differ in their loss alone, with an optimizer that has state, at 10, 100
and 1,000 classes on 512 features. The two take turns; medians of `--repeats`. Writes
`benchmarks/results/checkpoint.json`.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np

import keras_mixavg
from keras_mixavg import GlobalSoftLabel, SoftLabelCrossentropy

RESULT = Path(__file__).parent / "results" / "checkpoint.json"
FEATURES = 512


def trained_model(num_classes, with_method):
    model = keras.Sequential(
        [keras.Input((FEATURES,)), keras.layers.Dense(num_classes)]
    )
    plain = keras.losses.CategoricalCrossentropy
    make_loss = SoftLabelCrossentropy if with_method else plain
    model.compile("adam", make_loss(from_logits=True))
    x = np.random.default_rng(0).normal(size=(64, FEATURES)).astype("float32")
    y = keras.utils.to_categorical(np.arange(64) % num_classes, num_classes)
    callbacks = [GlobalSoftLabel()] if with_method else []
    model.fit(x, y, batch_size=32, verbose=0, callbacks=callbacks)
    return model


def seconds(action):
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def measure(num_classes, repeats, folder):
    models = {
        name: trained_model(num_classes, name == "with") for name in ("without", "with")
    }
    times = {name: {"save": [], "load": []} for name in models}
    for _ in range(repeats + 1):  # the first is a warm-up
        for name, model in models.items():
            path = folder / f"{name}.weights.h5"
            times[name]["save"].append(
                seconds(lambda m=model, p=path: m.save_weights(p))
            )
            times[name]["load"].append(
                seconds(lambda m=model, p=path: m.load_weights(p))
            )
    row = {"num_classes": num_classes}
    for name in models:
        row[f"bytes_{name}"] = (folder / f"{name}.weights.h5").stat().st_size
        for action, values in times[name].items():
            row[f"{action}_ms_{name}"] = 1e3 * statistics.median(values[1:])
            row[f"{action}_ms_{name}_quartiles"] = [
                1e3 * q for q in statistics.quantiles(values[1:], n=4)[::2]
            ]
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            measure(num_classes, arguments.repeats, Path(folder))
            for num_classes in (10, 100, 1000)
        ]
    report = {
        "command": f"python benchmarks/checkpoint.py --repeats {arguments.repeats}",
        "repeats": arguments.repeats,
        "python": platform.python_version(),
        "keras": keras.__version__,
        "backend": f"{keras.backend.backend()} "
        f"{sys.modules[keras.backend.backend()].__version__}",
        "keras_mixavg": keras_mixavg.__version__,
        "machine": f"{platform.machine()}, {keras.backend.backend()} on the CPU",
        "rows": rows,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    for row in rows:
        print(
            f"{row['num_classes']:>5} classes: "
            f"{row['bytes_without'] / 1e6:.2f} MB -> {row['bytes_with'] / 1e6:.2f} MB, "
            f"save {row['save_ms_without']:.1f} -> {row['save_ms_with']:.1f} ms, "
            f"load {row['load_ms_without']:.1f} -> {row['load_ms_with']:.1f} ms"
        )


if __name__ == "__main__":
    main()
