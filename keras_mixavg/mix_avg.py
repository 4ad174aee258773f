"""MixAvg: draws a pairing, then applies it to everything in the batch."""

import copy
import math
import numbers
from typing import Any

import keras
import numpy as np

from keras_mixavg import equations, xla
from keras_mixavg._keras import DataLayer, has_values, in_tf_graph

Tensor = Any

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


@keras.saving.register_keras_serializable(package="keras_mixavg")
class MixAvg(DataLayer):
    """Average random pairs of inputs, and their labels.

    Each sample is, with probability `rate`, replaced by the midpoint between itself
    and another sample of the batch; its label and sample weight likewise. There is no
    mixing weight to draw, no box and no mask.

    Use it last in a `tf.data` pipeline, after `batch` and after the augmentations that
    work on one image: `dataset.batch(128).map(MixAvg(num_classes=10))`. It also works
    in `keras.layers.Pipeline` and called on arrays.

    Reference: "Bypassing the Random Input Mixing in Mixup" (OpenReview mLtPtH2SIHX);
    equations (1)-(3) of the method card, README.md in this package.

    Args:
        rate: float in [0, 1], the probability that a sample is averaged. 0.5 by
            default, that is, about half of the batch stays as it is.
        num_classes: int, needed for integer labels only: they are made one-hot.
        seed: optional int. With it, sequential calls draw the same pairs in every run.
            In a parallel map, which call gets which draw depends on timing, unless
            `tf.config.experimental.enable_op_determinism()` is on.
        **kwargs: `name`, `trainable` and `dtype` of `keras.layers.Layer`. The dtype
            does not matter: tensors keep their own.

    Call arguments:
        inputs: `(x, y)`, `(x, y, sample_weight)`, or a dict with `images` and `labels`
            (or `targets`), perhaps with `sample_weights`. `layer(x, y)` is the same as
            `layer((x, y))`. Other keys of a dict pass untouched. `x` and `y` may be
            nested, for models of several inputs or outputs.
        training: bool, True by default. If False nothing is averaged, and the labels
            still come out as `(batch, num_classes)`.

    Input shape:
        x: `(batch, ...)`, any rank, any batch size; a lone sample has no partner and
        stays as it is. y: `(batch,)` or `(batch, 1)` integers in `[0, num_classes)`
        (or whole floats, which Keras' own layers turn them into), or
        `(batch, num_classes)` one-hot, soft or multi-label. sample_weight:
        `(batch, ...)`.

    Output shape:
        The structure and the shapes of the input, with labels `(batch, num_classes)`.
        Float x keeps its dtype, uint8 stays uint8 (rounded to nearest), other integers
        become float32. Labels and sample weights are float32, or float64 if they were.

    Raises:
        ValueError: for `rate` outside [0, 1], shapes that do not fit, labels outside
            `[0, num_classes)` (inside a compiled `tf.data` map, where values are first
            known at run time, `tf.errors.InvalidArgumentError`), a dict without
            `images` or `labels`, or with boxes, keypoints or masks.
        TypeError: for string, ragged and sparse tensors.

    Example:

    >>> images = np.array([[0.0], [10.0]], "float32")
    >>> mixed, labels = MixAvg(rate=1.0, num_classes=3)(images, np.array([0, 2]))
    >>> np.asarray(mixed)
    array([[5.],
           [5.]], dtype=float32)
    >>> np.asarray(labels)
    array([[0.5, 0. , 0.5],
           [0.5, 0. , 0.5]], dtype=float32)
    """

    def __init__(
        self,
        rate: float = 0.5,
        num_classes: int | None = None,
        *,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        _check_arguments(rate, num_classes)
        super().__init__(autocast=False, **kwargs)
        self.rate = float(rate)
        self.num_classes = None if num_classes is None else int(num_classes)
        self.seed = seed
        self.generator = keras.random.SeedGenerator(seed)
        self._compiled = xla.Compiled(self._average_with_partners)
        self._convert_input_args = False  # strings and integers pass as they are
        self.built = True

    def __call__(self, *inputs: Any, **kwargs: Any) -> Any:
        if not inputs:
            raise ValueError(
                "MixAvg must be called on (x, y), (x, y, sample_weight) or a dict with "
                "`images` and `labels`. Received no positional argument."
            )
        batch = inputs[0] if len(inputs) == 1 else inputs
        in_graph = in_tf_graph()
        if in_graph:
            self.backend.set_backend("tensorflow")
        try:
            averaged = keras.layers.Layer.__call__(self, self._parts(batch), **kwargs)
        finally:
            if in_graph:
                self.backend.reset()
        return _merged(batch, averaged)

    def call(self, inputs: dict[Any, Any], training: bool | None = True) -> Any:
        if not training or self.rate == 0:
            return self._average_parts(inputs, None)
        leaves = keras.tree.flatten(inputs)
        leaf = next((leaf for leaf in leaves if leaf.shape[0] is not None), leaves[0])
        partners = self.draw(self.backend.shape(leaf)[0])
        return self._average_parts(inputs, partners)

    def draw(self, batch_size: Any) -> Tensor:
        """Draw the partner of each sample: equation (1), and `rate` of equation (2).

        Args:
            batch_size: int, or a scalar integer tensor inside a graph (inside `tf.data`
                on TensorFlow only; a call of the layer works on each backend).

        Returns:
            `(batch_size,)` integers; a sample that is not averaged is its own partner.
        """
        numpy, random = self.backend.numpy, self.backend.random
        seed = self._get_seed_generator(self.backend.name)
        samples = numpy.arange(batch_size, dtype="int32")
        partners = equations.pairing(random.shuffle(samples, seed=seed), numpy)
        averaged = random.uniform((batch_size,), seed=seed) < self.rate
        return numpy.where(averaged, partners, samples)

    def apply(self, inputs: Any, partners: Tensor | None) -> Any:
        """Average every sample with its partner: equations (2) and (3).

        Args:
            inputs: as for a call of the layer (inside `tf.data` on TensorFlow only).
            partners: `(batch,)` integers as from `draw`, or None to average nothing.

        Returns:
            As from a call of the layer.
        """
        if partners is not None:
            partners = self.backend.convert_to_tensor(partners)
        return _merged(inputs, self._average_parts(self._parts(inputs), partners))

    def _parts(self, inputs: Any) -> dict[Any, Any]:
        """The entries of a batch that are to be averaged, as tensors."""
        roles = _roles(inputs)
        _check_batch(inputs, roles, self.num_classes)
        return {
            key: keras.tree.map_structure(self._as_tensor, inputs[key]) for key in roles
        }

    def _as_tensor(self, leaf: Any) -> Tensor:
        if isinstance(leaf, keras.KerasTensor):
            return leaf
        return self.backend.convert_to_tensor(leaf)

    def _average_parts(
        self, parts: dict[Any, Any], partners: Tensor | None
    ) -> dict[Any, Any]:
        average = {
            "inputs": self._average_inputs,
            "labels": self._average_labels,
            "weights": self._average_weights,
        }

        def averaged(key: Any, part: Any) -> Any:
            function = average[_role(key)]
            return keras.tree.map_structure(lambda leaf: function(leaf, partners), part)

        return {key: averaged(key, part) for key, part in parts.items()}

    def _average_inputs(self, x: Tensor, partners: Tensor | None) -> Tensor:
        dtype = _dtype(x)
        if partners is None:
            keeps_dtype = dtype == "uint8" or _is_float(dtype)
            return x if keeps_dtype else self.backend.cast(x, "float32")
        if self.backend.name == "tensorflow" and in_tf_graph():
            return self._compiled(x, partners)
        return self._average_with_partners(x, partners)

    def _average_with_partners(self, x: Tensor, partners: Tensor) -> Tensor:
        """One rounding, and no overflow: narrow floats are averaged in float32."""
        dtype = _dtype(x)
        if dtype == "uint8":
            partner_values = self.backend.numpy.take(x, partners, axis=0)
            return equations.average_of_bytes(x, partner_values, self.backend.numpy)
        wide = dtype if dtype in ("float32", "float64") else "float32"
        mean = self._average(self.backend.cast(x, wide), partners)
        return self.backend.cast(mean, dtype) if _is_float(dtype) else mean

    def _average_labels(self, y: Tensor, partners: Tensor | None) -> Tensor:
        if _holds_class_numbers(y, self.num_classes):
            self._check_range(y)
            y = self.backend.numpy.reshape(y, (-1,))
            y = self.backend.cast(y, "int32")
            y = self.backend.nn.one_hot(y, self.num_classes, dtype="float32")
        return self._average_weights(y, partners)

    def _average_weights(self, w: Tensor, partners: Tensor | None) -> Tensor:
        double = _dtype(w) == "float64"
        w = self.backend.cast(w, "float64" if double else "float32")
        return w if partners is None else self._average(w, partners)

    def _average(self, values: Tensor, partners: Tensor) -> Tensor:
        partner_values = self.backend.numpy.take(values, partners, axis=0)
        return equations.average(values, partner_values)

    def _check_range(self, y: Tensor) -> None:
        """Refuse class numbers outside [0, num_classes), as soon as they are known."""
        expected = (
            "`labels` must be whole numbers in [0, num_classes) = "
            f"[0, {self.num_classes}). Set `num_classes` to the largest label plus "
            "one, or correct the labels. Received: labels="
        )
        if self.backend.name == "tensorflow" and in_tf_graph():
            import tensorflow as tf

            number = tf.cast(y, "int64")
            good = (number >= 0) & (number < self.num_classes)
            good &= tf.cast(number, y.dtype) == y
            tf.debugging.Assert(tf.reduce_all(good), [expected, y], summarize=10)
        elif has_values(y):
            values = self.backend.convert_to_numpy(y).astype("float64")
            good = (values >= 0) & (values < self.num_classes) & (values % 1 == 0)
            wrong = values[~good]
            if wrong.size:
                raise ValueError(f"{expected}{wrong[:10].tolist()}")

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "rate": self.rate,
            "num_classes": self.num_classes,
            "seed": self.seed,
        }


def _role(key: Any) -> str:
    return POSITIONS[key] if isinstance(key, int) else KEYS[key]


def _roles(inputs: Any) -> dict[Any, str]:
    """What each entry to be averaged is, by its key or position."""
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
        key: _role(key)
        for key in keys
        if _role(key) != "weights" or inputs[key] is not None
    }


def _merged(inputs: Any, averaged: dict[Any, Any]) -> Any:
    """The batch with its averaged entries, in the structure that came."""
    if isinstance(inputs, dict):
        batch = copy.copy(inputs)
        batch.update(averaged)
        return batch
    make = getattr(type(inputs), "_make", type(inputs))  # named tuples have _make
    return make(averaged.get(key, entry) for key, entry in enumerate(inputs))


def _check_batch(inputs: Any, roles: dict[Any, str], num_classes: int | None) -> None:
    leaves: list[tuple[str, Any]] = []
    for key, role in roles.items():
        name = f"`{key}`" if isinstance(key, str) else ("`x`", "`y`", "`w`")[key]
        for leaf in keras.tree.flatten(inputs[key]):
            _check_leaf(name, leaf)
            if role == "labels":
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


def _check_arguments(rate: Any, num_classes: Any) -> None:
    if not isinstance(rate, numbers.Real) or not 0 <= float(rate) <= 1:
        raise ValueError(
            "`rate` must be a float in [0, 1], the probability that a sample is "
            f"averaged. Received: rate={rate!r}. (For the number of classes pass "
            "`num_classes`.)"
        )
    if num_classes is None:
        return
    if (
        isinstance(num_classes, bool)
        or not isinstance(num_classes, numbers.Integral)
        or num_classes < 2
    ):
        raise ValueError(
            "`num_classes` must be an integer of at least 2, or None for labels that "
            f"are one-hot already. Received: num_classes={num_classes!r}"
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
    dtype = _dtype(leaf)
    if not (dtype == "bool" or "int" in dtype or _is_float(dtype)):
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
    if _holds_class_numbers(y, num_classes):
        if num_classes is None:
            raise ValueError(
                f"{name} must have shape (batch, num_classes). Received: class "
                f"numbers of shape {_shape(y)}. Pass `num_classes` to MixAvg, or "
                "one-hot encode them with `keras.utils.to_categorical`."
            )
        if num_classes > EXACT_UP_TO.get(_dtype(y), math.inf):
            raise ValueError(
                f"{name} of dtype {_dtype(y)} cannot tell {num_classes} classes apart. "
                "Pass integers, or cast nothing to that dtype before MixAvg."
            )
    elif len(y.shape) != 2:
        raise ValueError(
            f"{name} must have shape (batch, num_classes), or (batch,) or (batch, 1) "
            f"integers. Received: shape {_shape(y)}, dtype={_dtype(y)}. Batch the "
            "dataset before MixAvg, and encode class numbers as integers or one-hot. "
            "Labels at each position, such as masks, are not averaged."
        )
    elif num_classes is not None and y.shape[1] not in (None, num_classes):
        raise ValueError(
            f"{name} must have shape (batch, num_classes={num_classes}). Received: "
            f"shape {_shape(y)}. Set `num_classes` to {y.shape[1]} or encode them with "
            f"{num_classes} classes."
        )


def _holds_class_numbers(y: Any, num_classes: int | None) -> bool:
    """Integers do; with `num_classes` floats too, as Keras' layers cast them."""
    one_each = len(y.shape) == 1 or (len(y.shape) == 2 and y.shape[1] == 1)
    as_number = "int" in _dtype(y) or (num_classes is not None and _is_float(_dtype(y)))
    return one_each and as_number


def _shape(leaf: Any) -> tuple[int | None, ...]:
    return tuple(leaf.shape)


def _dtype(leaf: Any) -> str:
    if isinstance(leaf.dtype, np.dtype):  # Keras knows no name for NumPy's strings
        return leaf.dtype.name
    return keras.backend.standardize_dtype(leaf.dtype)


def _is_float(dtype: str) -> bool:
    return dtype in ("float16", "bfloat16", "float32", "float64")
