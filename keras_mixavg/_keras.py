"""Everything that Keras does not make public and this package needs, in one place.

Checked with Keras 3.10 to 3.15. If a release moves one of these, only this file
changes.
"""

import sys
from typing import Any

import keras
from keras.src.utils.backend_utils import in_tf_graph

try:
    from keras.src.layers.preprocessing.data_layer import DataLayer
except ImportError:  # its name before Keras 3.12
    from keras.src.layers.preprocessing.tf_data_layer import TFDataLayer as DataLayer

__all__ = [
    "DataLayer",  # the base that computes with TensorFlow inside `tf.data`, any backend
    "in_tf_graph",  # whether it would do so now
    "calling_callback_list",
    "has_values",
    "mask_of",
    "track_metric",
    "untrack_metric",
]


def has_values(tensor: Any) -> bool:
    """Whether a tensor holds values, rather than standing for some in a trace."""
    if keras.backend.backend() == "jax":
        import jax

        return not isinstance(tensor, jax.core.Tracer)
    return getattr(getattr(tensor, "device", None), "type", None) != "meta"  # torch


def mask_of(tensor: Any) -> Any:
    """The Keras mask of a tensor, or None."""
    return getattr(tensor, "_keras_mask", None)


def track_metric(model: Any, name: str, metric: keras.metrics.Metric) -> None:
    """Make `metric` an attribute of `model` and one of its metrics.

    A built subclassed model refuses new state, hence the tracker is opened for this
    line. On JAX only what a model tracks is carried through a train step.
    """
    locked = model._tracker.locked
    model._tracker.unlock()
    try:
        setattr(model, name, metric)
    finally:
        if locked:
            model._tracker.lock()


def untrack_metric(model: Any, metric: keras.metrics.Metric) -> None:
    """Take `metric` out of the model's metrics; it stays an attribute."""
    model._tracker.untrack(metric)


def calling_callback_list() -> keras.callbacks.CallbackList | None:
    """The CallbackList whose hook called the function that calls this one, if any.

    It lives exactly as long as the call of `fit` that made it, also when `fit` raises,
    of which Keras tells callbacks nothing.
    """
    caller = sys._getframe(2).f_locals.get("self")
    return caller if isinstance(caller, keras.callbacks.CallbackList) else None
