"""The private names of Keras that this package needs, all in one place.

- `DataLayer` (`TFDataLayer` before 3.12): computes with TensorFlow inside `tf.data`
- `backend_utils.in_tf_graph`: whether it would do so now
- `get_keras_mask`: the mask that Keras' own losses read
- `KerasAutoTrackable`: what `tf.train.Checkpoint` finds and saves
- `model._tracker`: adds a metric to a built subclassed model, and removes it
- `model._distribute_strategy`: in which scope variables must be created
- `model.train_function` and `test_function`, and the methods that compile them
- `metric._direction`, set in metrics.py: whether a larger value is better
- `model._compile_metrics`: which metrics get the labels of which output
- the stateless scope of JAX: which variables a traced step carries
- JAX tracers and torch's device "meta", with which Keras traces

Only the first has changed its name between Keras 3.10 and 3.15. The tests run with the
oldest version and the newest. If a release moves one, only this file changes.
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

    A built subclassed model refuses new state, so the tracker is unlocked for this
    line. On JAX a train step carries only what the model tracks.
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

    Before Keras has built them, only metric objects of a single output are known.
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


def training_of(model: Any) -> tuple:
    """Identifies the `fit` that a model is in, or was in last.

    Each `fit` gives its model a History of its own, each `compile` a compiled loss.
    """
    return getattr(model, "history", None), getattr(model, "_compile_loss", None)


def output_of(model: Any, name: str) -> Any:
    """The output of this name of a functional model, or None."""
    outputs = getattr(model, "outputs", None) or []
    names = getattr(model, "output_names", None) or []
    structure = getattr(model, "_outputs_struct", None)
    if isinstance(structure, dict) and name:  # whose keys a loss has, not layers' names
        found = structure.get(name)
        return found if hasattr(found, "shape") else None
    if name in names and len(names) == len(outputs):
        return outputs[names.index(name)]
    return outputs[0] if name == "" and len(outputs) == 1 else None


def has_steps_of_its_own(model: Any) -> bool:
    """Whether the loss and the metrics of `model` may get different labels."""
    names = ("train_step", "test_step", "compute_loss", "compute_metrics")
    return any(
        getattr(type(model), name) is not getattr(keras.Model, name) for name in names
    )


def replicated_by_tensorflow(model: Any) -> bool:
    """Whether `model` was created under a `tf.distribute` strategy."""
    return getattr(model, "_distribute_strategy", None) is not None


def state_scope(model: Any) -> contextlib.AbstractContextManager:
    """Where variables that the train step of `model` uses must be created."""
    if replicated_by_tensorflow(model):
        return model.distribute_strategy.scope()
    return contextlib.nullcontext()


# --- Steps ---------------------------------------------------------------------------


def recompile_steps(model: Any) -> None:
    """Discard the compiled steps. Each is compiled again at its next call."""
    model.make_train_function(force=True)
    model.make_test_function(force=True)


def exclude_from_evaluation(model: Any, switches: Iterable[Any]) -> None:
    """Set `evaluating` of each switch in `evaluate`, validation and `test_on_batch`."""
    if getattr(model.test_function, "func", None) is not _evaluate:
        model.make_test_function(force=True)
        model.test_function = functools.partial(
            _evaluate, list(switches), model.test_function
        )


def _evaluate(switches: list[Any], test_function: Callable, *args: Any) -> Any:
    """Run, and on the first call trace, Keras' test step with `evaluating` set."""
    for switch in switches:
        switch.evaluating = True
    try:
        return test_function(*args)
    finally:
        for switch in switches:
            switch.evaluating = False


def sync_state(model: Any) -> None:
    """On JAX, copy the results of the last step of `fit` into the model's variables."""
    if hasattr(model, "jax_state_sync") and get_stateless_scope() is None:
        model.jax_state_sync()


def has_values(tensor: Any) -> bool:
    """Whether a tensor holds values, and is no placeholder in a trace."""
    if keras.backend.backend() == "jax":
        import jax

        return not isinstance(tensor, jax.core.Tracer)
    return getattr(getattr(tensor, "device", None), "type", None) != "meta"  # torch


def traced_step() -> Any:
    """The scope of the Keras step that JAX is tracing, or None.

    Its `get_current_value(variable)` is None for a variable that the step lacks.
    """
    return get_stateless_scope() if keras.backend.backend() == "jax" else None
