"""Switch: whether a soft-label table takes part in training, and who decides that.

While it is on, the loss trains on the table with the weight of the epoch and collects
evidence for it. While it is off, the loss is plain cross-entropy. A compiled step reads
both from one variable, so nothing is compiled again when it is turned on or off.

Who turns it, and when:

- `GlobalSoftLabel` turns it on when an epoch begins and when a validation in it ends.
  It turns it off when a validation begins, when an epoch ends, and when training begins
  and ends.
- Keras resets the metrics of a model, the table among them, when an epoch of `fit` or
  an `evaluate` begins. That turns it off, unless the `fit` that turned it on is still
  running: a callback may call `evaluate` amid an epoch. A model that is compiled anew
  is in no `fit`.
- Keras' test step sets `evaluating` while it runs or is traced. It never uses the
  table, whether the switch is on or off.

What a crash leaves: after an exception in `fit` it stays on. `evaluate` and
`test_on_batch` are plain all the same, but not `train_on_batch` and a call of the loss
by hand. The next `fit` turns it off, with the callback or without.

Whose it is: a table belongs to the first model that trains with it, its `owner`. `user`
is the callback that last turned it on.
"""

import weakref
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_mixavg._keras import training_of

WEIGHT, COLLECTS = 0, 1  # the entries of the variable


class Switch:
    """The switch of one table. The table makes its variable, so that steps carry it."""

    def __init__(self) -> None:
        self.evaluating = False
        self.host_value = np.zeros(2, "float32")  # what the variable holds
        self.variable: Any = None  # once the table is built
        self._owner: weakref.ref | None = None
        self._user: weakref.ref | None = None
        self._turned_on_in: Any = None  # the training

    # --- Whose ------------------------------------------------------------------------

    @property
    def attached(self) -> bool:
        """Whether a model has ever trained with the table."""
        return self._owner is not None

    @property
    def owner(self) -> Any:
        """The model that trains with the table, or None."""
        return self._owner() if self._owner else None

    @property
    def user(self) -> Any:
        """The callback that last turned it on, or None."""
        return self._user() if self._user else None

    def claim(self, model: Any) -> None:
        """Make the table this model's, or raise if it is another one's."""
        if self.attached and self.owner is not model:
            raise ValueError(
                "The SoftLabelCrossentropy of this model has trained another model, "
                "whose soft-label table it holds. Compile each model with a "
                "SoftLabelCrossentropy(...) of its own."
            )
        self._owner = weakref.ref(model)

    # --- On and off -------------------------------------------------------------------

    @property
    def is_on(self) -> bool:
        return bool(self.host_value[COLLECTS])

    def turn_on(self, weight: float, user: Any = None) -> None:
        """Train on the table with `weight`, a of equation (5), and collect."""
        self._user = None if user is None else weakref.ref(user)
        self._turned_on_in = training_of(self.owner)
        self._assign(weight, 1.0)

    def turn_off(self) -> None:
        """Train on local labels and collect nothing. What has been learnt stays."""
        self._assign(0.0, 0.0)

    def reset(self) -> None:
        """Turn off, unless the training that turned it on still runs."""
        model = self.owner
        still_runs = model is not None and training_of(model) == self._turned_on_in
        if not (self.is_on and still_runs):
            self.turn_off()

    def _assign(self, weight: float, collects: float) -> None:
        self.host_value = np.array([weight, collects], "float32")
        if self.variable is not None:
            self.variable.assign(self.host_value)

    # --- In a step --------------------------------------------------------------------

    def if_positive(self, entry: int, then: Callable, otherwise: Callable) -> Any:
        """`then()` if `WEIGHT` or `COLLECTS` is positive."""
        if keras.backend.backend() == "torch":  # without waiting for the device
            return then() if self.host_value[entry] > 0 else otherwise()
        return ops.cond(self.variable[entry] > 0.0, then, otherwise)
