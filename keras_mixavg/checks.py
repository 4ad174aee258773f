"""Which arguments and which batches are refused, and the messages that say why."""

import math
import numbers
import operator
import reprlib
import warnings
from collections.abc import Callable
from typing import Any

import keras

from keras_mixavg._keras import has_values, in_tf_graph, replicated_by_tensorflow
from keras_mixavg.batch import (
    AS_IS,
    KEYS,
    as_numpy,
    dtype_of,
    holds_class_numbers,
    holds_one_number,
    is_float,
    map_heads,
    roles,
)

# Keys of Keras, and of torchvision and many datasets.
NOT_AVERAGED = ("bounding_boxes", "keypoints", "segmentation_masks", "boxes", "masks")
NOT_DENSE = ("RaggedTensor", "SparseTensor", "IndexedSlices", "BCOO", "BCSR")
EXACT_UP_TO = {"float16": 2048, "bfloat16": 256}  # whole numbers

# --- Arguments ------------------------------------------------------------------------


def checked_share(value: Any, name: str, meaning: str) -> float:
    """A float in [0, 1], from any kind of number."""
    if hasattr(value, "dtype") and tuple(value.shape) == ():  # as of Keras' schedules
        value = float(value)
    if not isinstance(value, numbers.Real) or not 0 <= float(value) <= 1:
        raise ValueError(
            f"`{name}` must be a float in [0, 1], {meaning}. Received: "
            f"{name}={brief(value)}"
        )
    return float(value)


def checked_count(value: Any, name: str, least: int, meaning: str) -> int:
    """An integer of at least `least`."""
    if (
        isinstance(value, bool)
        or not isinstance(value, numbers.Integral)
        or value < least
    ):
        raise ValueError(
            f"`{name}` must be an integer of at least {least}, {meaning}. Received: "
            f"{name}={brief(value)}"
        )
    return int(value)


def checked_rate(rate: Any, name: str = "rate") -> float:
    return checked_share(
        rate,
        name,
        "the probability that a sample is averaged (the number of classes is "
        "`num_classes`)",
    )


def checked_rate_of(rate: Callable[[int], float], epoch: int) -> float:
    """The rate that a function returns for an epoch."""
    try:
        value = rate(epoch)
    except Exception as error:
        raise ValueError(
            "`rate` must return a float in [0, 1] for any epoch. Received: "
            f"rate({epoch}), which raised {type(error).__name__}: {error}"
        ) from error
    return checked_rate(value, f"rate({epoch})")


def checked_classes(num_classes: Any) -> Any:
    """The numbers of classes in plain dicts, lists and ints."""
    if num_classes is None:
        return None
    if isinstance(num_classes, dict):
        return {key: checked_classes(number) for key, number in num_classes.items()}
    if isinstance(num_classes, (list, tuple)):
        return [checked_classes(number) for number in num_classes]
    return checked_count(
        num_classes,
        "num_classes",
        1,
        "or None for labels that are one-hot already (1 is for single numbers to be "
        "averaged as they are; several heads take a dict or a list of these)",
    )


def checked_seed(seed: Any) -> int | None:
    if seed is None:
        return None
    try:
        return operator.index(seed)
    except TypeError:
        raise ValueError(
            "`seed` must be an integer, or None for different pairs in every run. "
            f"Received: seed={brief(seed)}"
        ) from None


def refuse_epoch(epoch: Any, batch: Any) -> None:
    """Refuse an epoch for a single batch."""
    if epoch is not None:
        raise ValueError(
            "`epoch` is for a `tf.data.Dataset`: layer(dataset, epoch=...). "
            f"Received: {type(batch).__name__}. For batches that you make yourself "
            "pass `rng`, a generator seeded with the epoch and the batch: "
            "numpy.random.default_rng([seed, epoch, batch])."
        )


def refuse_rng(rng: Any) -> None:
    """Refuse a generator for a dataset, whose batches are many."""
    if rng is not None:
        raise ValueError(
            "`rng` is for a single batch: layer(images, labels, rng=...). Received: a "
            "tf.data.Dataset. For the same pairs in each run pass MixAvg(seed=...)."
        )


def refuse_multi_worker_strategy(model: Any = None) -> None:
    """Raise here, since Keras 3 would fail later and with an unrelated message."""
    if keras.backend.backend() != "tensorflow":
        return
    import tensorflow as tf

    made_under = model.distribute_strategy if replicated_by_tensorflow(model) else None
    strategy = made_under or tf.distribute.get_strategy()
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        raise RuntimeError(
            "Keras 3 does not train under tf.distribute.MultiWorkerMirroredStrategy. "
            "To train on several machines set KERAS_BACKEND=jax, and in each process "
            "call keras.distribution.initialize(...) and "
            "keras.distribution.set_distribution(keras.distribution.DataParallel()); "
            "see `Several machines` in docs/backends.md of the repository."
        )


def brief(value: Any) -> str:
    """`repr`, cut to a length that fits into a message."""
    text = reprlib.repr(value).replace("\n", " ")
    return text if len(text) <= 120 else f"{text[:100]}..."


# --- Batches --------------------------------------------------------------------------


def check(batch: Any, num_classes: Any) -> None:
    """Refuse a batch that cannot be averaged, and say what to do."""
    _check_entries(batch)
    leaves: list[tuple[str, Any]] = []
    for key, kind in roles(batch).items():
        name = f"`{key}`" if isinstance(key, str) else ("`x`", "`y`", "`w`")[key]
        _check_is_array(name, batch[key])
        for leaf in keras.tree.flatten(batch[key]):
            _check_leaf(name, leaf)
            if leaf.shape[0] is not None:
                leaves.append((name, leaf))
        if kind == "labels":
            _check_heads(name, batch[key], num_classes)
    for name, leaf in leaves:
        if leaf.shape[0] != leaves[0][1].shape[0]:
            raise ValueError(
                "The first axis is the batch and must have one size throughout. "
                f"Received: {leaves[0][0]} of shape {_shape(leaves[0][1])} and {name} "
                f"of shape {_shape(leaf)}. Batch the dataset before MixAvg."
            )


def check_rng(rng: Any, entries: Any) -> None:
    """Refuse a generator in a graph, which would draw from it only once."""
    leaves = keras.tree.flatten(entries)
    if rng is not None and (in_tf_graph() or not all(map(has_values, leaves))):
        raise ValueError(
            "`rng` draws once, when a graph is made, and every batch would have the "
            "same pairs. Leave it out inside a graph. For pairs that a seed fixes call "
            "the layer on the dataset: dataset.apply(layer)."
        )


def warn_of_token_ids(batch: Any) -> bool:
    """Warn if an input looks like token ids or categories. Returns whether it did."""
    for key, kind in roles(batch).items():
        for leaf in keras.tree.flatten(batch[key]) if kind == "images" else ():
            dtype = dtype_of(leaf)
            axes = 2 if "16" in dtype else 3  # images of 16 bits may have three
            if "int" in dtype and dtype != "uint8" and len(leaf.shape) <= axes:
                warnings.warn(
                    f"MixAvg averages inputs of dtype {dtype} and shape "
                    f"{_shape(leaf)}, which look like token ids or categories. The "
                    "midpoint of two of these means nothing: average embeddings "
                    "instead, or make categories one-hot columns. If they are "
                    "quantities, cast them to float32 before MixAvg.",
                    stacklevel=4,
                )
                return True
    return False


def _check_entries(batch: Any) -> None:
    if isinstance(batch, dict):
        keys = brief(sorted(map(str, batch)))
        refused = [key for key in NOT_AVERAGED if key in batch]
        if refused:
            raise ValueError(
                f"MixAvg averages images and labels, not {', '.join(refused)}. "
                f"Received a dict with the keys {keys}. Remove "
                "them before MixAvg, or use an augmentation made for them."
            )
        if not {"images", "labels"} <= {KEYS[key] for key in batch if key in KEYS}:
            raise ValueError(
                "A dict for MixAvg must have the keys `images` and `labels` (or "
                f"`targets`). Received the keys {keys}. Rename "
                "yours, or pass a tuple (x, y)."
            )
    elif not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
        is_sequence = isinstance(batch, (tuple, list))
        length = f" of length {len(batch)}" if is_sequence else ""
        raise ValueError(
            "MixAvg must be called on (x, y), (x, y, sample_weight) or a dict with "
            f"`images` and `labels`. Received: {type(batch).__name__}{length}. The "
            "labels are averaged with the images, so pass both."
        )


def _check_is_array(name: str, entry: Any) -> None:
    """Refuse a list of numbers as a whole, not its first number."""
    leaves = keras.tree.flatten(entry)
    wrong = [leaf for leaf in leaves if not _is_array(leaf)]
    if not wrong:
        return
    if isinstance(entry, (list, tuple, dict)):
        kind = f"a {type(entry).__name__} of {len(entry)}, with "
    else:
        kind = ""
    shape = getattr(wrong[0], "shape", None)
    of_shape = f" of shape {tuple(shape)}" if isinstance(shape, tuple) else ""
    value = f" ({brief(wrong[0])})" if not of_shape else ""
    raise TypeError(
        f"{name} must be a tensor or an array. Received: {kind}"
        f"{type(wrong[0]).__name__}{of_shape}{value}. Convert it with `numpy.asarray` "
        "first."
    )


def _is_array(leaf: Any) -> bool:
    return type(leaf).__name__ in NOT_DENSE or (
        hasattr(leaf, "shape") and hasattr(leaf, "dtype")
    )


def _check_leaf(name: str, leaf: Any) -> None:
    if type(leaf).__name__ in NOT_DENSE:
        raise TypeError(
            f"{name} must be a dense tensor. Received: a {type(leaf).__name__}. Make "
            "it dense first, e.g. with `.to_tensor()`, `tf.sparse.to_dense` or "
            "`padded_batch`."
        )
    dtype = dtype_of(leaf)
    if not (dtype == "bool" or "int" in dtype or is_float(dtype)):
        raise TypeError(
            f"{name} must be numbers. Received: dtype={dtype}. Encode them as numbers "
            "first, or put them under a key of a dict that MixAvg does not average."
        )
    if getattr(leaf.shape, "rank", 0) is None:
        raise ValueError(
            f"{name} must have a known number of axes. Received: a tensor of unknown "
            "rank. Call `set_shape` on it, or `tf.ensure_shape`, before MixAvg."
        )
    if len(leaf.shape) == 0:
        raise ValueError(
            f"{name} must have a leading batch axis. Received: {name} of shape (). "
            "MixAvg works on batches: call `dataset.batch(...)` before it."
        )


def _check_heads(name: str, labels: Any, num_classes: Any) -> None:
    """Check each head of the labels with its own number of classes."""
    _check_structure(name, labels, num_classes)
    one_for_all = not isinstance(num_classes, (dict, list, tuple))
    leaves = keras.tree.flatten(labels)
    numbers = [leaf for leaf in leaves if holds_one_number(leaf)]
    if one_for_all and num_classes is not None and len(leaves) > 1 and numbers:
        raise ValueError(
            f"{name} has {len(leaves)} heads, one of shape {_shape(numbers[0])} and "
            f"dtype {dtype_of(numbers[0])}. Received: num_classes={num_classes} for "
            "all of them. Pass `num_classes` for each head, in the structure of the "
            f'labels: {{"first": {num_classes}, "second": None}}, with None for '
            "labels to be averaged as they are, such as regression targets."
        )
    map_heads(lambda leaf, own: _check_labels(name, leaf, own), labels, num_classes)


def _check_structure(name: str, labels: Any, num_classes: Any) -> None:
    if isinstance(num_classes, dict):
        heads = sorted(map(str, labels)) if isinstance(labels, dict) else None
        if heads != sorted(map(str, num_classes)):
            what = f"the heads {brief(heads)}" if heads else _kind(labels)
            raise ValueError(
                f"{name} must be a dict with the keys of `num_classes`, "
                f"{brief(sorted(map(str, num_classes)))}. Received: {what}. Name every "
                "head in `num_classes`, with None for one to be averaged as it is."
            )
        for key in num_classes:
            _check_structure(f"{name[:-1]}[{key!r}]`", labels[key], num_classes[key])
    elif isinstance(num_classes, (list, tuple)):
        if not isinstance(labels, (list, tuple)) or len(labels) != len(num_classes):
            raise ValueError(
                f"{name} must be a tuple or list of {len(num_classes)} heads, as "
                f"`num_classes` is. Received: {_kind(labels)}. Give `num_classes` an "
                "entry for every head, None for one to be averaged as it is."
            )
        for i, own in enumerate(num_classes):
            _check_structure(f"{name[:-1]}[{i}]`", labels[i], own)


def _kind(labels: Any) -> str:
    if isinstance(labels, (dict, list, tuple)):
        return f"a {type(labels).__name__} of {len(labels)}"
    return f"a {type(labels).__name__} of shape {_shape(labels)}"


def _check_labels(name: str, y: Any, num_classes: Any) -> None:
    if num_classes is AS_IS:
        return
    if num_classes == 1 and holds_one_number(y):
        return
    if holds_class_numbers(y, num_classes):
        if num_classes is None:
            lone = is_float(dtype_of(y)) and len(y.shape) == 1
            raise ValueError(
                f"{name} must have shape (batch, num_classes). Received: one number "
                f"for each sample, shape {_shape(y)} and dtype={dtype_of(y)}. If they "
                "are class numbers, pass `num_classes` to MixAvg or one-hot encode "
                "them with `keras.utils.to_categorical`. If they are to be averaged as "
                "they are, such as the labels 0 and 1 of a sigmoid, pass "
                "`num_classes=1`; in a dict of several heads None for this one."
                + " Batch the dataset before MixAvg if it is one sample's label."
                * lone
            )
        dtype = dtype_of(y)
        if num_classes > EXACT_UP_TO.get(dtype, math.inf):
            raise ValueError(
                f"{name} of dtype {dtype} cannot tell {num_classes} classes apart. "
                "Pass integers, and do not cast them to that dtype before MixAvg."
            )
        _check_values(y, num_classes)
    elif len(y.shape) != 2:
        raise ValueError(
            f"{name} must have shape (batch, num_classes), or (batch,) or (batch, 1) "
            f"integers. Received: shape {_shape(y)}, dtype={dtype_of(y)}. Batch the "
            "dataset before MixAvg, and encode class numbers as integers or one-hot. "
            "Labels at each position, such as masks, are not averaged."
        )
    elif y.shape[1] is None:
        raise ValueError(
            f"{name} must have a known width, which tells rows from class numbers. "
            f"Received: shape {_shape(y)}, dtype={dtype_of(y)}. Before MixAvg, call "
            "`tf.ensure_shape(labels, (None, num_classes))`, or `(None, 1)` for class "
            "numbers."
        )
    elif num_classes is not None and y.shape[1] != num_classes:
        raise ValueError(
            f"{name} must have shape (batch, num_classes={num_classes}). Received: "
            f"shape {_shape(y)}. Set `num_classes` to {y.shape[1]} or encode them with "
            f"{num_classes} classes."
        )
    else:
        _check_values(y, None)


def _check_values(y: Any, num_classes: int | None) -> None:
    """Refuse values that are not labels: now, or in a graph when it runs."""
    if num_classes is None and "int" not in dtype_of(y):
        return
    if in_tf_graph() and not isinstance(y, keras.KerasTensor):
        _assert_values(y, num_classes)
    elif has_values(y) and not isinstance(y, keras.KerasTensor):
        values = as_numpy(y).astype("float64")
        good = (values >= 0) & (values < (num_classes or 2)) & (values % 1 == 0)
        if not good.all():
            raise ValueError(f"{_expected(num_classes)}{values[~good][:10].tolist()}")


def _assert_values(y: Any, num_classes: int | None) -> None:
    import tensorflow as tf

    y = tf.convert_to_tensor(y)
    number = tf.cast(y, "int64")
    good = (number >= 0) & (number < (num_classes or 2))
    if y.dtype.is_floating:
        good &= tf.cast(number, y.dtype) == y
    tf.debugging.Assert(tf.reduce_all(good), [_expected(num_classes), y], summarize=10)


def _expected(num_classes: int | None) -> str:
    if num_classes is None:
        return (
            "`labels` of shape (batch, num_classes) and an integer dtype must be 0 or "
            "1. One-hot encode class numbers at each position; cast soft labels and "
            "quantities to float32. Received: labels="
        )
    return (
        "`labels` must be whole numbers in [0, num_classes) = "
        f"[0, {num_classes}). Set `num_classes` to the largest label plus one, or "
        "correct the labels. Received: labels="
    )


def _shape(leaf: Any) -> tuple[int | None, ...]:
    return tuple(leaf.shape)
