"""What the method adds to a training step, to an epoch of `fit`, and to the memory.

    python benchmarks/training_step.py                      # 25 minutes on two cores
    python benchmarks/training_step.py --backends jax --only steps

`steps`: two models of one network, one trained with `CategoricalCrossentropy`, one with
`SoftLabelCrossentropy` and `GlobalSoftLabel`, take turns: an epoch of `fit` each, in
threads that pass a baton on, `--repeats` times after two of warm-up. `growth`: the same
for a single dense layer, over classes and batch sizes. `memory`: peak memory of
processes that train with and without, at 1,000 and 10,000 classes.
`transfers`: how many values an epoch of 5 and of 50 steps copies from device to host.

All labels are averaged pairs; no input pipeline is measured. Each backend has a process
of its own. Writes `benchmarks/results/training_step.json`.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from importlib import metadata
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent
RESULT = BENCHMARKS / "results" / "training_step.json"
BACKENDS = ("tensorflow", "jax", "torch")
PARTS = ("steps", "growth", "memory", "transfers")
CASES = {  # network, side of the images, classes, steps an epoch
    "small network": ("small", 32, 10, 8),
    "PreAct ResNet-18": ("preact_resnet18", 32, 100, 2),
    "small network, wide head": ("small", 32, 1000, 8),
}
BATCH = 128
GROWTH = [(k, BATCH) for k in (10, 100, 1000)] + [(1000, b) for b in (32, 512)]
GROWTH += [(10_000, BATCH)]
FEATURES = 256  # of the dense layer


# --- Two sides that take turns -------------------------------------------------------


class Side(threading.Thread):
    """Trains a model with the method or without; waits for its turn at each epoch."""

    def __init__(self, make_model, with_method, data, steps, epochs):
        super().__init__(daemon=True)
        self.arguments = make_model, with_method, data, steps, epochs
        self.mine, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.epochs, self.steps, self.error = [], [], None
        self.batch_hooks = 0

    def run(self):
        import keras

        make_model, with_method, data, steps, epochs = self.arguments
        side = self

        class First(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch, logs=None):
                side.mine.acquire()
                self.start = time.perf_counter()

            def on_epoch_end(self, epoch, logs=None):
                side.steps.append(time.perf_counter() - side.begun)

        class Last(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch, logs=None):
                side.begun = time.perf_counter()

            def on_epoch_end(self, epoch, logs=None):
                side.epochs.append(time.perf_counter() - first.start)
                side.done.release()

        first = First()
        try:
            model, callbacks = compiled(make_model, with_method)
            model.fit(
                repeated(data, steps),
                steps_per_epoch=steps,
                epochs=epochs,
                verbose=0,
                callbacks=[first, *callbacks, Last()],
            )
        except Exception as error:
            self.error = error
            self.done.release()

    def take_turn(self):
        self.mine.release()
        self.done.acquire()
        if self.error:
            raise self.error


def compiled(make_model, with_method):
    import keras

    import keras_mixavg

    keras.utils.set_random_seed(0)
    model = make_model()
    plain = keras.losses.CategoricalCrossentropy(from_logits=True)
    loss = keras_mixavg.SoftLabelCrossentropy(from_logits=True)
    model.compile(
        keras.optimizers.SGD(0.01, 0.9),
        loss if with_method else plain,
        jit_compile=keras.backend.backend() != "torch",  # Keras: torch.compile, slower
    )
    return model, [keras_mixavg.GlobalSoftLabel()] if with_method else []


def make_data(features, classes, batch):
    import numpy as np

    rng = np.random.default_rng(0)
    one_hot = np.eye(classes, dtype="float32")[rng.integers(0, classes, (2, batch))]
    return rng.normal(size=(batch, *features)).astype("float32"), one_hot.mean(axis=0)


def repeated(data, steps):
    """The one batch, as tensors of the backend, over and over."""
    import keras

    batch = tuple(keras.ops.convert_to_tensor(value) for value in data)
    while True:
        yield batch


def take_turns(make_model, data, steps, repeats):
    warm_up = 2
    plain, method = (
        Side(make_model, with_method, data, steps, warm_up + repeats)
        for with_method in (False, True)
    )
    plain.start(), method.start()
    for turn in range(warm_up + repeats):
        for side in (plain, method) if turn % 2 else (method, plain):
            side.take_turn()
    plain.join(), method.join()
    figures = {}
    for name in ("steps", "epochs"):
        with_, without = (getattr(s, name)[warm_up:] for s in (method, plain))
        ratios = [a / b for a, b in zip(with_, without, strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        figures[name] = {
            "ratio": statistics.median(ratios),
            "quartiles": [low, high],
            "plain_ms": 1e3 * statistics.median(without),
            "method_ms": 1e3 * statistics.median(with_),
        }
    return figures


# --- The four parts ------------------------------------------------------------------


def measure_steps(repeats):
    sys.path.insert(0, str(BENCHMARKS.parent / "examples"))
    from training.networks import NETWORKS

    for case, (network, side, classes, steps) in CASES.items():
        shape = (side, side, 3)
        data = make_data(shape, classes, BATCH)
        figures = take_turns(
            lambda network=network, shape=shape, classes=classes: NETWORKS[network](
                shape, classes
            ),
            data,
            steps,
            repeats,
        )
        yield {
            "case": case,
            "classes": classes,
            "steps_per_epoch": steps,
            "repeats": repeats,
            **figures,
        }


def dense(classes):
    import keras

    return keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(classes)])


def measure_growth(repeats):
    import keras

    for classes, batch in GROWTH:
        steps = 50
        if classes >= 10_000:  # each epoch's end takes half a minute there
            if keras.backend.backend() != "tensorflow":
                continue
            steps, repeats = 3, 2
        data = make_data((FEATURES,), classes, batch)
        figures = take_turns(lambda k=classes: dense(k), data, steps, repeats)
        times = figures["steps"]
        added = (times["method_ms"] - times["plain_ms"]) / steps
        end = figures["epochs"]["method_ms"] - times["method_ms"]
        yield {
            "classes": classes,
            "batch": batch,
            "repeats": repeats,
            "added_ms_per_step": added,
            "gflop_of_4_and_7": 6 * classes**2 * batch / 1e9,
            "ms_at_epoch_end": end,
        }


def measure_memory(_):
    """Peak MiB of a process that trains two epochs of three steps."""
    for classes in (1000, 10_000):
        peaks = {}
        for part, with_method in (("plain", False), ("method", True)):
            code = (
                "import sys\n"
                f"sys.path.insert(0, {str(BENCHMARKS)!r})\n"
                "import training_step as t\n"
                "from peak_memory import own_peak\n"
                f"data = t.make_data((t.FEATURES,), {classes}, t.BATCH)\n"
                f"model, callbacks = t.compiled(lambda: t.dense({classes}), "
                f"{with_method})\n"
                "model.fit(t.repeated(data, 3), steps_per_epoch=3, epochs=2, "
                "verbose=0, callbacks=callbacks)\n"
                "print(own_peak())"
            )
            result = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=True
            )
            peaks[part] = float(result.stdout.split()[-1])
        table = 4 * classes**2 / 2**20
        yield {
            "classes": classes,
            "peak_mib": peaks,
            "table_mib": table,
            "tables_added": (peaks["method"] - peaks["plain"]) / table,
        }


def measure_transfers(_):
    """Whether fit's steps wait for the host: calls of batch hooks, device-to-host."""
    import keras

    import keras_mixavg

    hooks = [
        name
        for name in ("on_train_batch_begin", "on_train_batch_end")
        if getattr(keras_mixavg.GlobalSoftLabel, name)
        is not getattr(keras.callbacks.Callback, name)
    ]
    for steps in (5, 50):
        counts = {}
        for part, with_method in (("plain", False), ("method", True)):
            model, callbacks = compiled(lambda: dense(10), with_method)
            data = make_data((FEATURES,), 10, BATCH)
            fit = {"steps_per_epoch": steps, "epochs": 1, "verbose": 0}
            with count_copies(keras.backend.backend()) as copies:
                model.fit(repeated(data, steps), callbacks=callbacks, **fit)
            counts[part] = len(copies)
        yield {"steps": steps, "batch_hooks": hooks, "copies_to_host": counts}


@contextlib.contextmanager
def count_copies(backend):
    """A list that gets an entry for each value that goes from the device to Python."""
    copies, undo, mode = [], [], contextlib.nullcontext()

    def watch(owner, name, wanted=lambda *args: True):
        original = getattr(owner, name)

        def counted(*args, **kwargs):
            if wanted(*args):
                copies.append(name)
            return original(*args, **kwargs)

        setattr(owner, name, counted)
        undo.append(lambda: setattr(owner, name, original))

    def watch_numpy(kind):  # NumPy reads the buffer: no method of the tensor is called
        import numpy as np

        for name in ("array", "asarray"):
            watch(np, name, lambda *args: args and isinstance(args[0], kind))

    if backend == "torch":
        import torch
        from torch.utils._python_dispatch import TorchDispatchMode

        class Scalars(TorchDispatchMode):
            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                if function is torch.ops.aten._local_scalar_dense.default:
                    copies.append(function)
                return function(*args, **(kwargs or {}))

        mode = Scalars()
        watch(torch.Tensor, "numpy")
    elif backend == "jax":
        import jax

        watch_numpy(jax.Array)
        for name in ("__float__", "__int__", "__bool__", "item", "tolist"):
            watch(jax._src.array.ArrayImpl, name)
    else:
        from tensorflow.python.framework.ops import EagerTensor

        watch_numpy(EagerTensor)
        for name in ("numpy", "__float__", "__int__", "__bool__"):
            watch(EagerTensor, name)
    try:
        with mode:
            yield copies
    finally:
        for restore in undo:
            restore()


MEASURE = {
    "steps": measure_steps,
    "growth": measure_growth,
    "memory": measure_memory,
    "transfers": measure_transfers,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--repeats", type=int, default=7)
    add("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    add("--only", nargs="+", choices=PARTS, default=PARTS)
    add("--out", type=Path, default=RESULT)
    add("--part", help=argparse.SUPPRESS)  # measure here, print JSON
    args = parser.parse_args()
    if args.part:
        for row in MEASURE[args.part](args.repeats):
            print(json.dumps(row), flush=True)
        return
    packages = ("keras", *BACKENDS, "numpy", "keras-mixavg")
    report = json.loads(args.out.read_text()) if args.out.exists() else {"rows": []}
    report |= {
        "command": "python benchmarks/training_step.py",
        "batch": BATCH,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": {package: metadata.version(package) for package in packages},
    }
    for part in args.only:
        for backend in args.backends:
            process = subprocess.Popen(
                [sys.executable, __file__, "--part", part]
                + ["--repeats", str(args.repeats)],
                env={**os.environ, "KERAS_BACKEND": backend},
                stdout=subprocess.PIPE,
                text=True,
            )
            rows = []
            for line in process.stdout:
                if line.startswith("{"):
                    rows.append({"part": part, "backend": backend, **json.loads(line)})
                    print(json.dumps(rows[-1]), flush=True)
            if process.wait():
                raise SystemExit(f"{part} on {backend} failed, see above")
            report["rows"] = [
                row
                for row in report["rows"]
                if (row["part"], row["backend"]) != (part, backend)
            ] + rows
            args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
