"""What is saved of a soft-label table, and whether what a file holds can be one."""

import numpy as np

SAVED = ("table", "cross", "gram", "steps")
OLD_NAMES = {"evidence": "cross", "mass": "gram"}  # in files of version 0.1


def initial_state(num_classes: int) -> dict[str, np.ndarray]:
    """The identity, and no evidence."""
    zeros = np.zeros((num_classes, num_classes), "float32")
    identity = np.eye(num_classes, dtype="float32")
    return {"table": identity, "cross": zeros, "gram": zeros, "steps": np.zeros(())}


def check_state(state: dict[str, np.ndarray], num_classes: int | None) -> None:
    """Raise unless a file holds a whole table that fits the model's classes."""
    advice = "The file is damaged, or of another version. Load an earlier one."
    if set(state) != set(SAVED):
        raise ValueError(
            f"A saved soft-label table must have {sorted(SAVED)}. Received: "
            f"{sorted(state)}. {advice}"
        )
    table = state["table"]
    expected = (num_classes or len(table),) * 2
    for name in ("table", "cross", "gram"):
        if state[name].shape != expected:
            raise ValueError(
                f"The saved `{name}` must have shape {expected}, as the soft-label "
                f"table of this model. Received: shape {state[name].shape}. Load a "
                "file of a model with the same classes."
            )
    finite = all(np.isfinite(value).all() for value in state.values())
    if not finite or (table < 0).any() or np.abs(table.sum(axis=1) - 1).max() > 1e-3:
        raise ValueError(
            "The rows of a saved soft-label table must be finite, not negative, and "
            f"sum to 1. Received: rows that sum to {table.sum(axis=1)}. {advice}"
        )
