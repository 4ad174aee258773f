"""Read and check a folder of class folders of images, or write one from TFDS."""

import contextlib
import functools
import hashlib
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import keras
import numpy as np
import tensorflow as tf

READ = (".bmp", ".gif", ".jpeg", ".jpg", ".png")  # by image_dataset_from_directory
LISTED = 5  # files in a message
SIDES = 32, 224  # smallest and largest default image size
TFDS = "tfds:"  # prefix of NAME or NAME@SPLIT of TensorFlow Datasets
SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test"}
MADE_UP = {"images": 50, "classes": 5}  # of --smoke


@dataclass
class Survey:
    """What is in a folder."""

    counts: dict  # images of each class, by its name
    side: int  # median of the shorter sides, in pixels

    @property
    def images(self):
        return sum(self.counts.values())

    @property
    def image_size(self):
        """The default image size: the median side, within limits."""
        return int(np.clip(self.side, *SIDES))


def of_tfds(name, data_dir=None, made_up=False):
    """A split of a data set of TFDS, written once as a folder of class folders.

    Args:
        name: `NAME` or `NAME@SPLIT`; the split is "train" if none is given.
        data_dir: the data directory of TFDS.
        made_up: write a few images that TFDS makes up, without a download.
    """
    import tensorflow_datasets as tfds

    name, _, split = name.partition("@")
    split = split or "train"
    made_up_data = tfds.testing.mock_data(num_examples=MADE_UP["images"])
    with made_up_data if made_up else contextlib.nullcontext():
        try:
            builder = tfds.builder(name, data_dir=data_dir)
            image, label = _image_and_label(builder.info)
            builder.download_and_prepare()
            encoded = {image: tfds.decode.SkipDecoding()}
            dataset = builder.as_dataset(split=split, decoders=encoded)
        except ValueError as error:  # no such data set, or split
            said = str(error).splitlines()[0]
            raise SystemExit(f"{TFDS}{name}@{split}: {said}") from None
        about = builder.info.full_name.replace("/", "-")
        about = f"{about}@{split}-{'made-up-' * made_up}{len(dataset)}"
        folder = Path("runs/data") / as_file_name(about)
        if folder.exists():
            return folder
        print(f"Writing {len(dataset):,} images to {folder}", flush=True)
        names = builder.info.features[label].names
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        for i, example in enumerate(dataset.as_numpy_iterator()):
            number = i % MADE_UP["classes"] % len(names) if made_up else example[label]
            if number < 0:
                shutil.rmtree(unfinished, ignore_errors=True)
                raise SystemExit(
                    f"{TFDS}{name}@{split}: the labels of some images are hidden. "
                    "Choose another split."
                )
            of_class = unfinished / as_file_name(names[number])
            of_class.mkdir(parents=True, exist_ok=True)
            ending = "png" if example[image].startswith(b"\x89PNG") else "jpg"
            (of_class / f"{i:07}.{ending}").write_bytes(example[image])
    return unfinished.rename(folder)


def _image_and_label(info):
    """The names of these features. Raises ValueError if there are none."""
    import tensorflow_datasets as tfds

    features = info.features
    keys = info.supervised_keys or ()
    kinds = tfds.features.Image, tfds.features.ClassLabel
    if len(keys) != 2 or not all(
        isinstance(features[key], kind) for key, kind in zip(keys, kinds, strict=True)
    ):
        raise ValueError(
            f"a data set for image classification is needed, whose supervised keys are "
            f"an image and a class label, not {keys or 'none'}."
        )
    return keys


def as_file_name(text):
    """`text` with what no file name may have, `/` for example, as %2F.

    Nor may it begin with a dot, which hides a folder.
    """
    name = quote(text, safe=" !#$&'()+,;=@[]^{}~")
    return f"%2E{name[1:]}" if name.startswith(".") else name


def survey(folder):
    """Read every image once, so that no bad one stops the training hours later."""
    folders = class_folders(folder)
    broken, others, sides = [], Counter(), []
    paths = (p for f in folders for p in f.rglob("*"))
    for path in (p for p in paths if p.is_file() or not p.exists()):
        if path.is_file() and path.suffix.lower() not in READ:
            others[path.suffix.lower() or "no ending"] += 1
            continue
        try:  # a link to nothing fails too
            image = tf.io.decode_image(
                path.read_bytes(), channels=3, expand_animations=False
            )
            sides.append(min(image.shape[:2]))
        except (tf.errors.OpError, OSError):
            broken.append(path)
    if broken:
        listed = "\n    ".join(map(str, sorted(broken)[:LISTED]))
        raise SystemExit(
            f"Images that cannot be read: {len(broken)}, the first\n    {listed}\n"
            "Repair or remove them and start again; nothing has been trained."
        )
    if others:
        found = ", ".join(f"{count} {ending}" for ending, count in others.items())
        print(f"Skipped files that Keras cannot read as images: {found}.")
    return Survey({f.name: len(images_in(f)) for f in folders}, int(np.median(sides)))


def class_folders(folder):
    """The class folders. Exits with a message if something is wrong with them."""
    if not folder.is_dir():
        raise SystemExit(f"{folder} is not a folder.")
    folders = sorted(
        f for f in folder.iterdir() if f.is_dir() and not f.name.startswith(".")
    )
    names = [f.name for f in folders]
    if names and {name.lower() for name in names} <= SPLITS:
        raise SystemExit(
            f"{folder} must have a folder for each class. Found: {', '.join(names)}. "
            f"Pass one of them, {folder / names[0]}, and another with --validation."
        )
    if len(folders) < 2:
        raise SystemExit(
            f"{folder} must have a folder of images for each class, at least two. "
            f"Found: {names or 'no folder'}."
        )
    folded = Counter(name.casefold() for name in names)
    twice = [name for name in names if folded[name.casefold()] > 1]
    if twice:
        raise SystemExit(
            f"Class folders of {folder} differ only by case: {', '.join(twice)}. "
            "Rename one, or move its images to the other."
        )
    empty = [f.name for f in folders if not images_in(f)]
    if empty:
        raise SystemExit(
            f"Class folders of {folder} without an image ({', '.join(READ)}): "
            f"{', '.join(empty)}. Add images or remove the folders."
        )
    return folders


def images_in(folder):
    return sorted(
        f for f in folder.rglob("*") if f.suffix.lower() in READ and f.is_file()
    )


def fingerprint(folder):
    """Changes when an image comes or goes, or gets another name or size in bytes."""
    images = [path for each in class_folders(folder) for path in images_in(each)]
    names = "".join(f"{f.relative_to(folder)} {f.stat().st_size}\n" for f in images)
    return hashlib.sha256(names.encode()).hexdigest()


@functools.lru_cache(maxsize=2)  # DIR and --validation, read once for all runs
def read(folder, side):
    """All images of a folder, as uint8, and their class numbers."""
    dataset = keras.utils.image_dataset_from_directory(
        folder,
        class_names=[f.name for f in class_folders(folder)],
        image_size=(side, side),
        crop_to_aspect_ratio=True,
        batch_size=None,
        shuffle=False,
        verbose=False,
    )
    count = len(dataset)
    images, labels = np.empty((count, side, side, 3), "uint8"), np.empty(count, int)
    for i, (image, label) in enumerate(dataset.as_numpy_iterator()):
        images[i], labels[i] = image.round(), label
    return images, labels


def parts(labels, count, seed):
    """The part of the cross-validation that tests each image.

    The parts have the same number of images of each class, up to one.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    result = np.empty(len(labels), int)
    result[by_class] = np.arange(len(labels)) % count
    return result
