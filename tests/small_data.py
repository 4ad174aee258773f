"""Data for the tests of the examples, in the format of the real data."""

import numpy as np


def write_cifar10(data_dir, train, test, hidden=()):
    """Write a small CIFAR-10 in the format of TFDS, and return its images.

    The labels of the images `hidden` are -1, as TFDS has it.
    """
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(32, 32, 3)),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
    )
    images = np.random.default_rng(0).integers(
        0, 256, (train + test, 32, 32, 3), "uint8"
    )
    version = tfds.builder("cifar10", data_dir=data_dir).version
    folder = data_dir / "cifar10" / str(version)
    splits = {"train": range(train), "test": range(train, train + test)}
    write_records(folder, features, images, splits, hidden)
    tfds.folder_dataset.write_metadata(
        data_dir=str(folder),
        features=features,
        split_infos=[
            tfds.core.SplitInfo(
                name=name, shard_lengths=[len(members)], num_bytes=0
            ).replace(filename_template=template(folder, name))
            for name, members in splits.items()
        ],
        supervised_keys=("image", "label"),
    )
    return images


def template(folder, split):
    import tensorflow_datasets as tfds

    return tfds.core.ShardedFileTemplate(
        dataset_name="cifar10",
        data_dir=folder,
        split=split,
        filetype_suffix="tfrecord",
    )


def write_records(folder, features, images, splits, hidden):
    import tensorflow as tf

    folder.mkdir(parents=True)
    for name, members in splits.items():
        path = folder / f"cifar10-{name}.tfrecord-00000-of-00001"
        with tf.io.TFRecordWriter(str(path)) as writer:
            for i in members:
                label = -1 if i in hidden else i % 10
                example = {"id": f"{i}", "image": images[i], "label": label}
                writer.write(features.serialize_example(example))


def crop_and_flip_of(image, cropped, padding=4):
    """The window of the padded image that it is, `(row, column, step)`, or None.

    `step` is -1 for a flip. Of several equal windows it is the first.
    """
    side = len(image)
    padded = np.pad(image, [(padding, padding)] * 2 + [(0, 0)], "reflect")
    for row in range(2 * padding + 1):
        for column in range(2 * padding + 1):
            window = padded[row : row + side, column : column + side]
            for step in (1, -1):
                if np.array_equal(window[:, ::step], cropped):
                    return row, column, step
    return None
