"""Run by tests/test_tiny_imagenet.py; also `python -m pytest` on this file alone."""

import tensorflow_datasets as tfds

from . import tiny_imagenet_dataset_builder as builder


class TinyImagenetTest(tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = builder.Builder
    SPLITS = {"train": 6, "validation": 4}
    DL_DOWNLOAD_RESULT = "tiny-imagenet-200.zip"


if __name__ == "__main__":
    tfds.testing.test_main()
