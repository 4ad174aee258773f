"""What the table adds to a checkpoint: bytes, and time to save and load.

    python benchmarks/speed/checkpoint.py

Two models that differ only in the loss, with the state of an optimizer, at 10, 100 and
1,000 classes on 512 features. They take turns; medians of `--repeats`. Writes
`benchmarks/speed/results/checkpoint.json`.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import keras
import measuring
import numpy as np
import provenance
from training import compare

from keras_mixavg import GlobalSoftLabel, SoftLabelCrossentropy

FEATURES = 512
COMMAND = "python benchmarks/speed/checkpoint.py --repeats {repeats}"
RESULT = measuring.RESULTS / "checkpoint.json"


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


def measure_one(num_classes, repeats, folder):
    models = {
        name: trained_model(num_classes, name == "with") for name in ("without", "with")
    }
    paths = {name: folder / f"{name}.weights.h5" for name in models}
    actions = {}
    for name, model in models.items():
        save, load, path = model.save_weights, model.load_weights, paths[name]
        actions[f"save_ms_{name}"] = lambda save=save, path=path: save(path)
        actions[f"load_ms_{name}"] = lambda load=load, path=path: load(path)
    row = {"num_classes": num_classes}
    times = measuring.in_turns(actions, repeats)
    row |= {f"bytes_{name}": path.stat().st_size for name, path in paths.items()}
    for name, values in times.items():
        row[name] = 1e3 * statistics.median(values)
        row[f"{name}_quartiles"] = [1e3 * q for q in measuring.quartiles(values)]
    return row


def measure(repeats):
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for num_classes in (10, 100, 1000):
            rows.append(measure_one(num_classes, repeats, Path(folder)))
            print(rows[-1], flush=True)
    return rows


def table(results):
    rows = [
        [
            f"{row['num_classes']:,}",
            *(f"{row[f'bytes_{name}'] / 1e6:.2f}" for name in ("without", "with")),
            *(
                f"{row[f'{action}_ms_{name}']:.1f}"
                for action in ("save", "load")
                for name in ("without", "with")
            ),
        ]
        for row in results["rows"]
    ]
    text = compare.markdown(
        ["classes", "size without table, MB", "with table, MB"]
        + ["save without table, ms", "with table, ms"]
        + ["load without table, ms", "with table, ms"],
        rows,
    )
    command = COMMAND.format(**results)
    made = provenance.made_with(command, results, ["keras", "tensorflow"])
    return f"{text}{made}, n = {results['repeats']}.\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    command = COMMAND.format(repeats=repeats)
    provenance.write(RESULT, command, repeats=repeats, rows=measure(repeats))


if __name__ == "__main__":
    main()
