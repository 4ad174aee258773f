"""What MixAvg refuses, and what it warns of."""

import numpy as np
import pytest
import tensorflow as tf
from small_batches import HEADS, IMAGES, LABELS, NUMBERS

from keras_mixavg import MixAvg

# --- Token ids and categories ---------------------------------------------------------


@pytest.mark.parametrize(
    "dtype, shape, nested",
    [
        ("int8", (6,), False),
        ("int16", (6, 1), True),
        ("int32", (6, 9), False),
        ("int64", (6, 3, 9), True),
        ("uint16", (6, 9), True),
    ],
)
def test_inputs_like_token_ids_bring_one_warning(dtype, shape, nested):
    ids = np.ones(shape, dtype)
    x = {"ids": ids, "image": IMAGES} if nested else ids
    layer = MixAvg()
    with pytest.warns(UserWarning, match="token ids.*average embeddings.*one-hot col"):
        layer(x, LABELS)
    layer(x, LABELS)  # an error here, where every warning is one
    with pytest.warns(UserWarning, match="cast them to float32"):
        tf.data.Dataset.from_tensors((x, LABELS)).apply(MixAvg())


@pytest.mark.parametrize(
    "dtype", ["uint8", "bool", "float32", "int32", "int16", "uint16"]
)
def test_images_and_quantities_bring_no_warning(dtype):
    MixAvg()(np.ones((6, 4, 4, 3), dtype), LABELS)
    if "16" in dtype:
        MixAvg()(np.ones((6, 4, 4), dtype), LABELS)
    elif dtype != "int32":
        MixAvg()(np.ones((6, 9), dtype), LABELS)


# --- Bad input -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"rate": -0.1}, r"`rate` must be a float in \[0, 1\].*rate=-0.1"),
        ({"rate": 1.5}, r"`rate` must be a float in \[0, 1\].*rate=1.5"),
        ({"rate": 10}, r"number of classes is `num_classes`.*rate=10"),
        ({"rate": float("nan")}, "`rate` must be.*rate=nan"),
        ({"rate": "half"}, "`rate` must be.*rate='half'"),
        ({"num_classes": 0}, "`num_classes` must be an integer.*num_classes=0"),
        ({"num_classes": 2.5}, "`num_classes` must be an integer.*num_classes=2.5"),
        ({"num_classes": True}, "`num_classes` must be an integer.*num_classes=True"),
        ({"num_classes": {"a": 0}}, "`num_classes` must be an integer.*num_classes=0"),
        ({"num_classes": [3, "b"]}, "`num_classes` must be an integer.*classes='b'"),
        ({"seed": 0.5}, r"`seed` must be an integer, or None.*seed=0.5"),
        ({"seed": "one"}, "`seed` must be an integer, or None.*seed='one'"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MixAvg(**arguments)


BAD_BATCHES = {
    "integers without num_classes": (
        (IMAGES, NUMBERS),
        {},
        r"for each sample, shape \(6,\) .* pass `num_classes` to MixAvg",
    ),
    "a column without num_classes": (
        (IMAGES, NUMBERS[:, None]),
        {},
        r"for each sample, shape \(6, 1\) .* pass `num_classes` to MixAvg",
    ),
    "labels of rank three": (
        (IMAGES, LABELS[:, None]),
        {"num_classes": 4},
        r"must have shape \(batch, num_classes\).*Received: shape \(6, 1, 4\)",
    ),
    "floats without num_classes": (
        (IMAGES, NUMBERS.astype("float32")),
        {},
        r"shape \(6,\) and dtype=float32.* pass `num_classes` to MixAvg",
    ),
    "floats too short to count the classes": (
        (IMAGES, NUMBERS.astype("float16")),
        {"num_classes": 4096},
        "`y` of dtype float16 cannot tell 4096 classes apart. Pass integers",
    ),
    "labels of another width": (
        (IMAGES, LABELS),
        {"num_classes": 7},
        r"num_classes=7\). Received: shape \(6, 4\). Set `num_classes` to 4",
    ),
    "batch axes that differ": (
        (IMAGES, LABELS[:5]),
        {},
        r"one size throughout. Received: `x` of shape \(6, 4, 4, 3\) and `y` of shape "
        r"\(5, 4\)",
    ),
    "weights of another batch": (
        (IMAGES, LABELS, np.ones(3)),
        {},
        r"`x` of shape \(6, 4, 4, 3\) and `w` of shape \(3,\)",
    ),
    "one image, number label": (
        (IMAGES[0], np.int64(3)),
        {"num_classes": 4},
        r"`y` must have a leading batch axis.*call `dataset.batch\(...\)`",
    ),
    "one image, one-hot label": (
        (IMAGES[0], LABELS[0]),
        {},
        r"`y` must have shape \(batch, num_classes\).*Batch the dataset before",
    ),
    "labels at each position": (
        (IMAGES, np.zeros((6, 4, 4, 3))),
        {},
        r"Received: shape \(6, 4, 4, 3\).*at each position, such as masks, are not",
    ),
    "one image in a dict": (
        {"images": IMAGES[0], "labels": NUMBERS},
        {"num_classes": 4},
        r"`images` of shape \(4, 4, 3\) and `labels` of shape \(6,\). Batch the",
    ),
    "no images": ({"labels": LABELS}, {}, r"keys `images` and `labels`.*\['labels'\]"),
    "no labels": ({"images": IMAGES}, {}, r"keys `images` and `labels`.*\['images'\]"),
    "boxes": (
        {"images": IMAGES, "labels": LABELS, "bounding_boxes": np.zeros((6, 2, 4))},
        {},
        "averages images and labels, not bounding_boxes",
    ),
    "masks": (
        {"images": IMAGES, "labels": LABELS, "segmentation_masks": IMAGES},
        {},
        "averages images and labels, not segmentation_masks",
    ),
    "boxes and masks of torchvision": (
        {"images": IMAGES, "labels": LABELS, "boxes": IMAGES, "masks": IMAGES},
        {},
        "averages images and labels, not boxes, masks",
    ),
    "images alone": ((IMAGES,), {}, "Received: tuple of length 1. The labels"),
    "four elements": ((IMAGES,) * 4, {}, "Received: tuple of length 4"),
}


@pytest.mark.parametrize("case", BAD_BATCHES)
@pytest.mark.parametrize("way", ["called", "mapped"])
def test_bad_batches_are_refused_with_what_to_do(case, way):
    batch, arguments, message = BAD_BATCHES[case]
    layer = MixAvg(**arguments)
    with pytest.raises(ValueError, match=message):
        if way == "called":
            layer(batch)
        else:
            one = tf.data.Dataset.from_tensors(batch)
            one.map(lambda *b: layer(b if isinstance(batch, tuple) else b[0]))


def test_a_bare_tensor_is_refused():
    with pytest.raises(ValueError, match="must be called on.*so pass both"):
        MixAvg()(IMAGES)
    with pytest.raises(
        ValueError, match="must be called on .*Received: tuple of length 0"
    ):
        MixAvg()()


@pytest.mark.parametrize(
    "wrong, shape", [(-1, (6,)), (4, (6, 1)), (300, (6,)), (0.5, (6, 1))]
)
def test_labels_outside_the_classes_are_refused(wrong, shape):
    y = np.array([0, 1, wrong, 3, 0, 1]).reshape(shape)
    message = r"whole numbers in \[0, num_classes\) = \[0, 4\).*largest label plus"
    with pytest.raises(ValueError, match=rf"{message}.*labels=\[{wrong}.*\]"):
        MixAvg(num_classes=4)(IMAGES, y)
    # In a compiled map the values are known at run time only.
    dataset = tf.data.Dataset.from_tensors((IMAGES, y)).map(MixAvg(num_classes=4))
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        list(dataset)


@pytest.mark.parametrize(
    "batch, message",
    [
        (
            lambda: (tf.ragged.constant([[1.0], [2.0, 3.0]]), np.eye(2)),
            "`x` must be a dense tensor. Received: a RaggedTensor",
        ),
        (
            lambda: (np.eye(2), tf.sparse.from_dense(np.eye(2))),
            "`y` must be a dense tensor. Received: a SparseTensor",
        ),
        (
            lambda: (tf.constant([["a"], ["b"]]), np.eye(2)),
            "`x` must be numbers. Received: dtype=string",
        ),
        (
            lambda: (np.array([["a"], ["b"]]), np.eye(2)),
            "`x` must be numbers. Received: dtype=str",
        ),
        (
            lambda: {"images": np.eye(2), "labels": tf.constant(["a", "b"])},
            "`labels` must be numbers. Received: dtype=string",
        ),
    ],
)
def test_strings_ragged_and_sparse_tensors_are_refused(batch, message):
    with pytest.raises(TypeError, match=message):
        MixAvg()(batch())
    with pytest.raises(TypeError, match=message):
        tf.data.Dataset.from_tensors(batch()).map(MixAvg())


class Frame:
    """Like a DataFrame: a shape, no dtype, and a long `repr`."""

    shape = (6, 2)

    def __repr__(self):
        return "\n".join(["1.0   2.0"] * 1000)


LONG = list(range(100_000))


@pytest.mark.parametrize(
    "batch, message",
    [
        ((IMAGES, LONG), r"`y` must be .*a list of 100000, with int \(0\)"),
        ((LONG, NUMBERS), r"`x` must be .*a list of 100000, with int \(0\)"),
        (
            (Frame(), NUMBERS),
            r"`x` must be .*Received: Frame of shape \(6, 2\)\. Convert",
        ),
        (
            (IMAGES, Frame()),
            r"`y` must be .*Received: Frame of shape \(6, 2\)\. Convert",
        ),
        ((IMAGES, NUMBERS, LONG), "`w` must be .*a list of 100000"),
        (({"a": Frame(), "b": IMAGES}, NUMBERS), "`x` .*a dict of 2, with Frame"),
        ({"images": "x" * 9999, "labels": NUMBERS}, "`images` must be .*str"),
        (LONG, "Received: list of length 100000"),
        ({f"column {i}": IMAGES for i in range(9999)}, "keys `images` and `labels`"),
        (Frame(), "must be called on.*Received: Frame"),
    ],
)
def test_what_is_no_array_is_refused_in_few_words(batch, message):
    with pytest.raises((TypeError, ValueError), match=message) as error:
        MixAvg(num_classes=4)(batch)
    assert len(str(error.value)) < 400


def test_class_numbers_out_of_range_do_not_print_the_batch():
    with pytest.raises(ValueError, match="whole numbers in") as error:
        MixAvg(num_classes=4)(np.zeros((999, 5)), np.arange(999))
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("arguments", [{"rate": LONG}, {"num_classes": "x" * 9999}])
def test_messages_about_arguments_are_short(arguments):
    with pytest.raises(ValueError, match="must be") as error:
        MixAvg(**arguments)
    assert len(str(error.value)) < 400


def test_unknown_ranks_are_refused():
    dataset = tf.data.Dataset.from_tensors((IMAGES, LABELS)).map(
        lambda x, y: (tf.numpy_function(lambda x: x, [x], "float32"), y)
    )
    with pytest.raises(ValueError, match="`x` must have a known number of axes"):
        dataset.map(MixAvg())


@pytest.mark.parametrize(
    "labels, num_classes, message",
    [
        (HEADS, 70, r"`y` has 3 heads.*num_classes=70 for all.*\{\"first\": 70"),
        (HEADS, {"root": 4}, r"keys of `num_classes`, \['root'\].*heads \['age', 'ro"),
        (
            NUMBERS,
            {"root": 4},
            r"must be a dict with the keys.*ndarray of shape \(6,\)",
        ),
        (HEADS, [4, 2, None], "must be a tuple or list of 3 heads.*a dict of 3"),
        ([NUMBERS], [4, 2], "must be a tuple or list of 2 heads.*a list of 1"),
        ({"a": {"b": NUMBERS}}, {"a": {"c": 4}}, r"`y\['a'\]` must be a dict"),
        (HEADS, None, "one number for each sample.*in a dict of several heads None"),
    ],
)
def test_heads_that_do_not_fit_are_refused(labels, num_classes, message):
    with pytest.raises(ValueError, match=message):
        MixAvg(num_classes=num_classes)(IMAGES, labels)
