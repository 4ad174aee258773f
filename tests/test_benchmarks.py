"""The instrument of the study: grids, ablations, and the report."""

import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf

ROOT = Path(__file__).parent.parent
GRIDS = sorted((ROOT / "benchmarks/grids").glob("*.toml"))

for package in ("sklearn", "scipy", "matplotlib", "tensorflow_datasets"):
    pytest.importorskip(package)

sys.path[:0] = [str(ROOT / "examples"), str(ROOT)]
import cifar  # noqa: E402
from training import data  # noqa: E402
from training.methods import METHODS  # noqa: E402

from benchmarks import accuracy, report  # noqa: E402
from benchmarks.ablations import ABLATIONS  # noqa: E402

# Of TFDS and protobuf.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


# --- Grids ---------------------------------------------------------------------------

SMALL_GRID = """
title = "two"
seeds = [3, 5]
baselines = ["erm"]
[common]
smoke = true
method = "erm"
[settings.digits]
[settings.noise]
label-noise = 0.5
[methods.erm]
[methods."other name"]
method = "mixavg"
label-noise = 0.25
"""


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_every_run_of_every_grid_is_one_that_the_program_takes(path, tmp_path):
    grid, runs = accuracy.read_grid(path)
    cells = len(grid["settings"]) * len(grid["methods"])
    assert len({run.name for run in runs}) == len(runs) == cells * len(grid["seeds"])
    assert set(grid["baselines"]) <= set(grid["methods"])
    for run in runs:
        flags = accuracy.flags({**run.options, "out": tmp_path / "new"})
        cifar.parse_arguments(flags, METHODS | ABLATIONS)  # exits if it is unknown


def test_a_grid_is_read_seed_by_seed_and_later_options_win(tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text(SMALL_GRID)
    _, runs = accuracy.read_grid(path)
    assert [run.name for run in runs] == [
        f"{setting}/{method}-{seed}"
        for seed in (3, 5)
        for setting in ("digits", "noise")
        for method in ("erm", "other name")
    ]
    assert runs[2].options == {"smoke": True, "method": "erm", "label-noise": 0.5}
    assert runs[3].options["label-noise"] == 0.25


@pytest.mark.parametrize(
    "text, expected",
    [("title = 't'", "`seeds` is missing"), ("[setings.a]", "setings")],
)
def test_a_wrong_grid_is_refused_by_name(tmp_path, text, expected):
    path = tmp_path / "grid.toml"
    path.write_text(text)
    with pytest.raises(SystemExit, match=expected):
        accuracy.read_grid(path)


def start(grid, folder, *flags):
    script = ROOT / "benchmarks/accuracy.py"
    return subprocess.run(
        [sys.executable, script, grid, "--out", "out", *flags],
        cwd=folder,
        capture_output=True,
        text=True,
    )


def test_runs_are_recorded_and_never_repeated(tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text(SMALL_GRID.replace("[3, 5]", "[3]"))
    done = tmp_path / "out/digits/erm-3.json"
    done.parent.mkdir(parents=True)
    options = {"smoke": True, "method": "erm"}
    done.write_text(json.dumps({"options": options, "seed": 3, "finished": "before"}))
    result = start("grid.toml", tmp_path)
    assert result.returncode == 0, result.stderr
    assert "1 of 4 runs are there" in result.stdout
    assert "2 to go, about" in result.stdout
    assert json.loads(done.read_text())["finished"] == "before"
    record = json.loads((tmp_path / "out/noise/other name-3.json").read_text())
    assert record["settings"]["label_noise"] == 0.25
    assert record["settings"]["method"] == "mixavg" and record["seed"] == 3
    assert len(record["history"]["loss"]) == 2
    np.testing.assert_allclose(np.sum(record["table"], axis=1), 1, atol=1e-4)
    assert str(tmp_path) not in json.dumps(record)
    again = start("grid.toml", tmp_path)
    assert "4 of 4 runs are there" in again.stdout
    path.write_text(path.read_text().replace("0.25", "0.125"))
    changed = start("grid.toml", tmp_path)
    assert changed.returncode and "other options than grid.toml has" in changed.stderr


def test_a_run_that_fails_is_named_and_the_others_go_on(tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text(SMALL_GRID.replace("[3, 5]", "[3]") + 'rate = "half"\n')
    result = start("grid.toml", tmp_path)
    assert result.returncode != 0
    assert "2 runs failed: " in result.stderr and "digits/other name-3" in result.stderr
    assert (tmp_path / "out/digits/erm-3.json").exists()


def test_a_run_trains_on_the_backend_that_its_grid_names(tmp_path):
    pytest.importorskip("jax")
    grid = SMALL_GRID.replace("[3, 5]", "[3]")
    grid = grid.replace("[settings.noise]\nlabel-noise = 0.5\n", "")
    grid = grid.replace("[common]", '[common]\nbackend = "jax"')
    (tmp_path / "grid.toml").write_text(grid.split('[methods."other')[0])
    result = start("grid.toml", tmp_path)
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "out/digits/erm-3.json").read_text())
    assert record["backend"] == record["settings"]["backend"] == "jax"


def test_a_run_of_another_grid_with_the_same_options_is_taken_over(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(accuracy, "RESULTS", tmp_path)
    first = accuracy.Run("a", "b", 1, {"epochs": 2})
    done = tmp_path / "grid" / f"{first.name}.json"
    done.parent.mkdir(parents=True)
    done.write_text(json.dumps({**vars(first), "test": 7}))
    same, other = (accuracy.Run("c", "d", seed, {"epochs": 2}) for seed in (1, 2))
    accuracy.copy_equal_runs([same, other], tmp_path / "new")
    taken = json.loads((tmp_path / "new/c/d-1.json").read_text())
    assert taken == {**vars(same), "test": 7}
    assert not (tmp_path / "new/c/d-2.json").exists()


# --- Ablations -----------------------------------------------------------------------

LABELS = np.array([[0.5, 0.5, 0], [1, 0, 0], [0, 0.5, 0.5], [0, 0, 1]], "float32")


def method(name, *flags, classes=3):
    flags = ["--smoke", "--out", "not/there", "--method", name, *flags]
    return ABLATIONS[name](cifar.parse_arguments(flags, METHODS | ABLATIONS), classes)


def fitted(method, rng, epochs=2, steps=1):
    """A linear model after `fit` without learning: its logits stay as they are."""
    x = rng.normal(size=(4, 5)).astype("float32")
    network = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)])
    model = method.model(network)
    model.compile(keras.optimizers.SGD(0.0), method.loss())
    data = tf.data.Dataset.from_tensors((x, LABELS)).repeat(steps)
    callbacks = method.callbacks()
    history = model.fit(
        data, epochs=epochs, callbacks=callbacks, verbose=0, shuffle=False
    )
    logits = np.asarray(network.predict(x, verbose=0), "float64")
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    table = callbacks[0].table if callbacks else None
    return history.history["loss"], log_p, table


SOFT = ["--global-weight", "1", "--fade-out", "0", "--collect", "all"]


def test_pairs_go_off_for_the_last_fifth_of_the_epochs():
    pairs = method("pairs_off_at_the_end", "--rate", "1", classes=8)
    pairs.args.epochs = 10
    epoch = data.Epoch()
    batches = tf.data.Dataset.from_tensor_slices((np.ones((8, 2)), np.arange(8)))
    batches = pairs.mix(batches.batch(4), epoch.number)
    for number in range(10):
        epoch.on_epoch_begin(number)
        largest = {y.max() for _, y in batches.as_numpy_iterator()}
        assert largest == ({0.5} if number < 8 else {1.0}), number


def test_rows_by_division_are_the_mean_prediction_of_each_class(rng):
    flags = [*SOFT, "--prior-count", "0"]
    losses, log_p, table = fitted(method("rows_by_division", *flags), rng)
    for number in range(3):
        expected = np.average(np.exp(log_p), axis=0, weights=LABELS[:, number])
        np.testing.assert_allclose(table[number], expected, atol=1e-4)
    targets = LABELS @ table
    expected = -(targets * log_p).sum(axis=1).mean()
    assert losses[1] == pytest.approx(expected, rel=1e-4)


def test_a_fixed_mass_goes_to_the_other_classes_as_the_table_says(rng):
    flags = [*SOFT, "--global-weight", "0.25", "--prior-count", "0"]
    losses, log_p, table = fitted(method("fixed_mass", *flags), rng)
    others = table * (1 - np.eye(3))
    others /= others.sum(axis=1, keepdims=True)
    targets = 0.75 * LABELS + 0.25 * LABELS @ others
    assert losses[0] == pytest.approx(-(LABELS * log_p).sum(axis=1).mean(), rel=1e-5)
    assert losses[1] == pytest.approx(-(targets * log_p).sum(axis=1).mean(), rel=1e-5)


def test_the_table_changes_within_an_epoch(rng):
    """Two changes an epoch, each after 13 equal steps, and none at its end."""
    _, log_p, table = fitted(method("every_13_steps", *SOFT), rng, epochs=1, steps=26)
    p, expected = np.exp(log_p), np.eye(3)
    for _ in range(2):
        cross, gram = 13 * LABELS.T @ p, 13 * LABELS.T @ LABELS
        expected = reference.updated_table(expected, cross, gram, 1.0)
    np.testing.assert_allclose(table, expected, atol=1e-5)


def test_the_teacher_is_the_moving_average_of_the_network(rng):
    teacher = method("moving_average_teacher", "--global-weight", "0.25")
    inputs = keras.Input((5,))
    hidden = keras.layers.BatchNormalization()(inputs)
    network = keras.Model(inputs, keras.layers.Dense(3)(hidden))
    model = teacher.model(network)
    model.compile(keras.optimizers.SGD(0.5), teacher.loss())
    x = rng.normal(size=(4, 5)).astype("float32")
    trained = [w.trainable for w in network.weights]  # the others change in the call
    means = network.get_weights()
    for _ in range(3):
        before = network.get_weights()
        loss = model.train_on_batch(x, LABELS)
        seen = [
            was if learns else now
            for was, now, learns in zip(
                before, network.get_weights(), trained, strict=True
            )
        ]
        means = [0.99 * m + 0.01 * w for m, w in zip(means, seen, strict=True)]
    for mean, found in zip(means, model.average.get_weights(), strict=True):
        np.testing.assert_allclose(found, mean, rtol=1e-5, atol=1e-7)
    network.set_weights(before)
    log_p = keras.ops.log_softmax(network(x, training=True))
    predicted = keras.ops.softmax(model.average(x, training=False))
    targets = 0.75 * LABELS + 0.25 * np.array(predicted)
    expected = -(targets * np.array(log_p)).sum(axis=1).mean()
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert float(model.test_on_batch(x, LABELS)) > 0


# --- The report ----------------------------------------------------------------------


@pytest.mark.parametrize("path", report.READMES, ids=lambda path: path.parent.name)
def test_the_tables_of_the_readme_are_what_the_results_say(path):
    text = path.read_text()
    assert text == report.render(text)


def test_the_report_notices_a_figure_that_no_result_has():
    text = report.READMES[0].read_text()
    figure = next(iter(report.read_runs("methods")[2]["tiny"]["erm"].values()))
    mean = f"{100 * figure['test']['accuracy']:.2f}"[:3]
    changed = text.replace(f"| {mean}", "| 99")
    assert changed != text
    assert report.render(changed) == text


def test_a_result_of_other_options_than_the_grid_says_is_refused(tmp_path, monkeypatch):
    run = accuracy.read_grid(GRIDS[-1])[1][0]
    path = tmp_path / GRIDS[-1].stem / f"{run.name}.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"options": {**run.options, "epochs": 99}}))
    monkeypatch.setattr(report, "ACCURACY", tmp_path)
    with pytest.raises(SystemExit, match="other options"):
        report.read_runs(GRIDS[-1].stem)
