"""Everything that Keras does not make public and this package needs, in one place.

- `DataLayer` (`TFDataLayer` before 3.12): computes with TensorFlow inside `tf.data`
- `backend_utils.in_tf_graph`: tells whether it would do so now
- `get_keras_mask`: the mask that Keras' own losses read
- `KerasAutoTrackable`: what `tf.train.Checkpoint` finds and saves
- `model._tracker`: takes a metric into a built subclassed model, and out again
- `model._distribute_strategy`: in whose scope variables must be made
- `model.train_function` and `test_function`, and what makes them anew
- `metric._direction`, set in metrics.py: what callbacks that monitor it look for
- `model._compile_metrics`: which metrics get the labels of which output
- the stateless scope of JAX: which variables a traced step carries
- JAX' tracers and torch's device "meta", which Keras traces with

All are the same in Keras 3.10 to 3.15 but for the name of the first. The tests run with
the oldest and the newest. If a release moves one, only this file changes.
"""

import contextlib
import functools
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

__all__ = ["DataLayer", "Trackable", "get_keras_mask", "in_tf_graph"]  # Keras' own


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


def metrics_of(model: Any, output: str) -> list[keras.metrics.Metric]:
    """The metrics that Keras updates with the labels of an output, `""` if single.

    Before they are built, those of a single output that were passed as objects.
    """
    compiled = model._compile_metrics
    if compiled is None:
        return []
    if not compiled.built:
        passed = [compiled._user_metrics, compiled._user_weighted_metrics]
        single = len(getattr(model, "outputs", None) or [None]) == 1
        flat = keras.tree.flatten(passed) if single else []
        return [metric for metric in flat if isinstance(metric, keras.metrics.Metric)]
    single = len(compiled._flat_metrics) == 1
    return [
        metric
        for several in [*compiled._flat_metrics, *compiled._flat_weighted_metrics]
        if several is not None and (single or several.output_name == output)
        for metric in several.metrics
    ]


def has_steps_of_its_own(model: Any) -> bool:
    """Whether loss and metrics of `model` may get different labels."""
    names = ("train_step", "test_step", "compute_loss", "compute_metrics")
    return any(
        getattr(type(model), name) is not getattr(keras.Model, name) for name in names
    )


def replicated_by_tensorflow(model: Any) -> bool:
    """Whether `model` was made under a `tf.distribute` strategy."""
    return getattr(model, "_distribute_strategy", None) is not None


def state_scope(model: Any) -> contextlib.AbstractContextManager:
    """Where variables that the train step of `model` uses must be created."""
    if replicated_by_tensorflow(model):
        return model.distribute_strategy.scope()
    return contextlib.nullcontext()


# --- Steps ---------------------------------------------------------------------------


def make_steps_anew(model: Any) -> None:
    """Forget the compiled steps. They are compiled again when they are next called."""
    model.make_train_function(force=True)
    model.make_test_function(force=True)


def evaluates_without(model: Any, tables: Iterable[Any]) -> None:
    """Have `evaluate`, validation and `test_on_batch` leave the tables out."""
    if getattr(model.test_function, "func", None) is not _evaluate:
        model.make_test_function(force=True)
        model.test_function = functools.partial(
            _evaluate, list(tables), model.test_function
        )


def _evaluate(tables: list[Any], test_function: Callable, *args: Any) -> Any:
    """A step that Keras traces without the tables, since they are told meanwhile."""
    for table in tables:
        table.evaluating = True
    try:
        return test_function(*args)
    finally:
        for table in tables:
            table.evaluating = False


def sync_state(model: Any) -> None:
    """On JAX, fetch the variables of a model that trains from its last step."""
    if hasattr(model, "jax_state_sync") and get_stateless_scope() is None:
        model.jax_state_sync()


def has_values(tensor: Any) -> bool:
    """Whether a tensor holds values, rather than standing for some in a trace."""
    if keras.backend.backend() == "jax":
        import jax

        return not isinstance(tensor, jax.core.Tracer)
    return getattr(getattr(tensor, "device", None), "type", None) != "meta"  # torch


def traced_step() -> Any:
    """While JAX traces a step of Keras, its scope, with `get_current_value(variable)`
    for each variable that the step takes along; elsewhere None."""
    return get_stateless_scope() if keras.backend.backend() == "jax" else None
