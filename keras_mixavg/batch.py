"""What the entries of a batch are, their checks, and putting a batch together again.

A batch is `(x, y)`, `(x, y, sample_weight)` or a dict with `images` and `labels`.
"""

import copy
import reprlib
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
AS_IS = "as it is"  # instead of a number of classes: labels of any shape


def role(key: Any) -> str:
    """What an entry is, by its key or position: inputs, labels or weights."""
    return POSITIONS[key] if isinstance(key, int) else KEYS[key]


def roles(inputs: Any) -> dict[Any, str]:
    """The roles of the entries that are to be averaged."""
    if isinstance(inputs, dict):
        refused = [key for key in REFUSED_KEYS if key in inputs]
        if refused:
            raise ValueError(
                f"MixAvg averages images and labels, not {', '.join(refused)}. "
                f"Received a dict with the keys {_keys(inputs)}. Remove "
                "them before MixAvg, or use an augmentation made for them."
            )
        keys = [key for key in inputs if key in KEYS]
        if not {"inputs", "labels"} <= {KEYS[key] for key in keys}:
            raise ValueError(
                "A dict for MixAvg must have the keys `images` and `labels` (or "
                f"`targets`). Received the keys {_keys(inputs)}. Rename "
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
        return {key: batch[key] for key in roles(batch)}
    return tuple(batch[key] for key in roles(batch))


def map_entries(
    function: Callable[[Any, str, Any], Any], parts: Any, num_classes: Any
) -> Any:
    """`function(leaf, role, num_classes)` of every leaf of a tuple or dict of entries.

    Each leaf of the labels has its own number of classes, AS_IS where it is averaged
    as it is. For other entries it is None.
    """

    def mapped(key: Any, entry: Any) -> Any:
        kind = role(key)
        classes = num_classes if kind == "labels" else None
        return map_heads(lambda leaf, own: function(leaf, kind, own), entry, classes)

    if isinstance(parts, dict):
        return {key: mapped(key, entry) for key, entry in parts.items()}
    return tuple(mapped(key, entry) for key, entry in enumerate(parts))


def map_heads(function: Callable[[Any, Any], Any], entry: Any, num_classes: Any) -> Any:
    """`function(leaf, num_classes)` for a `num_classes` of the same structure."""
    if isinstance(num_classes, dict):
        own = {key: entry[key] for key in num_classes}
        return merged(
            entry,
            {
                key: map_heads(function, head, _of_a_head(num_classes[key]))
                for key, head in own.items()
            },
        )
    if isinstance(num_classes, (list, tuple)):
        heads = zip(entry, map(_of_a_head, num_classes), strict=True)
        return merged(entry, [map_heads(function, *head) for head in heads])
    return keras.tree.map_structure(lambda leaf: function(leaf, num_classes), entry)


def _of_a_head(num_classes: Any) -> Any:
    return AS_IS if num_classes is None else num_classes


def merged(batch: Any, averaged: Any) -> Any:
    """The batch with its averaged entries, in the structure that came."""
    if isinstance(averaged, dict):
        result = copy.copy(batch)
        result.update(averaged)
        return result
    make = getattr(type(batch), "_make", type(batch))  # named tuples have _make
    return make([*averaged, *batch[len(averaged) :]])


def holds_one_number(y: Any) -> bool:
    """One for each sample: `(batch,)` or `(batch, 1)`."""
    return len(y.shape) == 1 or (len(y.shape) == 2 and y.shape[1] == 1)


def holds_class_numbers(y: Any, num_classes: Any) -> bool:
    """One number each: integers, booleans, or floats, as Keras' layers cast them."""
    return num_classes not in (AS_IS, 1) and holds_one_number(y)


def dtype_of(leaf: Any) -> str:
    """Its name."""
    if isinstance(leaf.dtype, np.dtype):  # Keras knows no name for NumPy's strings
        return leaf.dtype.name
    try:
        return keras.backend.standardize_dtype(leaf.dtype)
    except ValueError:  # such as those of pandas
        return str(leaf.dtype)


def has_values(tensor: Any) -> bool:
    """Whether a tensor holds values, rather than standing for some in a trace."""
    if keras.backend.backend() == "jax":
        import jax

        return not isinstance(tensor, jax.core.Tracer)
    return getattr(getattr(tensor, "device", None), "type", None) != "meta"  # torch


def is_float(dtype: str) -> bool:
    return dtype in ("float16", "bfloat16", "float32", "float64")


def brief(value: Any) -> str:
    """`repr`, of a length that fits into a message."""
    text = reprlib.repr(value).replace("\n", " ")
    return text if len(text) <= 120 else f"{text[:100]}..."


def _keys(batch: dict) -> str:
    return brief(sorted(map(str, batch)))
