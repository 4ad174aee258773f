"""Finds the SoftLabelCrossentropy losses of a model, and attaches their tables."""

import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import keras

from keras_mixavg._keras import (
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
            "Each output needs a SoftLabelCrossentropy of its own, since each has its "
            f"own table. Received: model.loss={model.loss!r}. Compile with a list or a "
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
    """How many classes the loss of an output sees, if that can be told by now.

    On one device TensorFlow and torch learn it from the first batch. JAX and replicas
    need all variables before: there Keras has called the loss once, symbolically.
    """
    if loss.num_classes is not None:
        return loss.num_classes
    outputs = getattr(model, "outputs", None) or []
    names = getattr(model, "output_names", None) or []
    if name in names and len(names) == len(outputs):
        return outputs[names.index(name)].shape[-1]
    if name == "" and len(outputs) == 1:
        return outputs[0].shape[-1]
    if keras.backend.backend() == "jax" or replicated_by_tensorflow(model):
        return loss.seen_classes
    return None


# --- Their tables as metrics of the model -------------------------------------------


def claim(model: Any, loss: SoftLabelCrossentropy) -> None:
    """Note that the table of `loss` is this model's, and refuse that of another."""
    table = loss.table
    if table.owner is not None and table.owner() is not model:
        raise ValueError(
            "The SoftLabelCrossentropy of this model has trained another model, "
            "whose soft-label table it holds. Compile each model with a "
            "SoftLabelCrossentropy(...) of its own."
        )
    table.owner = weakref.ref(model)


def forget_other_tables(model: Any, losses: dict[str, SoftLabelCrossentropy]) -> None:
    """Those of losses that the model was compiled with before."""
    tables = [loss.table for loss in losses.values()]
    others = {
        attribute: value
        for attribute, value in vars(model).items()
        if isinstance(value, SoftLabelTable)
        and not any(value is table for table in tables)
    }
    for attribute, table in others.items():
        untrack_metric(model, attribute, table)
        for loss in losses.values() if table.learnt else ():
            loss.replaces_table = True


def warn_of_new_tables(losses: dict[str, SoftLabelCrossentropy]) -> None:
    """Say that a table starts as the identity where the model, or the one that its
    loss comes from, has had more. Once an epoch begins: a callback such as
    BackupAndRestore may load the table when training begins."""
    for name, loss in losses.items():
        of_output = f" of output {name!r}" if name else ""
        if loss.lost_table and not loss.table.learnt:
            warnings.warn(
                f"The loss{of_output} of this model was made from the configuration of "
                "one with a soft-label table, and the table did not come with it, "
                "which now starts as the identity. Save and load with the format "
                ".keras, or with `save_weights` and `load_weights`, to keep it.",
                stacklevel=3,
            )
        elif loss.replaces_table and not loss.table.learnt:
            warnings.warn(
                "The model was compiled with a new SoftLabelCrossentropy since it last "
                f"trained with GlobalSoftLabel, so its soft-label table{of_output} "
                "starts anew. To go on with the table compile with the same object, "
                "`loss=model.loss`.",
                stacklevel=3,
            )
        loss.lost_table = loss.replaces_table = False


def attach(model: Any, losses: dict[str, SoftLabelCrossentropy], collect: str) -> bool:
    """Make the tables metrics of the model; whether its steps must be made anew."""
    changed = False
    for name, loss in losses.items():
        attribute, table = _attribute(name), loss.table
        if getattr(model, attribute, None) is not table:
            track_metric(model, attribute, table)
            changed = True
        changed = changed or table.collect != collect
        table.collect = collect
        loss.attached, loss.output = True, name
    _check_carried(model, [loss.table for loss in losses.values()])
    return changed


def _attribute(name: str) -> str:
    """The model's attribute for the table of an output while it trains."""
    return f"soft_label_table_{name}" if name else "soft_label_table"


def _check_carried(model: Any, tables: list[SoftLabelTable]) -> None:
    """On JAX a step carries only what the model lists; elsewhere it need not be."""
    listed = {id(metric) for metric in model.metrics}
    if keras.backend.backend() == "jax" and any(
        id(table) not in listed for table in tables
    ):
        raise ValueError(
            "On JAX, `model.metrics` must list the soft-label table, and the model's "
            f"own property does not. Received: model.metrics={model.metrics!r}. Have "
            "it return [*super().metrics, ...]."
        )
