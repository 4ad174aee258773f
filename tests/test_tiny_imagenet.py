"""The Tiny-ImageNet dataset: conventions of TFDS, and broken archives."""

import sys
import zipfile
from pathlib import Path

import numpy as np
import processes
import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
SUBSET = ROOT.parent / "shared" / "data" / "tiny-imagenet-200-subset.zip"

pytest.importorskip("tensorflow_datasets")

from datasets.tiny_imagenet.dummy_data.make import make  # noqa: E402
from datasets.tiny_imagenet.tiny_imagenet_dataset_builder import (  # noqa: E402
    Archive,
    Builder,
)

# Of TFDS and protobuf.
pytestmark = [
    pytest.mark.once,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def run_pytest(test):
    sys.exit(pytest.main(["-p", "no:cacheprovider", "--rootdir", EXAMPLES, str(test)]))


@pytest.mark.new_process
def test_the_tfds_conventions_are_kept(tmp_path):
    """TFDS' own test case on the dummy data, in a new process."""
    test = EXAMPLES / "datasets/tiny_imagenet/tiny_imagenet_dataset_builder_test.py"
    assert " passed" in processes.run(run_pytest, test, folder=tmp_path)


def load(archive, data_dir):
    import tensorflow_datasets as tfds

    builder = Builder(archive=archive, data_dir=data_dir)
    builder.download_and_prepare()
    (train, test) = builder.as_dataset(
        split=["train", "validation"], batch_size=-1, as_supervised=True
    )
    return tfds.as_numpy(train), tfds.as_numpy(test), builder.info.features["label"]


def test_the_dataset_has_the_archives_classes_and_images(tmp_path):
    path = tmp_path / "made.zip"
    words = {"n3": "crane, bird", "n1": "crane, machine", "n2": "goldfish, a fish"}
    make(path, words, train=4, validation=2)
    train, test, label = load(path, tmp_path / "tfds")
    assert label.names == ["crane (n3)", "crane (n1)", "goldfish"]
    assert train[0].shape == (12, 64, 64, 3) and train[0].dtype == "uint8"
    assert np.bincount(train[1]).tolist() == [4, 4, 4]
    assert np.bincount(test[1]).tolist() == [2, 2, 2]
    grayscale = (np.ptp(train[0].astype(int), axis=-1) == 0).all(axis=(1, 2))
    assert np.bincount(train[1][grayscale]).tolist() == [1, 1, 1]


def test_the_subset_at_hand(tmp_path):
    if not SUBSET.exists():
        pytest.skip("no Tiny-ImageNet at hand")
    train, test, label = load(SUBSET, tmp_path)
    assert train[0].shape == (4000, 64, 64, 3) and test[0].shape == (1000, 64, 64, 3)
    assert np.bincount(train[1]).tolist() == [200] * 20
    assert np.bincount(test[1]).tolist() == [50] * 20
    assert "goldfish" in label.names and len(label.names) == 20


def changed(path, target, name=None, text=None, extra=None):
    """Copy an archive, with the member `name` removed or replaced, and `extra`."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for member in old.namelist():
            if name is None or not member.endswith(name):
                new.writestr(member, old.read(member))
            elif text is not None:
                new.writestr(member, text)
        if extra:
            new.writestr(extra, "evil")
    return target


BAD_ARCHIVES = {
    "climbs up": ({"extra": "../evil.txt"}, "'../evil.txt' climbs out"),
    "climbs up inside": (
        {"extra": "tiny-imagenet-200/train/../../../evil"},
        "climbs out of the archive",
    ),
    "is absolute": ({"extra": "/etc/evil"}, "'/etc/evil' climbs out"),
    "has no wnids": ({"name": "wnids.txt"}, "no item named.*wnids.txt"),
    "has a class twice": (
        {"name": "wnids.txt", "text": "n00000001\nn00000001\n"},
        "each once",
    ),
    "lacks a class": (
        {"name": "wnids.txt", "text": "n00000001\n"},
        "lacks the classes",
    ),
    "lacks a name": ({"name": "words.txt", "text": "n00000001\tone\n"}, "no name for"),
    "lacks an image": ({"name": "val_2.JPEG"}, "lacks 1 of 4 validation images"),
    "has no training": ({"name": ".JPEG", "text": None}, "it has 0 training images"),
}


@pytest.mark.parametrize("case", BAD_ARCHIVES)
def test_bad_archives_are_refused_by_name(case, tmp_path):
    change, message = BAD_ARCHIVES[case]
    make(tmp_path / "good.zip")
    bad = changed(tmp_path / "good.zip", tmp_path / "bad.zip", **change)
    with pytest.raises(ValueError, match=f"bad.zip is no usable.*{message}"):
        Archive(bad)


def test_truncated_corrupt_and_missing_archives_are_refused_by_name(tmp_path):
    path = tmp_path / "a.zip"
    make(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="a.zip is no usable.*not a zip file"):
        Archive(path)
    at = whole.index(b"n00000001_1.JPEG") + 300
    path.write_bytes(whole[:at] + b"\0" * 20 + whole[at + 20 :])
    archive = Archive(path)
    with pytest.raises(ValueError, match="a.zip is no usable.*n00000001_1.JPEG"):
        for name in archive.train:
            archive.open(name)
    with pytest.raises(ValueError, match="b.zip is no usable.*No such file"):
        Archive(tmp_path / "b.zip")
