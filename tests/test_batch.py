"""The structure of a batch, which comes out as it went in; labels of several heads."""

import collections

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf
from small_batches import HEADS, LABELS, PARTNERS
from small_models import to_numpy

from keras_mixavg import MixAvg


def test_dicts_keep_their_other_keys_untouched():
    extra = {"id": np.arange(6, dtype="int16"), "name": np.array(list("abcdef"))}
    batch = {"images": LABELS, "labels": LABELS, "targets": 2 * LABELS, **extra}
    before = {key: value.copy() for key, value in batch.items()}
    mixed = MixAvg().apply(batch, PARTNERS)
    assert list(mixed) == list(batch)
    assert mixed["id"] is batch["id"] and mixed["name"] is batch["name"]
    expected = reference.averaged(LABELS, PARTNERS)
    for key, factor in (("images", 1), ("labels", 1), ("targets", 2)):
        np.testing.assert_array_equal(to_numpy(mixed[key]), factor * expected)
    for key, value in before.items():
        np.testing.assert_array_equal(batch[key], value)


Batch = collections.namedtuple("Batch", ["image", "label"])


@pytest.mark.parametrize(
    "make",
    [
        lambda x, y: (x, y),
        lambda x, y: [x, y],
        lambda x, y: Batch(x, y),
        lambda x, y: collections.OrderedDict(labels=y, images=x),
        lambda x, y: ({"left": x, "right": (x, x)}, {"first": y, "second": [y]}),
        lambda x, y: {"images": {"left": x, "right": x}, "labels": y},
        lambda x, y: (x, y, None),
    ],
)
def test_the_structure_comes_out_as_it_went_in(make):
    batch = make(LABELS, LABELS)
    mixed = MixAvg().apply(batch, PARTNERS)
    assert type(mixed) is type(batch)
    keras.tree.assert_same_structure(mixed, batch)
    expected = reference.averaged(LABELS, PARTNERS)
    for leaf in keras.tree.flatten(mixed):
        if leaf is not None:
            np.testing.assert_array_equal(to_numpy(leaf), expected)


def test_the_input_arrays_are_never_changed(rng):
    batch = (rng.normal(size=(6, 3)).astype("float32"), LABELS.copy(), np.ones(6))
    before = [array.copy() for array in batch]
    MixAvg(rate=1.0)(batch)
    for array, copy in zip(batch, before, strict=True):
        np.testing.assert_array_equal(array, copy)


# --- Several heads --------------------------------------------------------------------

CLASSES = {"root": 4, "vowel": 2, "age": None}


def assert_heads(mixed):
    for head, classes in CLASSES.items():
        y = HEADS[head] if classes is None else reference.one_hot(HEADS[head], classes)
        np.testing.assert_array_equal(mixed[head], reference.averaged(y, PARTNERS))
        assert mixed[head].dtype == "float32"


def test_each_head_has_its_own_number_of_classes():
    layer = MixAvg(num_classes=CLASSES)
    _, mixed = layer.apply((LABELS, HEADS), PARTNERS)
    assert_heads(mixed)
    mixed = layer.apply({"images": LABELS, "labels": HEADS}, PARTNERS)
    assert_heads(mixed["labels"])


def test_heads_may_be_a_list_or_nested():
    layer = MixAvg(num_classes=[4, {"vowel": 2, "age": None}])
    nested = {key: HEADS[key] for key in ("vowel", "age")}
    for labels in ([HEADS["root"], nested], (HEADS["root"], nested)):
        _, (root, rest) = layer.apply((LABELS, labels), PARTNERS)
        assert_heads({"root": root, **rest})


@pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 3), (6, 2, 2)])
@pytest.mark.parametrize("dtype", ["int64", "float32"])
def test_a_head_of_none_is_averaged_as_it_is(rng, shape, dtype):
    y = rng.integers(0, 9, size=shape).astype(dtype)
    _, mixed = MixAvg(num_classes={"a": None}).apply((LABELS, {"a": y}), PARTNERS)
    np.testing.assert_array_equal(mixed["a"], reference.averaged(y, PARTNERS))


def test_heads_in_a_dataset_and_its_map():
    data = tf.data.Dataset.from_tensors((LABELS, HEADS))
    layer = MixAvg(rate=0.0, num_classes=CLASSES)
    for mapped in (data.map(layer), data.apply(layer)):
        ((_, mixed),) = mapped.as_numpy_iterator()
        for head, classes in CLASSES.items():
            own = HEADS[head]
            own = own if classes is None else reference.one_hot(own, classes)
            np.testing.assert_array_equal(mixed[head], own)


def test_one_hot_heads_need_no_numbers_of_classes():
    heads = {"first": LABELS, "second": LABELS}
    _, mixed = MixAvg(num_classes=4).apply((LABELS, heads), PARTNERS)
    for head in mixed.values():
        np.testing.assert_array_equal(head, reference.averaged(LABELS, PARTNERS))
