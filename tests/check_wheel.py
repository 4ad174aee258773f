"""Train a few steps with the installed package alone, for `make package`.

It trains on arrays, so that it needs no tf.data, and writes only to a temporary folder.
"""

import importlib.metadata
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.pop(0)  # the folder of this script, and with it the checkout

import keras
import numpy as np

import keras_mixavg
from keras_mixavg import (
    GlobalSoftLabel,
    MixAvg,
    SoftLabelAccuracy,
    SoftLabelCrossentropy,
)

folder = Path(keras_mixavg.__file__).parent
assert folder.parent != Path(__file__).parent.parent, "this is the checkout"
assert importlib.metadata.version("keras-mixavg") == keras_mixavg.__version__
for name in ("py.typed", "README.md"):
    assert (folder / name).exists(), f"{name} is not in the wheel"

keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)
labels = rng.integers(0, 4, size=256)
features = (np.eye(4)[labels] + 0.1 * rng.normal(size=(256, 4))).astype("float32")
mixed, soft = MixAvg(num_classes=4, seed=0)(features, labels)
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
model.compile(
    keras.optimizers.Adam(0.05),
    loss=SoftLabelCrossentropy(from_logits=True),
    metrics=[SoftLabelAccuracy()],
)
soft_labels = GlobalSoftLabel()
model.fit(mixed, soft, epochs=10, callbacks=[soft_labels], verbose=0)
with tempfile.TemporaryDirectory() as scratch:
    model.save(f"{scratch}/model.keras")
    model = keras.saving.load_model(f"{scratch}/model.keras")
one_hot = keras.utils.to_categorical(labels, 4)
accuracy = model.evaluate(features, one_hot, verbose=0, return_dict=True)["accuracy"]
assert accuracy > 0.9, accuracy
np.testing.assert_allclose(soft_labels.table.sum(axis=1), 1, atol=1e-5)
print(
    f"keras_mixavg {keras_mixavg.__version__} from {folder.parent}: accuracy "
    f"{accuracy:.2f} on {keras.backend.backend()}, tensorflow "
    f"{'imported' if 'tensorflow' in sys.modules else 'not imported'}"
)
