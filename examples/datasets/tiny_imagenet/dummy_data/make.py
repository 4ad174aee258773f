"""Make tiny-imagenet-200.zip beside this file: two classes in the official layout.

    python make.py

Three training and two validation images a class, of random colours; one of each class
is grayscale, as some of the official ones are.
"""

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = {"n00000001": "crane, wading bird", "n00000002": "crane, machine"}


def jpeg(rng, grayscale):
    colour = rng.integers(0, 256, size=(4, 4) if grayscale else (4, 4, 3))
    image = Image.fromarray(colour.astype("uint8")).resize((64, 64))
    file = io.BytesIO()
    image.save(file, "JPEG")
    return file.getvalue()


def make(path, classes=CLASSES, train=3, validation=2):
    rng = np.random.default_rng(0)
    root = "tiny-imagenet-200"
    words = {**classes, "n00000009": "a class that has no images"}
    annotations = []
    with zipfile.ZipFile(path, "w") as archive:
        write = archive.writestr
        write(f"{root}/wnids.txt", "".join(f"{wnid}\n" for wnid in classes))
        lines = "".join(f"{wnid}\t{word}\n" for wnid, word in words.items())
        write(f"{root}/words.txt", lines)
        for wnid in classes:
            for i in range(train):
                name = f"{root}/train/{wnid}/images/{wnid}_{i}.JPEG"
                write(name, jpeg(rng, grayscale=i == 0))
            write(f"{root}/train/{wnid}/{wnid}_boxes.txt", "")
            for _ in range(validation):
                name = f"val_{len(annotations)}.JPEG"
                write(f"{root}/val/images/{name}", jpeg(rng, grayscale=False))
                annotations.append(f"{name}\t{wnid}\t0\t0\t62\t62\n")
        write(f"{root}/val/val_annotations.txt", "".join(annotations))


if __name__ == "__main__":
    make(Path(__file__).with_name("tiny-imagenet-200.zip"))
