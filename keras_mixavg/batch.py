"""What the entries of a batch are, their checks, and putting a batch together again.

A batch is `(x, y)`, `(x, y, sample_weight)` or a dict with `images` and `labels`.
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

# What the entries of a tuple and of a dict are; any other key passes untouched.
POSITIONS = ("inputs", "labels", "weights")
KEYS = {
    "images": "inputs",
    "labels": "labels",
    "targets": "labels",
    "sample_weights": "weights",
    "sample_weight": "weights",
}
REFUSED_KEYS = ("bounding_boxes", "keypoints", "segmentation_masks")
EXACT_UP_TO = {"float16": 2048, "bfloat16": 256}  # whole numbers
NOT_DENSE = ("RaggedTensor", "SparseTensor", "IndexedSlices", "BCOO", "BCSR")


def role(key: Any) -> str:
    """What an entry is, by its key or position: inputs, labels or weights."""
    return POSITIONS[key] if isinstance(key, int) else KEYS[key]


def _roles(inputs: Any) -> dict[Any, str]:
    """The roles of the entries that are to be averaged."""
    if isinstance(inputs, dict):
        refused = [key for key in REFUSED_KEYS if key in inputs]
        if refused:
            raise ValueError(
                f"MixAvg averages images and labels, not {', '.join(refused)}. "
                f"Received a dict with the keys {sorted(map(str, inputs))}. Remove "
                "them before MixAvg, or use an augmentation made for them."
            )
        keys = [key for key in inputs if key in KEYS]
        if not {"inputs", "labels"} <= {KEYS[key] for key in keys}:
            raise ValueError(
                "A dict for MixAvg must have the keys `images` and `labels` (or "
                f"`targets`). Received the keys {sorted(map(str, inputs))}. Rename "
                "yours, or pass a tuple (x, y)."
            )
    elif isinstance(inputs, (tuple, list)) and len(inputs) in (2, 3):
        keys = list(range(len(inputs)))
    else:
        length = (
            f" of length {len(inputs)}" if isinstance(inputs, (tuple, list)) else ""
        )
        raise ValueError(
            "MixAvg must be called on (x, y), (x, y, sample_weight) or a dict with "
            f"`images` and `labels`. Received: {type(inputs).__name__}{length}. The "
            "labels are averaged with the images, so pass both."
        )
    return {
        key: role(key)
        for key in keys
        if role(key) != "weights" or inputs[key] is not None
    }


def entries(batch: Any) -> Any:
    """The entries of a batch that are to be averaged, as a tuple or a dict of them."""
    if isinstance(batch, dict):
        return {key: batch[key] for key in _roles(batch)}
    return tuple(batch[key] for key in _roles(batch))


def map_entries(function: Callable[[str, Any], Any], parts: Any) -> Any:
    """`function(role, leaf)` of every leaf of a tuple or dict of entries."""

    def mapped(key: Any, entry: Any) -> Any:
        return keras.tree.map_structure(lambda leaf: function(role(key), leaf), entry)

    if isinstance(parts, dict):
        return {key: mapped(key, entry) for key, entry in parts.items()}
    return tuple(mapped(key, entry) for key, entry in enumerate(parts))


def merged(batch: Any, averaged: Any) -> Any:
    """The batch with its averaged entries, in the structure that came."""
    if isinstance(batch, dict):
        result = copy.copy(batch)
        result.update(averaged)
        return result
    make = getattr(type(batch), "_make", type(batch))  # named tuples have _make
    return make([*averaged, *batch[len(averaged) :]])


def check(inputs: Any, num_classes: int | None) -> None:
    """Refuse what cannot be averaged, and say what to do."""
    leaves: list[tuple[str, Any]] = []
    for key, kind in _roles(inputs).items():
        name = f"`{key}`" if isinstance(key, str) else ("`x`", "`y`", "`w`")[key]
        for leaf in keras.tree.flatten(inputs[key]):
            _check_leaf(name, leaf)
            if kind == "labels":
                _check_labels(name, leaf, num_classes)
            if leaf.shape[0] is not None:
                leaves.append((name, leaf))
    for name, leaf in leaves:
        if leaf.shape[0] != leaves[0][1].shape[0]:
            raise ValueError(
                "The first axis is the batch and must have one size throughout. "
                f"Received: {leaves[0][0]} of shape {_shape(leaves[0][1])} and {name} "
                f"of shape {_shape(leaf)}. Batch the dataset before MixAvg."
            )


def _check_leaf(name: str, leaf: Any) -> None:
    if type(leaf).__name__ in NOT_DENSE:
        raise TypeError(
            f"{name} must be a dense tensor. Received: a {type(leaf).__name__}. Make "
            "it dense first, e.g. with `.to_tensor()`, `tf.sparse.to_dense` or "
            "`padded_batch`."
        )
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        raise TypeError(
            f"{name} must be a tensor or an array. Received: {leaf!r} of type "
            f"{type(leaf).__name__}. Convert it with `numpy.asarray` first."
        )
    dtype = dtype_of(leaf)
    if not (dtype == "bool" or "int" in dtype or is_float(dtype)):
        raise TypeError(
            f"{name} must be numbers. Received: dtype={dtype}. Encode them as numbers "
            "first; in a dict, put what is not to be averaged under another key."
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


def _check_labels(name: str, y: Any, num_classes: int | None) -> None:
    if holds_class_numbers(y, num_classes):
        if num_classes is None:
            raise ValueError(
                f"{name} must have shape (batch, num_classes). Received: class "
                f"numbers of shape {_shape(y)}. Pass `num_classes` to MixAvg, or "
                "one-hot encode them with `keras.utils.to_categorical`."
            )
        dtype = dtype_of(y)
        if num_classes > EXACT_UP_TO.get(dtype, math.inf):
            raise ValueError(
                f"{name} of dtype {dtype} cannot tell {num_classes} classes apart. "
                "Pass integers, or cast nothing to that dtype before MixAvg."
            )
    elif len(y.shape) != 2:
        raise ValueError(
            f"{name} must have shape (batch, num_classes), or (batch,) or (batch, 1) "
            f"integers. Received: shape {_shape(y)}, dtype={dtype_of(y)}. Batch the "
            "dataset before MixAvg, and encode class numbers as integers or one-hot. "
            "Labels at each position, such as masks, are not averaged."
        )
    elif num_classes is not None and y.shape[1] not in (None, num_classes):
        raise ValueError(
            f"{name} must have shape (batch, num_classes={num_classes}). Received: "
            f"shape {_shape(y)}. Set `num_classes` to {y.shape[1]} or encode them with "
            f"{num_classes} classes."
        )


def holds_class_numbers(y: Any, num_classes: int | None) -> bool:
    """Integers do; with `num_classes` floats too, as Keras' layers cast them."""
    one_each = len(y.shape) == 1 or (len(y.shape) == 2 and y.shape[1] == 1)
    as_number = "int" in dtype_of(y) or (
        num_classes is not None and is_float(dtype_of(y))
    )
    return one_each and as_number


def _shape(leaf: Any) -> tuple[int | None, ...]:
    return tuple(leaf.shape)


def dtype_of(leaf: Any) -> str:
    """Its name."""
    if isinstance(leaf.dtype, np.dtype):  # Keras knows no name for NumPy's strings
        return leaf.dtype.name
    return keras.backend.standardize_dtype(leaf.dtype)


def is_float(dtype: str) -> bool:
    return dtype in ("float16", "bfloat16", "float32", "float64")
