"""MixAvg: draws a pairing, then applies it to everything in the batch."""

import numbers
from typing import Any

import keras

from keras_mixavg import batch as batches
from keras_mixavg import equations, xla
from keras_mixavg._keras import DataLayer, has_values, in_tf_graph
from keras_mixavg.batch import dtype_of, holds_class_numbers, is_float

Tensor = Any


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
        batches.check(batch, self.num_classes)
        entries = batches.entries(batch)
        return batches.merged(batch, super().__call__(entries, **kwargs))

    @property
    def compute_dtype(self) -> None:
        """None: every tensor keeps its own dtype."""

    def call(self, inputs: Any, training: bool | None = True) -> Any:
        entries = self._as_tensors(inputs)
        if not training or self.rate == 0:
            return self._average_entries(entries, None)
        leaves = keras.tree.flatten(entries)
        leaf = next((leaf for leaf in leaves if leaf.shape[0] is not None), leaves[0])
        partners = self.draw(self.backend.shape(leaf)[0])
        return self._average_entries(entries, partners)

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
        batches.check(inputs, self.num_classes)
        if partners is not None:
            partners = self.backend.convert_to_tensor(partners)
        entries = self._as_tensors(batches.entries(inputs))
        return batches.merged(inputs, self._average_entries(entries, partners))

    def _as_tensors(self, entries: Any) -> Any:
        return keras.tree.map_structure(self.backend.convert_to_tensor, entries)

    def _average_entries(self, entries: Any, partners: Tensor | None) -> Any:
        average = {
            "inputs": self._average_inputs,
            "labels": self._average_labels,
            "weights": self._average_weights,
        }
        return batches.map_entries(
            lambda role, leaf: average[role](leaf, partners), entries
        )

    def _average_inputs(self, x: Tensor, partners: Tensor | None) -> Tensor:
        dtype = dtype_of(x)
        if partners is None:
            keeps_dtype = dtype == "uint8" or is_float(dtype)
            return x if keeps_dtype else self.backend.cast(x, "float32")
        if self.backend.name == "tensorflow" and in_tf_graph():
            return self._compiled(x, partners)
        return self._average_with_partners(x, partners)

    def _average_with_partners(self, x: Tensor, partners: Tensor) -> Tensor:
        """One rounding, and no overflow: narrow floats are averaged in float32."""
        dtype = dtype_of(x)
        if dtype == "uint8":
            partner_values = self.backend.numpy.take(x, partners, axis=0)
            return equations.average_of_bytes(x, partner_values, self.backend.numpy)
        wide = dtype if dtype in ("float32", "float64") else "float32"
        mean = self._average(self.backend.cast(x, wide), partners)
        return self.backend.cast(mean, dtype) if is_float(dtype) else mean

    def _average_labels(self, y: Tensor, partners: Tensor | None) -> Tensor:
        if holds_class_numbers(y, self.num_classes):
            self._check_range(y)
            y = self.backend.numpy.reshape(y, (-1,))
            y = self.backend.cast(y, "int32")
            y = self.backend.nn.one_hot(y, self.num_classes, dtype="float32")
        return self._average_weights(y, partners)

    def _average_weights(self, w: Tensor, partners: Tensor | None) -> Tensor:
        double = dtype_of(w) == "float64"
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
