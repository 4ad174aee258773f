"""Everything that Keras does not make public and this package needs, in one place.

- `DataLayer` (`TFDataLayer` before 3.12): computes with TensorFlow inside `tf.data`
- `backend_utils.in_tf_graph`: tells whether it would do so now
- `get_keras_mask`: the mask that Keras' own losses read
- `model._tracker`: takes a metric into a built subclassed model, and out again
- `model._distribute_strategy`: in whose scope variables must be made
- the frame that called a hook: its end is the end of `fit`, however that comes

All are the same in Keras 3.10 to 3.15 but for the name of the first. The tests run with
the oldest and the newest. If a release moves one, only this file changes.
"""

import contextlib
import sys
from types import FrameType
from typing import Any

import keras
from keras.src.backend.common.masking import get_keras_mask
from keras.src.utils.backend_utils import in_tf_graph

try:
    from keras.src.layers.preprocessing.data_layer import DataLayer
except ImportError:  # its name before Keras 3.12
    from keras.src.layers.preprocessing.tf_data_layer import TFDataLayer as DataLayer

__all__ = [
    "DataLayer",  # the base that computes with TensorFlow inside `tf.data`, any backend
    "get_keras_mask",
    "in_tf_graph",  # whether it would do so now
    "calling_callback_list",
    "has_values",
    "refuse_multi_worker_strategy",
    "replicated_by_tensorflow",
    "state_scope",
    "track_metric",
    "untrack_metric",
]


def has_values(tensor: Any) -> bool:
    """Whether a tensor holds values, rather than standing for some in a trace."""
    if keras.backend.backend() == "jax":
        import jax

        return not isinstance(tensor, jax.core.Tracer)
    return getattr(getattr(tensor, "device", None), "type", None) != "meta"  # torch


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


def untrack_metric(model: Any, name: str, metric: keras.metrics.Metric) -> None:
    """Undo `track_metric`."""
    model._tracker.untrack(metric)
    if getattr(model, name, None) is metric:
        delattr(model, name)


def replicated_by_tensorflow(model: Any) -> bool:
    """Whether `model` was made under a `tf.distribute` strategy."""
    return getattr(model, "_distribute_strategy", None) is not None


def state_scope(model: Any) -> contextlib.AbstractContextManager:
    """Where variables that the train step of `model` uses must be created."""
    if replicated_by_tensorflow(model):
        return model.distribute_strategy.scope()
    return contextlib.nullcontext()


def refuse_multi_worker_strategy(model: Any = None) -> None:
    """Raise where Keras 3 would fail later, with a message about something else."""
    if keras.backend.backend() != "tensorflow":
        return
    import tensorflow as tf

    made_under = model.distribute_strategy if replicated_by_tensorflow(model) else None
    strategy = made_under or tf.distribute.get_strategy()
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        raise RuntimeError(
            "Keras 3 does not train under tf.distribute.MultiWorkerMirroredStrategy. "
            "To train on several machines set KERAS_BACKEND=jax, and in each process "
            "call keras.distribution.initialize(...) and "
            "keras.distribution.set_distribution(keras.distribution.DataParallel()); "
            "see `Several devices and machines` in the README."
        )


def calling_callback_list() -> keras.callbacks.CallbackList | None:
    """The CallbackList whose hook led to the function that calls this one, if any.

    It lives exactly as long as the call of `fit` that made it, also when `fit` raises,
    of which Keras tells callbacks nothing.
    """
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:  # past the hook of a subclass, or of a wrapper
        caller = frame.f_locals.get("self")
        if isinstance(caller, keras.callbacks.CallbackList):
            return caller
        frame = frame.f_back
    return None
