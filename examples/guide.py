# %% [markdown]
"""
# Getting started

This guide builds a training program around `keras_mixavg` step by step: averaged pairs
in the input pipeline, a loss, a callback. The data are images that need no download,
some with wrong labels, which a network can memorise. It runs in about a minute on a
CPU.
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
from keras_mixavg.plotting import plot_pairs, plot_table

keras.utils.set_random_seed(0)

# %% [markdown]
"""
## The data

1,000 images of 8x8 pixels for training, 797 for testing. Three in ten of the training
images get the label of another digit, as in data that were labelled in a hurry. The
test labels are right.
"""

# %%
digits = load_digits()
images = (15 * digits.images[..., None]).astype("uint8")  # 0 to 240
labels = digits.target

rng = np.random.default_rng(0)
wrong = rng.permutation(1000)[:300]
noisy = labels[:1000].copy()
noisy[wrong] = (noisy[wrong] + rng.integers(1, 10, size=300)) % 10

train = tf.data.Dataset.from_tensor_slices((images[:1000], noisy))
train = train.shuffle(1000, seed=0).batch(50)
test = tf.data.Dataset.from_tensor_slices((images[1000:], labels[1000:])).batch(100)

# %% [markdown]
"""
## Average pairs

`MixAvg` goes last, after `batch` and after augmentations of single images. It replaces
about half of the samples by the average of the sample and another one of its batch,
with their labels. Class numbers become one-hot, which needs the number of classes.
`uint8` images stay `uint8`.
"""

# %%
pairs = train.apply(MixAvg(num_classes=10, seed=0)).prefetch(2)

mixed_images, mixed_labels = next(iter(pairs))
print(mixed_images.shape, mixed_images.dtype)
print(mixed_labels[:4].numpy())

# %% [markdown]
"""
Called on arrays, the layer averages one batch. Here it is with eight images:
"""

# %%
before = images[:8], labels[:8]
after = MixAvg(num_classes=10, seed=3)(*before)
plot_pairs(*before, *after)

# %% [markdown]
"""
## Train, with and without

Train the same small network twice, first without this package. It is large enough to
memorise the wrong labels.
"""


# %%
def make_model():
    layers = [
        keras.Input((8, 8, 1)),
        keras.layers.Rescaling(1 / 255),
        keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
        keras.layers.Conv2D(32, 3, strides=2, padding="same", activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(128, activation="relu"),
        keras.layers.Dense(10),
    ]
    return keras.Sequential(layers)


plain = make_model()
plain.compile(
    keras.optimizers.Adam(0.003),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
history_plain = plain.fit(
    train, validation_data=test, epochs=20, shuffle=False, verbose=0
)
accuracies = history_plain.history["val_accuracy"]
print(f"best epoch {max(accuracies):.3f}, last epoch {accuracies[-1]:.3f}")

# %% [markdown]
"""
Now train with averaged pairs and global soft labels. `SoftLabelCrossentropy` is plain
cross-entropy until a `GlobalSoftLabel` callback trains with it. Then part of each
target is the *global* soft label of the sample's classes, from a table that is updated
each epoch with the predictions of the network. Over the last epochs that part fades
out. The test data need no layer. Validation is plain cross-entropy, so you can compare
`val_loss` with any other run.
"""

# %%
model = make_model()
model.compile(
    keras.optimizers.Adam(0.003),
    loss=SoftLabelCrossentropy(from_logits=True),
    metrics=[SoftLabelAccuracy()],
)
soft_labels = GlobalSoftLabel()
history = model.fit(
    pairs,
    validation_data=test,
    epochs=20,
    callbacks=[soft_labels],
    shuffle=False,
    verbose=0,
)
accuracies = history.history["val_accuracy"]
print(f"best epoch {max(accuracies):.3f}, last epoch {accuracies[-1]:.3f}")

# %% [markdown]
"""
`SoftLabelAccuracy` counts either class of an averaged pair as right, and is ordinary
accuracy on the test data. Training accuracy is lower than usual: pairs are harder than
images, and fewer of the wrong labels are learnt: the last epoch is below the best one,
but not as far as in plain training.

This is one run of each on one small data set.
[Accuracy](../benchmarks/accuracy/README.md) has results on other data, with intervals,
and says where the method does not help.

## Which classes the network confuses

The table of global soft labels has a row for each class. The logs have two figures
about it: `soft_label_confidence`, the mean of its diagonal, and `soft_label_entropy`.
"""

# %%
plot_table(soft_labels.table)

# %% [markdown]
"""
## Where to go from here

- [Recipes](../docs/recipes/index.md): arrays, class weights, several outputs, k-fold
  and more, as code that runs.
- [FAQ](../docs/questions.md).
- [The method](../keras_mixavg/README.md), with its equations and limits.
- [Example programs](README.md), also for CIFAR and Tiny-ImageNet.
"""
