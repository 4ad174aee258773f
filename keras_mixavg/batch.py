"""What a batch is made of: its entries, their roles, and the leaves of each.

A batch is `(x, y)`, `(x, y, sample_weight)` or a dict with `images` and `labels`.
"""

import copy
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

# The roles of the entries of a tuple and of a dict; any other key passes untouched.
# The images may be any inputs: sequences and features too.
POSITIONS = ("images", "labels", "weights")
KEYS = {
    "images": "images",
    "labels": "labels",
    "targets": "labels",
    "sample_weights": "weights",
    "sample_weight": "weights",
}
AS_IS = "as it is"  # instead of a number of classes: labels of any shape


def role(key: Any) -> str:
    """Images, labels or weights, by the key or the position of an entry."""
    return POSITIONS[key] if isinstance(key, int) else KEYS[key]


def roles(batch: Any) -> dict[Any, str]:
    """The role of each entry that is to be averaged, by its key or position."""
    if isinstance(batch, dict):
        keys = [key for key in batch if key in KEYS]
    else:
        keys = list(range(len(batch)))
    return {
        key: role(key)
        for key in keys
        if role(key) != "weights" or batch[key] is not None
    }


def entries(batch: Any) -> Any:
    """The entries of a batch that are to be averaged, as a tuple or a dict of them."""
    if isinstance(batch, dict):
        return {key: batch[key] for key in roles(batch)}
    return tuple(batch[key] for key in roles(batch))


def size(entries: Any, ops: Any) -> Any:
    """The number of samples: an int, or a scalar tensor if it is not known."""
    leaves = keras.tree.flatten(entries)
    known = [leaf.shape[0] for leaf in leaves if leaf.shape[0] is not None]
    return known[0] if known else ops.shape(leaves[0])[0]


def map_entries(
    function: Callable[[Any, str, Any], Any], entries: Any, num_classes: Any
) -> Any:
    """`function(leaf, role, num_classes)` of every leaf of a tuple or dict of entries.

    Each leaf of the labels has its own number of classes, AS_IS where it is averaged
    as it is. For other entries it is None.
    """

    def mapped(key: Any, entry: Any) -> Any:
        kind = role(key)
        classes = num_classes if kind == "labels" else None
        return map_heads(lambda leaf, own: function(leaf, kind, own), entry, classes)

    if isinstance(entries, dict):
        return {key: mapped(key, entry) for key, entry in entries.items()}
    return tuple(mapped(key, entry) for key, entry in enumerate(entries))


def map_heads(function: Callable[[Any, Any], Any], entry: Any, num_classes: Any) -> Any:
    """`function(leaf, num_classes)` for a `num_classes` of the same structure."""
    if isinstance(num_classes, dict):
        own = {key: entry[key] for key in num_classes}
        return with_entries(
            entry,
            {
                key: map_heads(function, head, _of_a_head(num_classes[key]))
                for key, head in own.items()
            },
        )
    if isinstance(num_classes, (list, tuple)):
        heads = zip(entry, map(_of_a_head, num_classes), strict=True)
        return with_entries(entry, [map_heads(function, *head) for head in heads])
    return keras.tree.map_structure(lambda leaf: function(leaf, num_classes), entry)


def _of_a_head(num_classes: Any) -> Any:
    return AS_IS if num_classes is None else num_classes


def with_entries(batch: Any, entries: Any) -> Any:
    """The batch with these entries in place of its own, in the structure that came."""
    if isinstance(entries, dict):
        result = copy.copy(batch)
        result.update(entries)
        return result
    make = getattr(type(batch), "_make", type(batch))  # named tuples have _make
    return make([*entries, *batch[len(entries) :]])


def holds_one_number(y: Any) -> bool:
    """One for each sample: `(batch,)` or `(batch, 1)`."""
    return len(y.shape) == 1 or (len(y.shape) == 2 and y.shape[1] == 1)


def holds_class_numbers(y: Any, num_classes: Any) -> bool:
    """One number each: integers, booleans, or floats, as Keras' layers cast them."""
    return num_classes not in (AS_IS, 1) and holds_one_number(y)


def as_numpy(leaf: Any) -> np.ndarray:
    """The values of a leaf on the host, of whatever library it is."""
    if hasattr(leaf, "detach"):  # torch's
        leaf = leaf.detach().cpu()
    return np.asarray(leaf)


def dtype_of(leaf: Any) -> str:
    """Its name."""
    if isinstance(leaf.dtype, np.dtype):  # Keras knows no name for NumPy's strings
        return leaf.dtype.name
    try:
        return keras.backend.standardize_dtype(leaf.dtype)
    except ValueError:  # such as those of pandas
        return str(leaf.dtype)


def is_float(dtype: str) -> bool:
    return dtype in ("float16", "bfloat16", "float32", "float64")
