"""Draw the picture of the front page: four photographs, their pairs, and their targets.

The global soft labels are those of a small network after twelve epochs of `fit` on
small crops of the photographs.

    python docs/_site/photographs.py    # writes docs/pictures/photographs.jpg

The photographs come with scikit-image, all of them in the public domain or CC0:
Chelsea the cat by Stefan van der Walt, a cup of coffee by Rachel Michetti, the launch
of a Falcon 9 by SpaceX, the astronaut Eileen Collins by NASA.
"""

from pathlib import Path

import keras
import numpy as np
import skimage.data
import skimage.transform
from keras import layers
from matplotlib.figure import Figure

from keras_mixavg import GlobalSoftLabel, MixAvg, SoftLabelCrossentropy

PICTURE = Path(__file__).parents[1] / "pictures/photographs.jpg"
# Class, photograph, and its square as top, left and side.
CROPS = {
    "cat": ("chelsea", 10, 95, 260),
    "coffee": ("coffee", 20, 130, 360),
    "rocket": ("rocket", 20, 190, 300),
    "astronaut": ("astronaut", 0, 90, 260),
}
SIDE = 160
SEED = 3  # of pairs of which one image stays as it is
EXAMPLES, PATCH, EPOCHS = 512, 32, 12


def photograph(name, top, left, side):
    square = getattr(skimage.data, name)()[top : top + side, left : left + side]
    small = skimage.transform.resize(square, (SIDE, SIDE), anti_aliasing=True)
    return np.round(255 * small).astype("uint8")


def table_of(images):
    """The soft-label table of a network that tells small crops of the images apart."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, len(images), EXAMPLES)
    corners = rng.integers(0, SIDE - PATCH, (EXAMPLES, 2))
    crops = np.stack(
        [
            images[label, top : top + PATCH, left : left + PATCH]
            for label, (top, left) in zip(labels, corners, strict=True)
        ]
    )
    model = keras.Sequential(
        [
            keras.Input((PATCH, PATCH, 3)),
            layers.Rescaling(1 / 127.5, offset=-1.0),
            layers.Conv2D(16, 3, 2, activation="relu"),
            layers.Conv2D(32, 3, 2, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(len(images)),
        ]
    )
    model.compile("adam", SoftLabelCrossentropy(from_logits=True))
    pairs = MixAvg(num_classes=len(images), seed=1)
    batches = [pairs(crops[i::16], labels[i::16]) for i in range(16)]
    x, y = (np.concatenate(part) for part in zip(*batches, strict=True))
    callback = GlobalSoftLabel()
    model.fit(x, y, epochs=EPOCHS, callbacks=[callback], verbose=0)
    return callback.table


def draw(images, mixed, partners, local, table):
    """A column for each image: itself, its partner, their average, and its labels."""
    names = list(CROPS)
    columns = len(names)
    figure = Figure(figsize=(1.9 * columns, 7.6), layout="constrained")
    axes = figure.subplots(4, columns, height_ratios=[1, 1, 1, 1.1])
    for column, (top, middle, seen, labels) in enumerate(axes.T):
        partner = partners[column]
        top.imshow(images[column])
        top.set_title(names[column])
        if partner == column:
            middle.text(0.5, 0.5, "none", ha="center", transform=middle.transAxes)
            middle.set_frame_on(False)
        else:
            middle.imshow(images[partner])
            middle.set_title(names[partner])
        seen.imshow(mixed[column])
        for axis in (top, middle, seen):
            axis.set_xticks([])
            axis.set_yticks([])
        y = np.arange(columns)
        labels.barh(y - 0.2, local[column], 0.38, color="C0", label="local")
        labels.barh(y + 0.2, local[column] @ table, 0.38, color="C1", label="global")
        labels.set(xlim=(0, 1), ylim=(columns - 0.5, -0.5), xticks=[0, 0.5, 1])
        labels.set_yticks(y, names if column == 0 else [""] * columns)
    for axis, text in zip(
        axes[:, 0], ("image", "partner", "average", "soft labels"), strict=True
    ):
        axis.set_ylabel(text, fontsize=12)
    handles = axes[3, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=2)
    return figure


def main():
    images = np.stack([photograph(*crop) for crop in CROPS.values()])
    layer = MixAvg(0.75, len(CROPS), seed=2)
    partners = layer.draw(len(images), np.random.default_rng(SEED))
    mixed, local = layer.apply((images, np.arange(len(CROPS))), partners)
    figure = draw(images, mixed, partners, local, table_of(images))
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=100)


if __name__ == "__main__":
    main()
