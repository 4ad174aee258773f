# %% [markdown]
"""
# Train an image classifier on averaged pairs and global soft labels

`keras_mixavg` makes an image classifier better without drawing mixing weights: it
averages random pairs of images, and trains on soft labels that the network helps to
make. This guide builds a training program around it, piece by piece, on 8x8 digits
that need no download. It runs in about a minute on a CPU.
"""

# %% [markdown]
"""
## Setup

Keras 3 with any backend; the data pipeline is `tf.data`, which works with all of
them.
"""

# %%
import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

from keras_mixavg import (
    GlobalSoftLabel,
    MixAvg,
    SoftLabelAccuracy,
    SoftLabelCrossentropy,
)

keras.utils.set_random_seed(0)

digits = load_digits()
images = (15 * digits.images[..., None]).astype("uint8")  # 0 to 240
labels = digits.target
print(images.shape, images.dtype, labels[:10])

# %% [markdown]
"""
## Average pairs in the data pipeline

`MixAvg` goes last, after `batch` and after the augmentations that work on one image.
Each sample is, half of the time, replaced by the average of itself and another one of
its batch; the labels likewise. It takes class numbers if it knows how many classes
there are, and keeps `uint8` images as `uint8`.
"""

# %%
train = tf.data.Dataset.from_tensor_slices((images[300:], labels[300:]))
train = train.shuffle(1500, seed=0).batch(64, drop_remainder=True)
train = train.map(MixAvg(num_classes=10, seed=0)).prefetch(2)

mixed_images, mixed_labels = next(iter(train))
print(mixed_images.dtype, mixed_labels[:4].numpy(), sep="\n")

# %% [markdown]
"""
Test data are not mixed; `rate=0` only makes their labels one-hot.
"""

# %%
test = tf.data.Dataset.from_tensor_slices((images[:300], labels[:300]))
test = test.batch(100).map(MixAvg(rate=0, num_classes=10))

# %% [markdown]
"""
## The loss, the metric and the callback

`SoftLabelCrossentropy` is categorical cross-entropy, until a `GlobalSoftLabel`
callback trains with it: then a tenth of each target is the *global* soft label of
the sample's classes, a row of a table that is made anew each epoch from what the
network predicts. Validation is plain cross-entropy, so `val_loss` compares with any
other run.
"""

# %%
model = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        keras.layers.Rescaling(1 / 255),
        keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
        keras.layers.Conv2D(32, 3, strides=2, padding="same", activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(10),
    ]
)
model.compile(
    keras.optimizers.Adam(0.003),
    loss=SoftLabelCrossentropy(from_logits=True),
    metrics=[SoftLabelAccuracy()],
)
soft_labels = GlobalSoftLabel()
history = model.fit(
    train,
    validation_data=test,
    epochs=8,
    callbacks=[soft_labels],
    shuffle=False,
    verbose=2,
)

# %% [markdown]
"""
`SoftLabelAccuracy` counts either class of an averaged pair as right, and is ordinary
accuracy on the test data. The logs have two figures of the table:
`soft_label_confidence`, the mean of its diagonal, and `soft_label_entropy`.

## What the network has learnt of the classes

Each row is what the network says of a class where it is right. Here are the two
classes that each digit is most likely taken for.
"""

# %%
for digit, row in enumerate(soft_labels.table):
    others = [k for k in np.argsort(row)[::-1] if k != digit][:2]
    print(
        f"{digit}: itself {row[digit]:.3f}, then",
        *(f"{k} {row[k]:.3f}" for k in others),
    )

# %% [markdown]
"""
## Save, load and go on

The table is part of what Keras saves. A run with `keras.callbacks.BackupAndRestore`
that is killed goes on as if nothing had happened, and so does a model that is loaded.
"""

# %%
model.save("digits.keras")
model = keras.saving.load_model("digits.keras")
model.fit(train, epochs=1, callbacks=[GlobalSoftLabel()], shuffle=False, verbose=2)
print(
    f"test accuracy {model.evaluate(test, verbose=0, return_dict=True)['accuracy']:.3f}"
)

# %% [markdown]
"""
## Where to go from here

`cifar.py` and `tiny_imagenet.py` beside this file are full training programs, with
nine other methods to compare with. The README of the package says what the method
costs, what survives what, and when not to use it.
"""
