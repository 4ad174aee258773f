"""Do the labels of CutMix say how much of each image is there?

    python benchmarks/cutmix_labels.py

Images of one colour each, so that it shows what share of one stays; labels one-hot.
Writes `benchmarks/results/cutmix_labels.json`: the difference between that share and
the label's, over 16 batches of 64 images of 32x32.
"""

import json
from importlib import metadata
from pathlib import Path

import keras
import keras_cv
import numpy as np
import tensorflow as tf

RESULT = Path(__file__).parent / "results" / "cutmix_labels.json"
BATCHES, BATCH, SIDE = 16, 64, 32
LAYERS = {
    "keras.layers.CutMix(factor=1.0)": keras.layers.CutMix(factor=1.0, seed=1),
    "keras_cv.layers.CutMix(alpha=1.0)": keras_cv.layers.CutMix(alpha=1.0, seed=1),
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


def main():
    rows = []
    for name, layer in LAYERS.items():
        error = differences(layer)
        rows.append(
            {
                "layer": name,
                "mean": float(error.mean()),
                "max": float(error.max()),
                "n": len(error),
            }
        )
        print(f"{name}: mean {error.mean():.3f}, largest {error.max():.3f}")
    versions = {p: metadata.version(p) for p in ("keras", "keras-cv", "tensorflow")}
    report = {"command": "python benchmarks/cutmix_labels.py", "rows": rows}
    RESULT.write_text(json.dumps({**report, "versions": versions}, indent=1) + "\n")


if __name__ == "__main__":
    main()
