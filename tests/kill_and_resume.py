"""A training run that is killed again and again, and one that is not.

    python tests/kill_and_resume.py FOLDER KILLS SEED

Each life is a process of its own that runs the same command. It kills itself with
SIGKILL at a place drawn from the seed: while it reads the data of a step, in the
callback before or after the table changes, or with half a checkpoint written. The last
one survives. Prints one line for each life, and writes `killed.npz` and
`uninterrupted.npz`.
"""

import os
import random
import signal
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import keras_mixavg
from keras_mixavg import callbacks
from keras_mixavg.soft_label_table import SoftLabelTable

STEPS, FEATURES, CLASSES = 4, 5, 4
PLACES = ["step", "before the table changes", "after it", "checkpoint half written"]


def die_at(place, times):
    """Kill this process when it reaches `place` for the `times`-th time."""
    counts = {name: 0 for name in PLACES}

    def reached(here):
        counts[here] += 1
        if here == place and counts[here] == times:
            os.kill(os.getpid(), signal.SIGKILL)

    end_epoch, save = SoftLabelTable.end_epoch, SoftLabelTable.save_own_variables

    def watched_end_epoch(table, prior_count):
        reached("before the table changes")
        left_out = end_epoch(table, prior_count)
        reached("after it")
        return left_out

    def watched_save(table, store):
        save(table, store)
        reached("checkpoint half written")

    SoftLabelTable.end_epoch = watched_end_epoch
    SoftLabelTable.save_own_variables = watched_save
    return reached


def train(folder, result, epochs, table_first, reached=lambda here: None):
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(STEPS * 8, FEATURES)).astype("float32")
    y = rng.dirichlet(np.ones(CLASSES), size=len(x)).astype("float32")

    def batches():
        for i in range(STEPS):
            reached("step")
            yield x[8 * i : 8 * i + 8], y[8 * i : 8 * i + 8]

    spec = (tf.TensorSpec((8, FEATURES)), tf.TensorSpec((8, CLASSES)))
    data = tf.data.Dataset.from_generator(batches, output_signature=spec)
    data = data.apply(tf.data.experimental.assert_cardinality(STEPS))
    model = keras.Sequential(
        [
            keras.Input((FEATURES,)),
            keras.layers.Dense(6, "tanh"),
            keras.layers.Dense(CLASSES),
        ]
    )
    loss = keras_mixavg.SoftLabelCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss)
    model.optimizer.build(model.trainable_variables)  # TensorFlow traces once less
    callback = callbacks.GlobalSoftLabel(collect="all")
    backup = keras.callbacks.BackupAndRestore(
        folder / "backup", double_checkpoint=True, delete_checkpoint=False
    )
    order = [callback, backup] if table_first else [backup, callback]
    model.fit(data, epochs=epochs, callbacks=order, verbose=0, shuffle=False)
    state = {f"weight {i}": w for i, w in enumerate(model.get_weights())}
    for i, variable in enumerate(model.optimizer.variables):
        state[f"optimizer {i}"] = keras.ops.convert_to_numpy(variable.value)
    np.savez(result, **state, **loss.table.state())


def live(life):
    """Run `life` in a new process, and return the signal that ended it, or 0."""
    child = os.fork()  # TensorFlow is imported, and has not been used yet
    if not child:
        try:
            life()
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status) and os.WEXITSTATUS(status):
        raise SystemExit("A life ended with an error of its own.")
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def main(folder, kills, seed):
    folder, random_places = Path(folder), random.Random(int(seed))
    epochs = 2 * int(kills)  # half of the lives train here, for three at the most
    for name, table_first in (("first", True), ("last", False)):
        place = folder / f"table {name}"
        place.mkdir(parents=True, exist_ok=True)
        died = 0
        for _ in range(int(kills) // 2):
            where = random_places.choice(PLACES)
            times = random_places.randint(1, STEPS * 3 if where == "step" else 3)

            def life(where=where, times=times, place=place, table_first=table_first):
                reached = die_at(where, times)
                train(place, place / "unused.npz", epochs, table_first, reached)

            died += live(life) == signal.SIGKILL
            print(f"killed: {where}, time {times}", flush=True)
        result = folder / f"killed {name}"
        live(lambda p=place, r=result, t=table_first: train(p, r, epochs, t))
        print(f"{died} kills survived with the table {name}", flush=True)
        if not (place / "backup" / "latest.weights.h5").exists():
            raise SystemExit("No backup was ever written.")
    live(lambda: train(folder / "other", folder / "uninterrupted", epochs, True))


if __name__ == "__main__":
    main(*sys.argv[1:])
