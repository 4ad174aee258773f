"""What does early stopping do to the method, and which way of stopping is best?

    python benchmarks/accuracy/early_stopping.py            # two settings, five seeds
    python benchmarks/accuracy/early_stopping.py --smoke    # writes nothing

Each seed has another split of the digits: 400, 200 and 1,197 images for training,
validation and test. In the second setting a fifth of the training labels is wrong.
`EarlyStopping` waits 8 epochs for a better validation loss, and restores the best
weights; no run has more than 100 epochs. Every run goes to
`results/early_stopping.json`, and is not repeated unless the settings change.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import keras
import numpy as np
import provenance
import tensorflow as tf
from tables import SCORES
from training import compare, scores

from keras_mixavg import GlobalSoftLabel, MixAvg, SoftLabelCrossentropy

EPOCHS, PATIENCE, BATCH = 100, 8, 50
TRAIN, VALIDATION = 400, 200
SEEDS = range(5)
SETTINGS = {"right labels": 0.0, "a fifth of the labels wrong": 0.2}
RESULT = Path(__file__).resolve().parent / "results/early_stopping.json"
COMMAND = "python benchmarks/accuracy/early_stopping.py"


def stopping(**arguments):
    return keras.callbacks.EarlyStopping(
        patience=PATIENCE, restore_best_weights=True, **arguments
    )


def plateau():
    return keras.callbacks.ReduceLROnPlateau(factor=0.3, patience=4)


FOLLOWS = '`fade_out="learning_rate"`, plateau, stopped'
# By name: whether it trains on pairs, and the callbacks of its one or two fits.
WAYS = {
    "plain training, stopped": (False, [lambda: [stopping()]]),
    "plain training, plateau, stopped": (False, [lambda: [plateau(), stopping()]]),
    "averaged pairs, stopped": (True, [lambda: [stopping()]]),
    "defaults, stopped": (True, [lambda: [GlobalSoftLabel(), stopping()]]),
    "defaults, plateau, stopped": (
        True,
        [lambda: [GlobalSoftLabel(), plateau(), stopping()]],
    ),
    FOLLOWS: (
        True,
        [lambda: [GlobalSoftLabel(fade_out="learning_rate"), plateau(), stopping()]],
    ),
    "`fade_out=1`, stopped": (
        True,
        [lambda: [GlobalSoftLabel(fade_out=1), stopping()]],
    ),
    "a second fit of 20 epochs, `fade_out=1`": (
        True,
        [
            lambda: [GlobalSoftLabel(fade_out=0), stopping()],
            lambda: [GlobalSoftLabel(fade_out=1)],
        ],
    ),
    "defaults, all epochs": (True, [lambda: [GlobalSoftLabel()]]),
    "plain training, all epochs": (False, [lambda: []]),
}
LENGTHS = (EPOCHS, 20)  # epochs of the first and of the second fit


def split_of(seed, wrong):
    """Images and labels for training, validation and test."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (15 * digits.images[..., None]).astype("uint8")
    random = np.random.default_rng(seed)
    order = random.permutation(len(images))
    parts = np.split(order, [TRAIN, TRAIN + VALIDATION])
    data = [(images[part], digits.target[part]) for part in parts]
    changed = random.permutation(TRAIN)[: round(wrong * TRAIN)]
    labels = data[0][1]
    labels[changed] = (labels[changed] + random.integers(1, 10, len(changed))) % 10
    return data


def network():
    layers = [keras.Input((8, 8, 1)), keras.layers.Rescaling(1 / 255)]
    for filters, strides in ((16, 1), (32, 2), (32, 1)):
        layers += [
            keras.layers.Conv2D(filters, 3, strides, padding="same", use_bias=False),
            keras.layers.BatchNormalization(momentum=0.9),
            keras.layers.ReLU(),
        ]
    layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)]
    return keras.Sequential(layers)


def run(way, seed, wrong, epochs):
    """One run, and its scores on the test images."""
    on_pairs, fits = WAYS[way]
    keras.utils.set_random_seed(seed)
    train, validation, test = split_of(seed, wrong)
    data = tf.data.Dataset.from_tensor_slices(train).shuffle(TRAIN, seed=seed)
    data = data.batch(BATCH)
    if on_pairs:
        data = data.apply(MixAvg(num_classes=10, seed=seed))
    model = network()
    model.compile(
        keras.optimizers.Adam(3e-3),
        SoftLabelCrossentropy(from_logits=True),
        jit_compile=False,
    )
    done = 0
    for make, length in zip(fits, LENGTHS, strict=False):
        history = model.fit(
            data.prefetch(1),
            validation_data=tf.data.Dataset.from_tensors(validation),
            epochs=min(epochs, length),
            callbacks=make(),
            shuffle=False,
            verbose=0,
        )
        done += len(history.epoch)
    logits = model.predict_on_batch(test[0])
    figures = scores.scores(logits, test[1])
    kept = {name: figures[name] for name in ("accuracy", "nll", "scaled_nll", "ece")}
    return {"way": way, "seed": seed, "wrong": wrong, "epochs": done, **kept}


def measure(smoke, finished):
    """Run what is missing. After each run yield all runs so far."""
    tf.config.threading.set_intra_op_parallelism_threads(1)  # the steps are small
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.experimental.enable_op_determinism()  # the same figures every time
    runs = list(finished)
    done = {(r["way"], r["seed"], r["wrong"]) for r in runs}
    shares, seeds, epochs = SETTINGS.values(), SEEDS, EPOCHS
    if smoke:
        shares, seeds, epochs = [0.2], [0], 2
    for wrong, way, seed in itertools.product(shares, WAYS, seeds):
        if (way, seed, wrong) not in done:
            made = {"commit": provenance.commit()}
            runs.append({**run(way, seed, wrong, epochs), **made})
            print(json.dumps(runs[-1]), flush=True)
            yield runs


def finished_runs():
    """The runs in the file, if they have these settings."""
    if not RESULT.exists():
        return []
    results = provenance.read(RESULT)
    return results["runs"] if results["settings"] == settings() else []


def settings():
    names = ("EPOCHS", "PATIENCE", "BATCH", "TRAIN", "VALIDATION")
    return {name.lower(): globals()[name] for name in names}


COLUMNS = {  # score: heading, factor, digits
    "epochs": ("epochs", 1, 0),
    "accuracy": ("accuracy %", 100, 1),
    **{score: SCORES[score] for score in ("nll", "scaled_nll", "ece")},
}


def table(results):
    """For each setting the mean and the standard deviation of each method."""
    parts = []
    for title, wrong in SETTINGS.items():
        methods, counts = {}, {}
        for way in WAYS:
            runs = [
                r for r in results["runs"] if (r["way"], r["wrong"]) == (way, wrong)
            ]
            if runs:
                methods[way] = {name: [run[name] for run in runs] for name in COLUMNS}
                counts[way] = len(runs)
        if methods:
            header, *rows = compare.table(methods, COLUMNS)
            rows = [[*row, counts[row[0]]] for row in rows]
            parts.append(f"With {title}:\n\n{compare.markdown([*header, 'n'], rows)}")
    made = provenance.made_with(COMMAND, results, ["keras", "tensorflow"])
    return "\n".join(parts) + f"{made}.\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="two epochs of one seed")
    smoke = parser.parse_args().smoke
    for runs in measure(smoke, [] if smoke else finished_runs()):
        if not smoke:
            provenance.write(RESULT, COMMAND, settings=settings(), runs=runs)


if __name__ == "__main__":
    main()
