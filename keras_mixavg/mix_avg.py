"""MixAvg: draws a pairing, then applies it to everything in the batch."""

import random
import sys
import threading
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_mixavg import averaging, checks, datasets, equations
from keras_mixavg import batch as batches
from keras_mixavg._keras import DataLayer, has_values, in_tf_graph
from keras_mixavg.arrays import Draws, OnHost, as_before, data_loader_worker
from keras_mixavg.batch import AS_IS, dtype_of, holds_one_number, is_float

Tensor = Any
Rate = float | Callable[[int], float]

ONE_AT_A_TIME = threading.Lock()  # a seed generator is read, then written
RNG_IN_A_GRAPH = (
    "`rng` draws once, when a graph is made, and every batch would have the same "
    "pairs. Leave it out inside a graph; call the layer on the dataset, "
    "dataset.apply(layer), for pairs that a seed fixes."
)


@keras.saving.register_keras_serializable(package="keras_mixavg")
class MixAvg(DataLayer):
    """Average random pairs of inputs, and their labels.

    Each sample is, with probability `rate`, replaced by the midpoint between itself
    and another sample of the batch; its label and sample weight likewise. There is no
    mixing weight to draw, no box and no mask.

    Use it on a `tf.data.Dataset` of batches, after the augmentations that work on one
    image: `dataset.batch(128).apply(MixAvg(num_classes=10))`. It also works in a
    `map`, in `keras.layers.Pipeline`, and called on arrays in any data loader.

    Reference: "Bypassing the Random Input Mixing in Mixup" (OpenReview mLtPtH2SIHX);
    equations (1)-(3) of the method card, README.md in this package.

    Args:
        rate: float in [0, 1], the probability that a sample is averaged. 0.5 by
            default, that is, about half of the batch stays as it is. On a dataset
            that is told the epoch it may be a function, `epoch -> float`.
        num_classes: int, needed where labels are one number for each sample. Class
            numbers are made one-hot. With 1 the numbers are averaged as they are, such
            as the labels 0 and 1 of a sigmoid, or a regression target. For labels that
            are a dict (or a list), a dict (or a list) of these, None for a head that
            is averaged as it is.
        seed: optional int. With it every run has the same pairs, as docs/seeds.md says
            for each way to feed a model.
        **kwargs: `name`, `trainable` and `dtype` of `keras.layers.Layer`. The dtype
            does not matter: tensors keep their own.

    Call arguments:
        inputs: `(x, y)`, `(x, y, sample_weight)`, or a dict with `images` and `labels`
            (or `targets`), perhaps with `sample_weights`. `layer(x, y)` is the same as
            `layer((x, y))`. Other keys of a dict pass untouched. `x` and `y` may be
            nested, for models of several inputs or outputs. Or a `tf.data.Dataset` of
            such batches: a dataset comes back.
        training: bool, True by default. If False nothing is averaged, and the labels
            still come out as `(batch, num_classes)`.
        rng: optional `numpy.random.Generator`, for a batch that is not in a graph: the
            pairs are drawn from it. It may also be the last positional argument, as
            `random_map` of `grain` passes it.
        epoch: for a dataset, optional: who tells the epoch, from which the pairs and
            the rate are then made. A `CurrentEpoch`, which `fit` gets too; or an
            integer tensor or `tf.Variable`, of which an iteration takes the value that
            it has when the iteration begins. Without it each iteration has other
            pairs, in the same order in every run with a seed.

    Input shape:
        x: `(batch, ...)`, any rank, any batch size; a lone sample has no partner and
        stays as it is. y: `(batch,)` or `(batch, 1)` integers in `[0, num_classes)`
        (or booleans, or whole floats, which Keras' own layers turn them into), or
        `(batch, num_classes)` one-hot, soft or multi-label. sample_weight:
        `(batch, ...)`.

    Output shape:
        The structure and the shapes of the input, with labels `(batch, num_classes)`.
        Float x keeps its dtype, uint8 stays uint8 (rounded to nearest), other integers
        become float32. Labels and sample weights are float32, or float64 if they were.
        NumPy arrays come back as such, and so do the tensors of every library.

    Raises:
        ValueError: for `rate` outside [0, 1], shapes that do not fit, labels outside
            `[0, num_classes)`, integers of shape `(batch, num_classes)` other than 0
            and 1 (inside a compiled `tf.data` map, where values are first known at run
            time, `tf.errors.InvalidArgumentError`), a dict without `images` or
            `labels`, or with boxes, keypoints or masks.
        TypeError: for string, ragged and sparse tensors.

    Example:

    >>> images = np.array([[0.0], [10.0]], "float32")
    >>> mixed, labels = MixAvg(rate=1.0, num_classes=3)(images, np.array([0, 2]))
    >>> mixed
    array([[5.],
           [5.]], dtype=float32)
    >>> labels
    array([[0.5, 0. , 0.5],
           [0.5, 0. , 0.5]], dtype=float32)
    """

    def __init__(
        self,
        rate: Rate = 0.5,
        num_classes: Any = None,
        *,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        self.rate = rate if callable(rate) else checks.checked_rate(rate)
        self.num_classes = checks.checked_classes(num_classes)
        self.seed = checks.checked_seed(seed)
        first = random.randint(1, 10**9) if self.seed is None else self.seed
        self.generator = keras.random.SeedGenerator(first)
        self._draws = Draws(first)
        self._warned = False
        self._convert_input_args = False  # strings and integers pass as they are
        self.built = True

    @property
    def compute_dtype(self) -> None:
        """None: every tensor keeps its own dtype."""

    def __call__(
        self,
        *inputs: Any,
        rng: np.random.Generator | None = None,
        epoch: Any = None,
        **kwargs: Any,
    ) -> Any:
        if inputs and isinstance(inputs[-1], np.random.Generator):
            *inputs, rng = inputs  # type: ignore[assignment]
        if not inputs:
            raise ValueError(
                "MixAvg must be called on (x, y), (x, y, sample_weight) or a dict with "
                "`images` and `labels`. Received no positional argument."
            )
        batch = inputs[0] if len(inputs) == 1 else tuple(inputs)
        if _is_dataset(batch):
            return self._of_dataset(batch, epoch, **kwargs)
        if epoch is not None:
            raise ValueError(
                "`epoch` goes with a `tf.data.Dataset`: layer(dataset, epoch=...). "
                f"Received a {type(batch).__name__}. For batches that you make "
                "yourself pass `rng`, a generator with a seed of the epoch and the "
                "batch: numpy.random.default_rng([seed, epoch, batch])."
            )
        if rng is not None:
            kwargs["rng"] = rng
        if not in_tf_graph():
            return self._of_batch(batch, **kwargs)
        import tensorflow as tf

        # AutoGraph would take seconds to read all this, and find nothing to convert.
        of_batch = tf.autograph.experimental.do_not_convert(self._of_batch)
        return of_batch(batch, **kwargs)

    def _of_batch(self, batch: Any, **kwargs: Any) -> Any:
        averages = kwargs.get("training", True) is not False and self.rate != 0
        self._check(batch, averages)
        entries = batches.entries(batch)
        leaves = keras.tree.flatten(entries)
        if not in_tf_graph() and self._are_ours(leaves):
            # Keras refuses tensors beside arrays.
            convert = self.backend.convert_to_tensor
            entries = keras.tree.map_structure(convert, entries)
        return batches.merged(batch, super().__call__(entries, **kwargs))

    def call(
        self,
        inputs: Any,
        training: bool | None = True,
        rng: np.random.Generator | None = None,
    ) -> Any:
        partners = None
        if training and self.rate != 0:
            leaves = keras.tree.flatten(inputs)
            if rng is not None and (in_tf_graph() or not all(map(has_values, leaves))):
                raise ValueError(RNG_IN_A_GRAPH)
            if rng is None and not self._are_ours(leaves):
                rng = self._draws.next()
            partners = self.draw(_size(inputs, self.backend), rng)
        return self._averaged(inputs, partners)

    def draw(self, batch_size: Any, rng: np.random.Generator | None = None) -> Tensor:
        """Draw the partner of each sample: equation (1), and `rate` of equation (2).

        Args:
            batch_size: int, or a scalar integer tensor inside a graph (inside `tf.data`
                on TensorFlow only; a call of the layer works on each backend).
            rng: as of a call of the layer.

        Returns:
            `(batch_size,)` integers; a sample that is not averaged is its own partner.
        """
        if callable(self.rate):
            raise ValueError(
                "A `rate` that is a function of the epoch needs to be told the epoch, "
                "and a batch does not know it. Call the layer on the dataset, "
                "layer(dataset, epoch=keras_mixavg.CurrentEpoch()), or make a layer "
                "with a fixed `rate` for each epoch."
            )
        if rng is not None:
            xp: Any = np
            order = rng.permutation(batch_size).astype("int32")
            chance = rng.random(batch_size)
        else:
            xp, seed = self.backend.numpy, self._get_seed_generator(self.backend.name)
            samples = xp.arange(batch_size, dtype="int32")
            with ONE_AT_A_TIME:
                order = self.backend.random.shuffle(samples, seed=seed)
                chance = self.backend.random.uniform((batch_size,), seed=seed)
        samples = xp.arange(batch_size, dtype="int32")
        return xp.where(chance < self.rate, equations.pairing(order, xp), samples)

    def apply(self, inputs: Any, partners: Tensor | None) -> Any:
        """Average every sample with its partner: equations (2) and (3).

        Args:
            inputs: as for a call of the layer (inside `tf.data` on TensorFlow only).
            partners: `(batch,)` integers as from `draw`, or None to average nothing.

        Returns:
            As from a call of the layer.
        """
        self._check(inputs, partners is not None)
        averaged = self._averaged(batches.entries(inputs), partners)
        return batches.merged(inputs, averaged)

    def compute_output_spec(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        def spec(leaf: Any, role: str, num_classes: Any) -> keras.KerasTensor:
            dtype, shape = dtype_of(leaf), tuple(leaf.shape)
            if role == "images":
                keeps = dtype == "uint8" or is_float(dtype)
                return keras.KerasTensor(shape, dtype if keeps else "float32")
            if role == "labels" and holds_one_number(leaf) and num_classes != AS_IS:
                shape = (shape[0], num_classes)
            wide = dtype == "float64"
            return keras.KerasTensor(shape, "float64" if wide else "float32")

        return batches.map_entries(spec, inputs, self.num_classes)

    def get_config(self) -> dict[str, Any]:
        rate = self.rate
        return {
            **super().get_config(),
            "rate": (
                keras.saving.serialize_keras_object(rate) if callable(rate) else rate
            ),
            "num_classes": checks.checked_classes(
                self.num_classes
            ),  # in plain containers
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "MixAvg":
        config = dict(config)
        if isinstance(config.get("rate"), dict):
            config["rate"] = keras.saving.deserialize_keras_object(config["rate"])
        return super().from_config(config)

    def __reduce__(self) -> Any:
        """Worker processes make the layer anew, without Keras' archives."""
        if type(self) is not MixAvg:
            return super().__reduce__()
        config = {
            "rate": self.rate,
            "num_classes": checks.checked_classes(self.num_classes),
            "seed": self.seed,
            "name": self.name,
            "trainable": self.trainable,
            "dtype": self.dtype_policy.name,
        }
        return _copied, (config, self._draws.of_a_copy())

    def _check(self, batch: Any, averages: bool) -> None:
        checks.check(batch, self.num_classes)
        if averages and not self._warned:
            self._warned = checks.warn_of_token_ids(batch)

    def _of_dataset(self, dataset: Any, epoch: Any, training: bool = True) -> Any:
        if not training or self.rate == 0:
            return datasets.mapped(datasets.wrapped(dataset), self._mixed)
        keyed = datasets.with_keys(dataset, self.seed, self.rate, epoch)
        return datasets.mapped(keyed, self._mixed)

    def _mixed(self, batch: Any, key_and_rate: Any = None) -> Any:
        """A batch of a dataset, with the pairs of its key."""
        self._check(batch, key_and_rate is not None)
        entries = batches.entries(batch)
        ops, partners = type(self.backend)("tensorflow"), None
        if key_and_rate is not None:
            key, rate = key_and_rate
            partners = datasets.draw(key, _size(entries, ops), rate)
        return batches.merged(batch, self._averaged(entries, partners, ops))

    def _are_ours(self, leaves: list[Any]) -> bool:
        """Whether the backend computes them, rather than NumPy."""
        if in_tf_graph():
            return True
        if data_loader_worker() is not None:  # which must not touch the device
            return False
        # For Keras' numpy backend arrays are tensors.
        leaves = [leaf for leaf in leaves if not isinstance(leaf, np.ndarray)]
        return any(map(self.backend.is_tensor, leaves))

    def _averaged(self, entries: Any, partners: Any, ops: Any = None) -> Any:
        leaves = keras.tree.flatten(entries)
        if ops is None:
            ops = self.backend if self._are_ours(leaves) else OnHost
        if partners is not None:
            partners = ops.convert_to_tensor(partners)

        def averaged(leaf: Any, role: str, num_classes: Any) -> Tensor:
            tensor = ops.convert_to_tensor(leaf)
            result = averaging.AVERAGE[role](tensor, partners, ops, num_classes)
            return as_before(leaf, result) if ops is OnHost else result

        return batches.map_entries(averaged, entries, self.num_classes)


def _copied(config: dict[str, Any], copy: Any) -> MixAvg:
    layer = MixAvg(**config)
    layer._draws.become(copy)
    return layer


def _size(entries: Any, ops: Any) -> Any:
    """The samples of a batch: an int, or a scalar tensor if that is not known."""
    leaves = keras.tree.flatten(entries)
    known = [leaf.shape[0] for leaf in leaves if leaf.shape[0] is not None]
    return known[0] if known else ops.shape(leaves[0])[0]


def _is_dataset(batch: Any) -> bool:
    tf = sys.modules.get("tensorflow")  # without it there is none
    return tf is not None and isinstance(batch, tf.data.Dataset)
