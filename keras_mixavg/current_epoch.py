"""CurrentEpoch: the callback that tells datasets the epoch of `fit`."""

import types
import warnings
from collections.abc import Callable
from typing import Any

import keras

ENDLESS = 2**32  # more batches than an epoch has


@keras.saving.register_keras_serializable(package="keras_mixavg")
class CurrentEpoch(keras.callbacks.Callback):
    """Tell `MixAvg` on a dataset which epoch of `fit` it is.

    Only `fit` knows the epoch; the iterations of a dataset cannot be counted, since
    Keras also makes some that train nothing. Give the same object to the dataset and to
    `fit`. The pairs and the `rate` are then those of the epoch that Keras counts, also
    in a run that is resumed.

    With `steps_per_epoch` repeat the dataset before `MixAvg`. An iteration that begins
    between two epochs, such as one of validation, has the epoch that follows. Before
    the first `fit` the epoch is 0. `CurrentEpoch` takes no arguments.

    Raises:
        ValueError: in `fit`, if the epoch of a batch is unknown because the dataset is
            repeated, cached or cut after `MixAvg`. Inside the dataset the error arrives
            as `tf.errors.InvalidArgumentError`, with the same message.

    Example:

    >>> import tensorflow as tf
    >>> from keras_mixavg import MixAvg
    >>> epoch = CurrentEpoch()
    >>> mix = MixAvg(rate=lambda epoch: 0.5 if epoch < 2 else 0.0)
    >>> batches = tf.data.Dataset.from_tensors((np.ones((4, 2)), np.eye(4)))
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(4)])
    >>> model.compile("sgd", "mse")
    >>> data = mix(batches, epoch=epoch)
    >>> history = model.fit(data, epochs=3, callbacks=[epoch], verbose=0, shuffle=False)
    """

    def __init__(self) -> None:
        super().__init__()
        self._epoch = 0
        self._fit = 0  # the number of those that have begun
        self._in_fit = self._in_epoch = False
        self._served: Any = None  # the epoch or the `fit` of the last iteration
        self._iterations_outside_fit = 0

    def __deepcopy__(self, memo: dict) -> "CurrentEpoch":
        """The same object: KerasTuner copies callbacks, but not the dataset."""
        return self

    def iterations(self, batches: int) -> Callable[[], tuple[int, int, int]]:
        """A function for a dataset to call whenever an iteration of it begins.

        Args:
            batches: the length of the dataset, negative if endless or not known.

        Returns:
            A function that returns the epoch of the first batch, the number of batches
            in each epoch, and the number of epochs, 0 if not known.
        """
        dataset = types.SimpleNamespace(batches=batches, served=None)
        return lambda: self._begin_iteration(dataset)

    def _begin_iteration(self, dataset: Any) -> tuple[int, int, int]:
        epochs = self._param("epochs") or 0
        if not self._in_epoch:
            if not self._in_fit:
                self._warn_outside_fit()
            return self._epoch, ENDLESS, 0
        steps = self._param("steps")
        if _steps_are_limited():
            return self._epoch, steps or ENDLESS, epochs
        if steps and 0 <= dataset.batches != steps:
            raise ValueError(
                "With CurrentEpoch an epoch of `fit` must be one pass over the "
                f"dataset that MixAvg was called on. Received: {steps} steps for "
                f"{dataset.batches} batches. With `steps_per_epoch` repeat the dataset "
                "before MixAvg, mix(dataset.repeat(), epoch=...); else call MixAvg "
                "after `take` and the last `batch`."
            )
        all_epochs = steps is not None and dataset.batches < 0
        served = (self._fit, None if all_epochs else self._epoch)
        if dataset.served == served:
            raise ValueError(
                "CurrentEpoch cannot tell which epoch of `fit` a batch is for. "
                "Received: a second iteration of the dataset in epoch "
                f"{self._epoch}. With `steps_per_epoch` repeat the dataset before "
                "MixAvg, mix(dataset.repeat(), epoch=...). To look at the data while "
                "`fit` runs, or after it ended with an exception, make another dataset."
            )
        dataset.served = self._served = served
        batches = steps if steps and all_epochs else ENDLESS
        return self._epoch, batches, epochs

    def _param(self, name: str) -> int | None:
        params: dict[str, Any] = self.params or {}
        return params.get(name)

    def _warn_outside_fit(self) -> None:
        self._iterations_outside_fit += 1
        if self._iterations_outside_fit == 3:  # Keras reads a batch before `fit` too
            warnings.warn(
                "Three iterations of a dataset had the pairs and the rate of epoch "
                f"{self._epoch}, since no `fit` with its CurrentEpoch was running. If "
                "they were epochs of `fit`, pass it: model.fit(..., "
                "callbacks=[epoch]).",
                stacklevel=2,
            )

    def on_train_begin(self, logs: Any = None) -> None:
        self._fit += 1
        self._in_fit, self._in_epoch = True, False

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch, self._in_epoch = epoch, True

    def on_test_begin(self, logs: Any = None) -> None:
        self._leave_epoch()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._leave_epoch()
        served = self._served in ((self._fit, None), (self._fit, epoch))
        if not (served or _steps_are_limited()):
            raise ValueError(
                "With CurrentEpoch each epoch of `fit` must begin an iteration of the "
                "dataset. Received: no iteration of its datasets began in epoch "
                f"{epoch}. Give `fit` the dataset itself, mix(dataset, epoch=epoch), "
                "not an iterator, and call `repeat` and `cache` before MixAvg."
            )

    def on_train_end(self, logs: Any = None) -> None:
        self._in_fit = False
        self._iterations_outside_fit = 0

    def get_config(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "CurrentEpoch":
        return cls(**config)

    def _leave_epoch(self) -> None:
        if self._in_epoch:
            self._in_epoch = False
            following, epochs = self._epoch + 1, self._param("epochs")
            self._epoch = min(following, epochs - 1) if epochs else following


def _steps_are_limited() -> bool:
    """Whether KERAS_MAX_STEPS_PER_EPOCH, a setting for debugging, cuts epochs short."""
    limit = getattr(keras.config, "max_steps_per_epoch", None)  # not in Keras 3.10
    return limit is not None and limit() is not None
