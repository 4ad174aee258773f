"""Everything that Keras does not make public and this package needs, in one place.

- `DataLayer` (`TFDataLayer` before 3.12): computes with TensorFlow inside `tf.data`
- `backend_utils.in_tf_graph`: tells whether it would do so now
- `get_keras_mask`: the mask that Keras' own losses read
- `KerasAutoTrackable`: what `tf.train.Checkpoint` finds and saves
- `model._tracker`: takes a metric into a built subclassed model, and out again
- `model._distribute_strategy`: in whose scope variables must be made
- `model.train_function` and `test_function`, and what makes them anew
- the stateless scope of JAX: which variables a traced step carries

All are the same in Keras 3.10 to 3.15 but for the name of the first. The tests run with
the oldest and the newest. If a release moves one, only this file changes.
"""

import contextlib
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import keras
from keras.src.backend.common.masking import get_keras_mask
from keras.src.backend.common.stateless_scope import get_stateless_scope
from keras.src.utils.backend_utils import in_tf_graph

try:
    from keras.src.layers.preprocessing.data_layer import DataLayer
except ImportError:  # its name before Keras 3.12
    from keras.src.layers.preprocessing.tf_data_layer import TFDataLayer as DataLayer

if keras.backend.backend() == "tensorflow":
    from keras.src.backend.tensorflow.trackable import KerasAutoTrackable as Trackable
else:
    Trackable = object

__all__ = [
    "DataLayer",  # the base that computes with TensorFlow inside `tf.data`, any backend
    "Trackable",  # the base of what `tf.train.Checkpoint` saves as part of a model
    "get_keras_mask",
    "in_tf_graph",  # whether it would do so now
    "evaluates_without",
    "has_fixed_state",
    "has_values",
    "is_carried",
    "is_traced_by_hand",
    "loop_of",
    "make_steps_anew",
    "refuse_multi_worker_strategy",
    "replicated_by_tensorflow",
    "state_scope",
    "sync_state",
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
            "see `Several machines` in docs/backends.md."
        )


# --- Steps and loops -----------------------------------------------------------------


def make_steps_anew(model: Any) -> None:
    """Forget the compiled steps. They are compiled again when they are next called."""
    model.make_train_function(force=True)
    model.make_test_function(force=True)


class _Evaluation:
    """A test function of Keras, during which some tables are told so.

    It is told to the function that traces, so that the compiled step has no trace of
    the table.
    """

    def __init__(self, function: Callable, tables: list[Any]) -> None:
        self.function = function
        self.tables = tables

    def __call__(self, *args: Any) -> Any:
        for table in self.tables:
            table.evaluating = True
        try:
            return self.function(*args)
        finally:
            for table in self.tables:
                table.evaluating = False


def evaluates_without(model: Any, tables: Iterable[Any]) -> None:
    """Have `evaluate`, validation and `test_on_batch` leave the tables out."""
    if not isinstance(model.test_function, _Evaluation):
        model.make_test_function(force=True)
        model.test_function = _Evaluation(model.test_function, list(tables))


def loop_of(model: Any) -> Callable[[], bool]:
    """A function that tells whether no other `fit` of `model` has begun since.

    Each `fit` gives the model a History of its own.
    """
    reference, history = weakref.ref(model), getattr(model, "history", None)
    return lambda: getattr(reference(), "history", None) is history


def sync_state(model: Any) -> None:
    """On JAX, fetch the variables of a model that trains from its last step."""
    if hasattr(model, "jax_state_sync") and get_stateless_scope() is None:
        model.jax_state_sync()


def is_traced_by_hand(tensor: Any) -> bool:
    """Whether JAX traces a function that carries no variables of Keras along."""
    if keras.backend.backend() != "jax" or has_fixed_state():
        return False
    return not has_values(tensor)


def has_fixed_state() -> bool:
    """Whether JAX traces a step, in which no variable can be made any more."""
    return keras.backend.backend() == "jax" and get_stateless_scope() is not None


def is_carried(variable: Any) -> bool:
    """Whether a step of JAX that is being traced takes `variable` along."""
    if not has_fixed_state():
        return True
    return get_stateless_scope().get_current_value(variable) is not None
