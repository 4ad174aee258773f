"""MixAvg: checks a batch, draws its pairs, averages them, and puts it together."""

import functools
import random
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_mixavg import averaging, checks, datasets, draws
from keras_mixavg import batch as batches
from keras_mixavg._keras import DataLayer, in_tf_graph
from keras_mixavg.averaging import OnHost
from keras_mixavg.batch import AS_IS, dtype_of, holds_one_number, is_float

Tensor = Any
Rate = float | Callable[[int], float]


def _not_converted(method: Callable) -> Callable:
    """Keep AutoGraph out: it would read all code below for seconds, to no effect."""

    @functools.wraps(method)
    def called(*args: Any, **kwargs: Any) -> Any:
        if not in_tf_graph():
            return method(*args, **kwargs)
        import tensorflow as tf

        return tf.autograph.experimental.do_not_convert(method)(*args, **kwargs)

    return called


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
            default, so about half of the batch stays as it is. On a dataset called
            with `epoch` it may be a function, `epoch -> float`.
        num_classes: int, needed where labels are one number for each sample. Class
            numbers are made one-hot. With 1 the numbers are averaged as they are, such
            as the labels 0 and 1 of a sigmoid, or a regression target. For labels in a
            dict or list the same structure with an int for each output, and None for
            an output whose labels are averaged as numbers.
        seed: optional int. On a dataset every run then has the same pairs. In a `map`
            with parallel calls timing decides; docs/seeds.md of the repository has
            each way to feed a model.
        **kwargs: `name`, `trainable` and `dtype` of `keras.layers.Layer`. The dtype
            does not matter: tensors keep their own.

    Call arguments:
        inputs: `(x, y)`, `(x, y, sample_weight)`, or a dict with `images` and `labels`
            (or `targets`), perhaps with `sample_weights`. `layer(x, y)` is the same as
            `layer((x, y))`. Other keys of a dict pass through unchanged. `x` and `y`
            may be nested, for models of several inputs or outputs. Or a
            `tf.data.Dataset` of such batches: a dataset comes back.
        training: bool, True by default. If False nothing is averaged, and the labels
            still come out as `(batch, num_classes)`.
        rng: optional `numpy.random.Generator`, for a batch that is not in a graph: the
            pairs are drawn from it. It may also be the last positional argument, as
            `random_map` of `grain` passes it.
        epoch: for a dataset, optional: where to read the epoch, which then decides the
            pairs and the rate. A `CurrentEpoch` that `fit` gets too, or an integer
            tensor or `tf.Variable`, whose value is read when an iteration begins.
            Without it every iteration has new pairs; with a seed, every run repeats
            the same sequence of them.

    Input shape:
        x: `(batch, ...)`, any rank, any batch size; a lone sample has no partner and
        stays as it is. y: `(batch,)` or `(batch, 1)` integers in `[0, num_classes)`
        (or booleans, or whole floats, to which Keras' own layers cast them), or
        `(batch, num_classes)` one-hot, soft or multi-label. sample_weight:
        `(batch, ...)`.

    Output shape:
        The structure and the shapes of the input, with labels `(batch, num_classes)`.
        Float x keeps its dtype, uint8 stays uint8 (rounded to nearest), other integers
        become float32. Labels and sample weights are float32, or float64 if they were.
        NumPy arrays come back as NumPy arrays, and tensors as those of their library.

    Raises:
        ValueError: for `rate` outside [0, 1], shapes that do not fit, labels outside
            `[0, num_classes)`, integers of shape `(batch, num_classes)` other than 0
            and 1, a dict without `images` or `labels`, or with boxes, keypoints or
            masks under the keys of Keras. Inside `tf.data`, where values are known only
            at run time, bad values raise `tf.errors.InvalidArgumentError`.
        TypeError: for lists, and for string, ragged and sparse tensors.

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
        self.generator = keras.random.SeedGenerator(first % 2**31)  # torch's limit
        self._generators = draws.HostGenerators(first)
        self._warned = False
        self._convert_input_args = False  # strings and integers pass as they are
        self.built = True

    @property
    def compute_dtype(self) -> None:
        """None: every tensor keeps its own dtype."""

    @_not_converted
    def __call__(
        self,
        *inputs: Any,
        rng: np.random.Generator | draws.Key | None = None,
        epoch: Any = None,
        **kwargs: Any,
    ) -> Any:
        if inputs and isinstance(inputs[-1], np.random.Generator):
            *inputs, rng = inputs  # type: ignore[assignment]
        batch = inputs[0] if len(inputs) == 1 else tuple(inputs)
        if datasets.is_dataset(batch):
            checks.refuse_rng(rng)
            return self._map(batch, epoch, **kwargs)
        checks.refuse_epoch(epoch, batch)
        if rng is not None:
            kwargs["rng"] = rng
        training = kwargs.get("training", True)
        self._check(batch, averages=training is not False and self.rate != 0)
        entries = batches.entries(batch)
        if not in_tf_graph() and self._on_backend(entries):
            # Keras refuses tensors beside arrays.
            convert = self.backend.convert_to_tensor
            entries = keras.tree.map_structure(convert, entries)
        return batches.with_entries(batch, super().__call__(entries, **kwargs))

    def _map(self, dataset: Any, epoch: Any, training: bool | None = True) -> Any:
        """Call the layer on each batch of a dataset, with the key of the batch."""
        rate = self.rate if training else 0.0
        keyed = datasets.with_keys(dataset, self.seed, rate, epoch)

        def of_batch(batch: Any, key: tuple | None = None) -> Any:
            rng = None if key is None else draws.Key(*key)
            return self(batch, rng=rng, training=bool(training))

        return datasets.mapped(keyed, of_batch)

    def call(
        self,
        inputs: Any,
        training: bool | None = True,
        rng: np.random.Generator | draws.Key | None = None,
    ) -> Any:
        ops = self.backend if self._on_backend(inputs) else OnHost
        partners = None
        if training and self.rate != 0:
            partners = self._partners(batches.size(inputs, ops), inputs, rng)
        return averaging.average_entries(inputs, partners, self.num_classes, ops)

    def draw(self, batch_size: Any, rng: np.random.Generator | None = None) -> Tensor:
        """Draw the partner of each sample: equation (1), and `rate` of equation (2).

        Args:
            batch_size: int, or a scalar integer tensor inside a graph (inside `tf.data`
                on TensorFlow only; a call of the layer works on every backend).
            rng: as for a call of the layer.

        Returns:
            `(batch_size,)` integers; a sample that is not averaged is its own partner.
        """
        if callable(self.rate):
            raise ValueError(
                "A `rate` that is a function of the epoch needs the epoch, and a batch "
                "does not have it. Call the layer on the dataset, "
                "layer(dataset, epoch=keras_mixavg.CurrentEpoch()), or make a layer "
                "with a fixed `rate` for each epoch."
            )
        if rng is not None:
            return draws.from_generator(rng, batch_size, self.rate)
        seed = self._get_seed_generator(self.backend.name)
        return draws.from_keras(self.backend, seed, batch_size, self.rate)

    def apply(self, inputs: Any, partners: Tensor | None) -> Any:
        """Average every sample with its partner: equations (2) and (3).

        Args:
            inputs: as for a call of the layer (inside `tf.data` on TensorFlow only).
            partners: `(batch,)` integers as from `draw`, or None to average nothing.

        Returns:
            As from a call of the layer.
        """
        self._check(inputs, averages=partners is not None)
        entries = batches.entries(inputs)
        ops = self.backend if self._on_backend(entries) else OnHost
        averaged = averaging.average_entries(entries, partners, self.num_classes, ops)
        return batches.with_entries(inputs, averaged)

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
            # In plain containers, not in those that Keras tracks.
            "num_classes": checks.checked_classes(self.num_classes),
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "MixAvg":
        config = dict(config)
        if isinstance(config.get("rate"), dict):
            config["rate"] = keras.saving.deserialize_keras_object(config["rate"])
        return super().from_config(config)

    def __reduce__(self) -> Any:
        """For worker processes, which make the layer from its arguments."""
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
        return _copied, (config, self._generators.new_copy())

    def _check(self, batch: Any, averages: bool) -> None:
        checks.check(batch, self.num_classes)
        if averages and not self._warned:
            self._warned = checks.warn_of_token_ids(batch)

    def _partners(self, size: Any, entries: Any, rng: Any) -> Tensor:
        if isinstance(rng, draws.Key):
            return draws.from_key(rng, size)
        checks.check_rng(rng, entries)
        if rng is None and not self._on_backend(entries):
            rng = self._generators.next()
        return self.draw(size, rng)

    def _on_backend(self, entries: Any) -> bool:
        """Whether the backend averages these, or else NumPy."""
        if in_tf_graph():
            return True
        if draws.data_loader_worker() is not None:  # which must not touch the device
            return False
        # For Keras' numpy backend arrays are tensors.
        leaves = keras.tree.flatten(entries)
        leaves = [leaf for leaf in leaves if not isinstance(leaf, np.ndarray)]
        return any(map(self.backend.is_tensor, leaves))


def _copied(config: dict[str, Any], copy: Any) -> MixAvg:
    layer = MixAvg(**config)
    layer._generators.become(copy)
    return layer
