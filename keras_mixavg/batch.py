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
AS_IS = "as it is"  # in place of a number of classes, for labels of any shape


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
    """The entries of a batch that are to be averaged, as a tuple or a dict."""
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
    """Call `function(leaf, role, num_classes)` on every leaf of the entries.

    Each leaf of the labels has its own number of classes, or AS_IS if it is to be
    averaged as it is. For images and weights the number is None.
    """

    def mapped(key: Any, entry: Any) -> Any:
        kind = role(key)
        classes = num_classes if kind == "labels" else None
        return map_heads(lambda leaf, own: function(leaf, kind, own), entry, classes)

    if isinstance(entries, dict):
        return {key: mapped(key, entry) for key, entry in entries.items()}
    return tuple(mapped(key, entry) for key, entry in enumerate(entries))


def map_heads(function: Callable[[Any, Any], Any], entry: Any, num_classes: Any) -> Any:
    """Call `function(leaf, num_classes)` on every head of an entry.

    `num_classes` has the structure of the heads, or is one number for all of them.
    """
    if isinstance(num_classes, dict):
        heads = {
            key: map_heads(function, entry[key], _of_a_head(number))
            for key, number in num_classes.items()
        }
        return with_entries(entry, heads)
    if isinstance(num_classes, (list, tuple)):
        pairs = zip(entry, map(_of_a_head, num_classes), strict=True)
        return with_entries(entry, [map_heads(function, *pair) for pair in pairs])
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
    """Whether there is one for each sample: `(batch,)` or `(batch, 1)`."""
    return len(y.shape) == 1 or (len(y.shape) == 2 and y.shape[1] == 1)


def holds_class_numbers(y: Any, num_classes: Any) -> bool:
    """Integers or booleans, or floats, to which Keras' layers cast them."""
    return num_classes not in (AS_IS, 1) and holds_one_number(y)


def as_numpy(leaf: Any) -> np.ndarray:
    """The values of a leaf on the host, whichever library it comes from."""
    if hasattr(leaf, "detach"):  # torch's
        leaf = leaf.detach().cpu()
    return np.asarray(leaf)


def dtype_of(leaf: Any) -> str:
    """The dtype of a leaf, by name."""
    if isinstance(leaf.dtype, np.dtype):  # Keras knows no name for NumPy's strings
        return leaf.dtype.name
    try:
        return keras.backend.standardize_dtype(leaf.dtype)
    except ValueError:  # such as those of pandas
        return str(leaf.dtype)


def is_float(dtype: str) -> bool:
    return dtype in ("float16", "bfloat16", "float32", "float64")
