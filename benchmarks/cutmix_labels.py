"""Do the labels of CutMix say how much of each image is there?

    python benchmarks/cutmix_labels.py

Images of one colour each, so that it shows what share of one stays; labels one-hot.
Writes `benchmarks/results/cutmix_labels.json`: the difference between that share and
the label's, over 16 batches of 64 images of 32x32.
"""

import keras
import keras_cv
import numpy as np
import record
import tensorflow as tf

BATCHES, BATCH, SIDE = 16, 64, 32
LAYERS = {
    "keras.layers.CutMix(factor=1.0)": lambda: keras.layers.CutMix(factor=1.0, seed=1),
    "keras_cv.layers.CutMix(alpha=1.0)": lambda: keras_cv.layers.CutMix(
        alpha=1.0, seed=1
    ),
}


def differences(layer):
    """|share of the own image - share of the own label|, for each image."""
    colours = np.arange(BATCH, dtype="float32")
    images = np.broadcast_to(colours[:, None, None, None], (BATCH, SIDE, SIDE, 3))
    batch = {"images": images, "labels": np.eye(BATCH, dtype="float32")}
    data = tf.data.Dataset.from_tensors(batch).repeat(BATCHES).map(layer)
    result = []
    for mixed in data.as_numpy_iterator():
        own = (mixed["images"][..., 0] == colours[:, None, None]).mean(axis=(1, 2))
        result.append(np.abs(own - np.diag(mixed["labels"])))
    return np.concatenate(result)


def measure():
    rows = []
    for name, make in LAYERS.items():
        error = differences(make())
        mean, largest = float(error.mean()), float(error.max())
        rows.append({"layer": name, "mean": mean, "max": largest, "n": len(error)})
        print(f"{name}: mean {mean:.3f}, largest {largest:.3f}")
    return rows


def table(results):
    rows = [
        [f"`{row['layer']}`", f"{row['mean']:.2f}", f"{row['max']:.2f}", row["n"]]
        for row in results["rows"]
    ]
    text = record.markdown(["layer", "in the mean", "at most", "images"], rows)
    packages = ["keras", "keras-cv", "tensorflow"]
    return f"{text}{record.made_with(results, packages)}.\n"


def main():
    command = "python benchmarks/cutmix_labels.py"
    record.write("cutmix_labels", command, rows=measure())


if __name__ == "__main__":
    main()
