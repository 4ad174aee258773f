"""Draw the picture of the front page: four photographs before and after MixAvg.

    python docs/_site/photographs.py    # writes docs/pictures/photographs.jpg

The photographs come with scikit-image, all of them in the public domain or CC0:
Chelsea the cat by Stefan van der Walt, a cup of coffee by Rachel Michetti, the launch
of a Falcon 9 by SpaceX, the astronaut Eileen Collins by NASA.
"""

from pathlib import Path

import numpy as np
import skimage.data
import skimage.transform

from keras_mixavg import MixAvg
from keras_mixavg.plotting import plot_pairs

PICTURE = Path(__file__).parents[1] / "pictures/photographs.jpg"
# Class, photograph, and its square as top, left and side.
CROPS = {
    "cat": ("chelsea", 10, 95, 260),
    "coffee": ("coffee", 20, 130, 360),
    "rocket": ("rocket", 20, 190, 300),
    "astronaut": ("astronaut", 0, 90, 260),
}
SIDE = 160


def photograph(name, top, left, side):
    square = getattr(skimage.data, name)()[top : top + side, left : left + side]
    small = skimage.transform.resize(square, (SIDE, SIDE), anti_aliasing=True)
    return np.round(255 * small).astype("uint8")


def main():
    images = np.stack([photograph(*crop) for crop in CROPS.values()])
    labels = np.arange(len(CROPS))
    mixed = MixAvg(0.75, len(CROPS), seed=2)(images, labels)
    PICTURE.parent.mkdir(exist_ok=True)
    plot_pairs(images, labels, *mixed, list(CROPS)).savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    main()
