"""What a process does with a model that it has not made; see test_resume.py.

No other module of the tests may be imported here: they import the package.
"""

import sys
import warnings

import keras
import numpy as np


def load_and_go_on():
    """Predict with model.keras before the package is there; then train it further."""
    warnings.simplefilter("error", UserWarning)
    data = np.load("data.npz")
    bare = keras.saving.load_model("model.keras", compile=False)
    predictions = bare.predict(data["x"], verbose=0)
    assert "keras_mixavg" not in sys.modules

    import keras_mixavg

    model = keras.saving.load_model("model.keras", safe_mode=True)
    arguments = {"epochs": 2, "shuffle": False, "verbose": 0}
    callbacks = [keras_mixavg.GlobalSoftLabel()]
    model.fit(data["x"], data["y"], 15, callbacks=callbacks, **arguments)
    state = model.loss.table.state()
    np.savez("result.npz", *model.get_weights(), **state, predictions=predictions)
