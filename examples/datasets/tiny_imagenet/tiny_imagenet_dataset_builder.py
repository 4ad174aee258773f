"""The `tiny_imagenet` dataset of TensorFlow Datasets."""

import collections
import io
import zipfile
from pathlib import Path, PurePosixPath

import tensorflow_datasets as tfds

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
ROOT = "tiny-imagenet-200"


class Builder(tfds.core.GeneratorBasedBuilder):
    """64x64 images of 200 classes, or of those that an archive of the same layout has.

    Args:
        archive: optional path of `tiny-imagenet-200.zip` or of one with the same
            layout, read instead of the download.
        **kwargs: as for every TFDS builder, such as `data_dir`.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "From the archive of CS231n."}

    def __init__(self, archive=None, **kwargs):
        self.archive = None if archive is None else Path(archive)
        super().__init__(**kwargs)

    def _info(self):
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(
                        shape=(64, 64, 3), encoding_format="jpeg"
                    ),
                    "label": tfds.features.ClassLabel(),  # named by the archive
                    "file_name": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="http://cs231n.stanford.edu/",
        )

    def _split_generators(self, dl_manager):
        path = self.archive or Path(dl_manager.download(URL))
        archive = Archive(path)
        self.info.features["label"].names = archive.class_names
        return {
            "train": self._generate_examples(archive, archive.train),
            "validation": self._generate_examples(archive, archive.validation),
        }

    def _generate_examples(self, archive, images):
        for name, wnid in images.items():
            example = {
                "image": archive.open(name),
                "label": archive.wnids.index(wnid),
                "file_name": PurePosixPath(name).name,
            }
            yield name, example


class Archive:
    """The zip file, looked through before anything is used.

    `wnids` and `class_names` in one order; `train` and `validation` map the name of an
    image in the archive to the wnid of its class.
    """

    def __init__(self, path):
        self.path = path
        try:
            self.zip = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise self.refusal(f"{error}. Download it again from {URL}") from error
        names = self.zip.namelist()
        for name in names:
            parts = PurePosixPath(name.replace("\\", "/")).parts
            if ".." in parts or name.startswith(("/", "\\")) or ":" in parts[0]:
                raise self.refusal(f"its member {name!r} climbs out of the archive")
        self.wnids = self.text("wnids.txt").split()
        if not self.wnids or len(set(self.wnids)) < len(self.wnids):
            raise self.refusal("wnids.txt must have one class a line, each once")
        words = dict(
            line.split("\t", 1) for line in self.text("words.txt").splitlines() if line
        )
        missing = [wnid for wnid in self.wnids if wnid not in words]
        if missing:
            raise self.refusal(f"words.txt has no name for {missing[:3]}")
        self.class_names = _unique_names(self.wnids, words)
        self.train = {}
        for name in names:
            parts = PurePosixPath(name).parts
            if parts[:2] == (ROOT, "train") and name.lower().endswith(".jpeg"):
                self.train[name] = parts[2]
        self.validation = {}
        for line in self.text("val/val_annotations.txt").splitlines():
            image, wnid = line.split("\t")[:2]
            self.validation[f"{ROOT}/val/images/{image}"] = wnid
        unknown = {*self.train.values(), *self.validation.values()} - set(self.wnids)
        if unknown:
            raise self.refusal(f"wnids.txt lacks the classes {sorted(unknown)[:3]}")
        absent = self.validation.keys() - set(names)
        if absent or not self.train or not self.validation:
            raise self.refusal(
                f"it has {len(self.train)} training images, and lacks "
                f"{len(absent)} of {len(self.validation)} validation images"
            )

    def refusal(self, reason):
        return ValueError(
            f"{self.path} is no usable Tiny-ImageNet archive: {reason}. Expected the "
            f"layout of {URL}."
        )

    def open(self, name):
        """A file object of a member, read and checked against its CRC."""
        try:
            return io.BytesIO(self.zip.read(name))
        except (KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise self.refusal(f"{name}: {error}") from error

    def text(self, name):
        return self.open(f"{ROOT}/{name}").read().decode("utf-8")


def _unique_names(wnids, words):
    """The first word of each class, with its wnid where two have the same."""
    first = {wnid: words[wnid].split(",")[0].strip() for wnid in wnids}
    count = collections.Counter(first.values())
    return [
        first[wnid] if count[first[wnid]] == 1 else f"{first[wnid]} ({wnid})"
        for wnid in wnids
    ]
