"""Finds the SoftLabelCrossentropy losses of a model and attaches their tables."""

import warnings
from collections.abc import Iterator
from typing import Any

import keras

from keras_mixavg._keras import (
    output_of,
    replicated_by_tensorflow,
    track_metric,
    untrack_metric,
)
from keras_mixavg.losses import SoftLabelCrossentropy
from keras_mixavg.soft_label_table import SoftLabelTable


def soft_label_losses(model: Any) -> dict[str, SoftLabelCrossentropy]:
    """Each SoftLabelCrossentropy of the model by output name, `""` if single.

    A model that was compiled without a loss may keep one as an attribute and call it
    in its `compute_loss`, as distillers do.
    """
    losses = {
        name: loss
        for name, loss in _named(model.loss, getattr(model, "output_names", None))
        if isinstance(loss, SoftLabelCrossentropy)
    }
    if model.loss is None:
        own = [v for v in vars(model).values() if isinstance(v, SoftLabelCrossentropy)]
        losses = {"": own[0]} if own and all(loss is own[0] for loss in own) else {}
    if not losses:
        raise ValueError(
            "GlobalSoftLabel needs a model compiled with a SoftLabelCrossentropy. "
            f"Received: model.loss={model.loss!r}. Compile the model with "
            "loss=keras_mixavg.SoftLabelCrossentropy(from_logits=...)."
        )
    several = "" in losses and len(getattr(model, "outputs", None) or [None]) > 1
    if several or len({id(loss) for loss in losses.values()}) < len(losses):
        raise ValueError(
            "Each output needs its own SoftLabelCrossentropy, since each has its own "
            f"table. Received: model.loss={model.loss!r}. Compile with a list or a "
            "dict, with one SoftLabelCrossentropy(...) for each output that is to have "
            "global soft labels."
        )
    return losses


def _named(loss: Any, names: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(loss, dict):
        entries = list(loss.items())
    elif isinstance(loss, (list, tuple)):
        usable = names is not None and len(names) == len(loss) and not prefix
        entries = list(zip(names if usable else range(len(loss)), loss, strict=True))
    else:
        yield prefix, loss
        return
    for key, entry in entries:
        yield from _named(entry, None, f"{prefix}/{key}" if prefix else str(key))


def num_classes_of(model: Any, name: str, loss: SoftLabelCrossentropy) -> int | None:
    """The number of classes of an output, or None if it is not known yet.

    On one device TensorFlow and torch take it from the first batch. JAX and replicas
    need all variables before that, and there Keras has called the loss symbolically.
    """
    if loss.num_classes is not None:
        return loss.num_classes
    output = output_of(model, name)
    if output is not None:
        return output.shape[-1]
    if keras.backend.backend() == "jax" or replicated_by_tensorflow(model):
        return loss.seen_classes
    return None


# --- Their tables as metrics of the model -------------------------------------------


def forget_other_tables(model: Any, losses: dict[str, SoftLabelCrossentropy]) -> None:
    """Remove the tables of losses that the model was compiled with earlier."""
    own = {id(loss.table) for loss in losses.values()}
    others = {
        attribute: value
        for attribute, value in vars(model).items()
        if isinstance(value, SoftLabelTable) and id(value) not in own
    }
    for attribute, table in others.items():
        untrack_metric(model, attribute, table)
        for loss in losses.values() if table.learnt else ():
            loss.replaces_table = True


def name_tables(model: Any, losses: dict[str, SoftLabelCrossentropy]) -> None:
    """Name each table for its output; raise if it was saved for another one.

    Keras loads the losses of a dict by their order. As above, a callback may load them
    when training begins.
    """
    keyed = isinstance(model.loss, dict)
    outputs = dict(_named(model.loss, None)) if keyed else {}
    for name, loss in losses.items():
        saved = loss.table.output
        if saved != name and saved in outputs:
            raise ValueError(
                f"Output {name!r} has the soft-label table that was saved for output "
                f"{saved!r}, since Keras saves and loads the losses of a dict in their "
                f"order. Received: a loss for {list(outputs)}. Compile with a "
                "SoftLabelCrossentropy for the same outputs, in the same order, as the "
                "model that was saved, and load again."
            )
        loss.table.output = name
        loss.table.name = f"soft_label_table_{name}" if name else "soft_label_table"


def warn_of_new_tables(losses: dict[str, SoftLabelCrossentropy]) -> None:
    """Warn of a table that starts as the identity though the model has trained one.

    Called when an epoch begins, since a callback such as BackupAndRestore may load the
    table when training begins.
    """
    for name, loss in losses.items():
        of_output = f" of output {name!r}" if name else ""
        if loss.lost_table and not loss.table.learnt:
            warnings.warn(
                f"The loss{of_output} of this model was made from the configuration of "
                "one with a soft-label table, but the table did not come with it and "
                "now starts as the identity. Save and load with the format .keras, or "
                "with `save_weights` and `load_weights`, to keep it.",
                stacklevel=3,
            )
        elif loss.replaces_table and not loss.table.learnt:
            warnings.warn(
                "The model was compiled with a new SoftLabelCrossentropy since it last "
                f"trained with GlobalSoftLabel, so its soft-label table{of_output} "
                "starts anew. To keep the table compile with the same object, "
                "`loss=model.loss`.",
                stacklevel=3,
            )
        loss.lost_table = loss.replaces_table = False


def attach(model: Any, losses: dict[str, SoftLabelCrossentropy], collect: str) -> bool:
    """Make the tables metrics of the model, its attributes by their names.

    Returns:
        Whether its steps must be recompiled.
    """
    changed, tables = False, [loss.table for loss in losses.values()]
    for table in tables:
        if getattr(model, table.name, None) is not table:
            track_metric(model, table.name, table)
            changed = True
        changed = changed or table.collect != collect
        table.collect = collect
    _check_carried(model, tables)
    return changed


def _check_carried(model: Any, tables: list[SoftLabelTable]) -> None:
    """On JAX raise unless `model.metrics` has the tables: a step carries only these."""
    listed = {id(metric) for metric in model.metrics}
    if keras.backend.backend() == "jax" and any(
        id(table) not in listed for table in tables
    ):
        raise ValueError(
            "On JAX, `model.metrics` must list the soft-label table, and the model's "
            f"own property does not. Received: model.metrics={model.metrics!r}. Have "
            "it return [*super().metrics, ...]."
        )
